"""Pictures with their masks and classes, from a benchmark, a folder, Parquet files or the Hub."""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, load_dataset, load_from_disk
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from PIL.Image import Image as PILImage

from .benchmarks import BENCHMARKS, benchmark_split, find_benchmark_files
from .class_split import ClassSplit, read_class_names, read_text, split_classes
from .image_reading import find_unread, is_picture, load_class_ids, load_rgb, on_one_line
from .input_error import InputError

# Not decoded, so that errors name the file and masks keep their ids, of whatever mode they are.
FEATURES = Features({"image": Image(decode=False), "mask": Image(decode=False)})
NAMES_FILES = ("classes.txt", "id2label.json")
IMAGE_COLUMNS = ("image", "img", "pixel_values", "picture")
MASK_COLUMNS = (
    "mask", "label", "labels", "annotation", "annotations", "label_map", "seg_map", "segmentation",
    "segmentation_map", "segmentation_mask", "semantic_mask", "semantic_segmentation",
)  # fmt: skip

Pair = tuple[str, str]  # Paths of a picture and its mask.


def load_pictures(
    dataset: str,
    data_dir: str | os.PathLike | None = None,
    classes_file: str | os.PathLike | None = None,
    seen: Collection[str] | None = None,
    unseen: Collection[str] | None = None,
    ignored: Collection[str] = (),
    image_column: str | None = None,
    mask_column: str | None = None,
    splits: Collection[str] | None = None,
) -> tuple[DatasetDict, ClassSplit]:
    """
    Load a data set and its classes.

    Args:
        dataset: A key of `BENCHMARKS`, a Hub id (`owner/name`), or a folder with one of
            - `images/` and `masks/`, whose files match in their paths without suffix; subfolders of `images/` with
              the same name in `masks/` are splits;
            - `metadata.jsonl`, one JSON object a line with the paths `file_name` and `mask_file_name`, relative to the
              folder;
            - a subfolder for each split, which contains either of these;
            - Parquet files, or what `save_to_disk` writes.
        data_dir: Folder of a benchmark.
        classes_file: Class names of a folder or Hub data set, see [`read_class_names`]; `None`: its `classes.txt` or
            `id2label.json`, which may also be in the splits' folders.
        seen: Names of the seen classes, see [`split_classes`].
        unseen: Names of the unseen classes. If neither is given, a benchmark has the papers' split.
        ignored: Names to remove from the list.
        image_column: Column of the pictures in Parquet files, saved and Hub data sets; `None`: the one named as in
            `IMAGE_COLUMNS`.
        mask_column: Column of the masks; `None`: the one named as in `MASK_COLUMNS`. Of two columns with pictures, it
            is enough that one is known.
        splits: Which splits of a benchmark are needed, see [`find_benchmark_files`].

    Returns:
        The splits and the classes. Rows have the columns `image` and `mask`, as files that [`read_sample`] reads, in
        the order of lists and tables, or by name. Files without splits are `train`; a split `val` is renamed to
        `validation`, as Datasets does.

    Raises:
        InputError: If something is missing, ambiguous or unknown, or arguments contradict each other.
    """
    if dataset in BENCHMARKS:
        given = {"classes_file": classes_file, "image_column": image_column, "mask_column": mask_column}
        if wrong := [name for name, value in given.items() if value is not None]:
            raise InputError(f"{wrong[0]} is not an argument of {dataset}, only of folders and Hub data sets.")
        if data_dir is None:
            raise InputError(f"data_dir is required: the folder of {dataset}.")
        pairs = find_benchmark_files(dataset, os.path.expanduser(data_dir), splits)
        _check_files(pairs, f". The layout must be that of {BENCHMARKS[dataset].origin}")
        masks = (mask for of_split in pairs.values() for _, mask in of_split)
        return to_dataset(pairs), benchmark_split(dataset, seen, unseen, ignored, masks)
    if data_dir is not None:
        raise InputError(f"data_dir is only an argument of {', '.join(BENCHMARKS)}, not of {dataset!r}.")
    place = os.path.expanduser(dataset)
    if not os.path.isdir(place) and not re.fullmatch(r"\w[\w.-]*/[\w.-]+", dataset):
        raise InputError(
            f"{dataset!r} is neither an existing folder, nor one of {', '.join(BENCHMARKS)}, nor a Hub id such as "
            "owner/name."
        )
    data = load_folder(place, image_column, mask_column)
    source = _find_names_file(place) if classes_file is None else os.path.expanduser(classes_file)
    if source is None:
        raise InputError(
            f"There are no class names for {dataset}: add {' or '.join(NAMES_FILES)}, or give the path of such a file "
            "as classes_file."
        )
    names, values = read_class_names(source)
    return data, split_classes(names, seen=seen, unseen=unseen, ignored=ignored, mask_values=values)


def load_folder(
    folder: str | os.PathLike, image_column: str | None = None, mask_column: str | None = None
) -> DatasetDict:
    """Load the splits of a folder or Hub data set without its classes; see [`load_pictures`]."""
    folder = os.fspath(folder)
    pairs = _find_pairs(folder) if os.path.isdir(folder) else {}
    if pairs and not (image_column is None and mask_column is None):
        raise _input_error(f"{folder} contains files, which have no columns: omit image_column and mask_column.")
    data = to_dataset(pairs) if pairs else _load_tables(folder, image_column, mask_column)
    if "val" in data and "validation" not in data:
        data["validation"] = data.pop("val")
    return data


def read_sample(row: Mapping[str, Any], split: ClassSplit, index: int | None = None) -> tuple[PILImage, np.ndarray]:
    """
    Read a picture and its labels.

    Args:
        row: `image` and `mask` as files, that is, cast to `Image(decode=False)`: `path` and `bytes`, one of which may
            be `None`.
        split: The classes.
        index: Number of the row, which errors name for a picture without a path.

    Returns:
        The picture, RGB and upright, and `(height, width)` int64 ids or the split's ignore index.

    Raises:
        InputError: If a file cannot be read, the sizes differ, or a mask value neither belongs to a class nor is
            ignored; the message names the file.
    """
    (picture, picture_name), (mask, mask_name) = find_files(row, index)
    image = load_rgb(picture, name=picture_name)
    values = load_class_ids(mask, name=mask_name)
    check_sizes(picture_name, image.size, mask_name, (values.shape[1], values.shape[0]))
    try:
        return image, split.labels_of(values)
    except InputError as error:
        raise InputError(f"{mask_name}: {error}") from error


def name_pictures(data: Dataset) -> list[str]:
    """
    Name each picture of a split: its path without suffix, relative to the folder that all of them are in.

    So a folder of such names looks like that of the masks. A name that is taken already, ignoring case, gets a
    number: `a_2`. A picture without a path is called by its row: `000006`.

    Args:
        data: Rows with `image`, not decoded.
    """
    paths: list[str | None] = []
    for batch in data.select_columns("image").with_format("arrow").iter(100):
        paths += [path for chunk in batch["image"].chunks for path in chunk.field("path").to_pylist()]
    # Of a file in an archive (`zip://a/b.jpg::archive.zip`), the path in it.
    places = [path and os.path.abspath(path.split("::")[0].split("://")[-1]) for path in paths]
    folders = {os.path.dirname(place) for place in places if place}
    root = os.path.commonpath(folders) if folders else ""
    names: list[str] = []
    taken: set[str] = set()
    for row, place in enumerate(places):
        stem = os.path.splitext(os.path.relpath(place, root))[0] if place else f"{row:06d}"
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.lower())
        names.append(Path(name).as_posix())
    return names


def find_files(
    row: Mapping[str, Any], index: int | None = None
) -> tuple[tuple[bytes | Path, str], tuple[bytes | Path, str]]:
    """
    Find the picture and the mask of a row.

    Args:
        row: As for [`read_sample`], as is `index`.

    Returns:
        For each of both, the path or the bytes, and what errors call it.

    Raises:
        InputError: If one of them is missing.
    """
    names = ("picture", "mask") if index is None else (f"picture {index}", f"mask of picture {index}")
    return _find_file(row["image"], names[0]), _find_file(row["mask"], names[1])


def _find_file(file: Mapping[str, Any] | None, name: str) -> tuple[bytes | Path, str]:
    path, content = (None, None) if file is None else (file.get("path"), file.get("bytes"))
    if content is not None:
        return content, name if path is None else f"{name} ({path})"
    if path is None:
        raise InputError(f"{name} is missing: the data set has neither its path nor its bytes.")
    return Path(path), path


def check_sizes(picture_name: str, size: tuple[int, int], mask_name: str, mask_size: tuple[int, int]) -> None:
    """Raise `InputError` if the upright width and height of a picture and its mask differ."""
    if size == mask_size:
        return
    turned = "; a picture with an EXIF orientation is turned upright, but its mask only if it has one as well"
    raise InputError(
        f"{mask_name} has {mask_size[0]}x{mask_size[1]} pixels, but its picture {picture_name} has "
        f"{size[0]}x{size[1]}{turned if mask_size[::-1] == size else ''}."
    )


def _find_pairs(root: str) -> dict[str, list[Pair]]:
    """Return the pictures and masks of each split of a folder of files; empty if it is not one."""
    images, masks = os.path.join(root, "images"), os.path.join(root, "masks")
    folders, files = _list(images)
    splits = [name for name in folders if os.path.isdir(os.path.join(masks, name))]
    if splits and not os.path.isfile(os.path.join(root, "metadata.jsonl")):
        if beside := sorted(filter(is_picture, files)):
            raise _input_error(
                f"{os.path.join(images, beside[0])} is beside the folders {', '.join(splits)}, which are splits: move "
                "it into one of them."
            )
        if alone := [name for name in _list(masks)[0] if name not in folders and _has_pictures(masks, name)]:
            raise _input_error(
                f"{os.path.join(masks, alone[0])} has masks, but there is no folder {os.path.join(images, alone[0])}: "
                "give both the same name, or move it out of the folder."
            )
        _refuse_splits_beside(root, [images, masks])
        return {name: _match_files(os.path.join(images, name), os.path.join(masks, name)) for name in splits}
    if pairs := _find_pairs_of_split(root):
        _refuse_splits_beside(root, [path for pair in pairs for path in pair])
        return {"train": pairs}
    found = {name: _find_pairs_of_split(os.path.join(root, name)) for name in _list(root)[0]}
    found, others = {name: pairs for name, pairs in found.items() if pairs}, found.keys()
    if found and (alone := [name for name in others if name not in found and _has_pictures(root, name, "masks")]):
        raise _input_error(f"{os.path.join(root, alone[0])} contains masks, but no folder called images.")
    return found


def _refuse_splits_beside(root: str, used: Sequence[str]) -> None:
    """Raise `InputError` if a subfolder is a split of its own beside files of the folder itself, `used`."""
    for name in _list(root)[0]:
        place = os.path.join(root, name)
        is_split = all(_has_pictures(place, kind) for kind in ("images", "masks"))
        is_split = is_split or os.path.isfile(os.path.join(place, "metadata.jsonl"))
        if is_split and all(os.path.relpath(path, root).split(os.sep)[0] != name for path in used):
            raise _input_error(
                f"{place} is a split, but {root} has pictures of its own: move these into a subfolder as well, such "
                "as train."
            )


def _find_pairs_of_split(folder: str) -> list[Pair]:
    metadata, images, masks = (os.path.join(folder, name) for name in ("metadata.jsonl", "images", "masks"))
    if os.path.isfile(metadata):
        return _read_metadata(metadata)
    if not os.path.isdir(images):
        return []
    if os.path.isdir(masks):
        return _match_files(images, masks)
    if _is_saved(folder) or _has_tables(folder):  # These pictures are for its documentation.
        return []
    raise _input_error(f"{folder} contains images, but neither masks nor metadata.jsonl.")


def _match_files(images: str, masks: str) -> list[Pair]:
    """Match pictures and masks by their paths without suffix. Masks without a picture are left out."""
    pictures, maps = _list_by_stem(images), _list_by_stem(masks)
    if not pictures:
        raise _input_error(f"There is no picture in {images}.")
    if without := sorted(pictures.keys() - maps.keys()):
        more = f" ({len(without)} pictures have none)" if len(without) > 1 else ""
        raise _input_error(f"{pictures[without[0]]} has no mask of the same name in {masks}{more}.")
    return [(pictures[stem], maps[stem]) for stem in sorted(pictures)]


def _list_by_stem(folder: str) -> dict[str, str]:
    found: dict[str, str] = {}
    folders = list(_walk(folder))
    for name in find_unread(name for _, names in folders for name in names):
        path = next(os.path.join(place, name) for place, names in folders if name in names)
        raise _input_error(f"{path}: pictures of this format are not read. Convert it, for example to JPEG.")
    for path in (os.path.join(place, name) for place, names in folders for name in names if is_picture(name)):
        stem = os.path.splitext(os.path.relpath(path, folder))[0]
        if stem in found:
            first, second = sorted((found[stem], path))
            raise _input_error(f"{first} and {second} differ only in their suffix: masks would be ambiguous.")
        found[stem] = path
    return found


def _read_metadata(path: str) -> list[Pair]:
    folder = os.path.dirname(path)
    pairs = []
    # Not splitlines(), which would also split at characters such as U+2028 within strings.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            names = [os.path.normpath(entry[key]) for key in ("file_name", "mask_file_name")]
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}: line {number} is not a JSON object with the paths file_name and mask_file_name."
            ) from error
        for name in names:
            if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir:
                raise InputError(f"{path}: line {number} names {name!r}, which is outside of the folder.")
        pairs.append((os.path.join(folder, names[0]), os.path.join(folder, names[1])))
    if not pairs:
        raise InputError(f"{path}: this file is empty.")
    _check_files({"": pairs}, f", which {path} names")
    return pairs


def _check_files(splits: Mapping[str, Sequence[Pair]], reason: str) -> None:
    """Raise `InputError` if files do not exist. Each folder is listed once, which is faster than a stat per file."""

    @cache
    def names_in(folder: str) -> set[str]:
        try:
            return set(os.listdir(folder))
        except (OSError, ValueError):  # ValueError: for paths that no file system has.
            return set()

    paths = [path for pairs in splits.values() for pair in pairs for path in pair]
    absent = [path for path in paths if os.path.basename(path) not in names_in(os.path.dirname(path))]
    if absent:
        more = f" ({len(absent)} files are missing)" if len(absent) > 1 else ""
        raise _input_error(f"There is no file {absent[0]}{more}{reason}.")


def to_dataset(splits: Mapping[str, Sequence[Pair]]) -> DatasetDict:
    """Return pairs of a picture's and its mask's path as a data set; `InputError` for one that is not UTF-8."""
    data = {}
    for name, pairs in splits.items():
        columns = {"image": [image for image, _ in pairs], "mask": [mask for _, mask in pairs]}
        try:
            data[name] = Dataset.from_dict(columns, features=FEATURES)
        except UnicodeEncodeError as error:  # A path that is not UTF-8, as Arrow's strings are.
            raise _input_error(f"{error.object} has a name that is not UTF-8 text: rename it.") from error
    return DatasetDict(data)


def _load_tables(place: str, image_column: str | None, mask_column: str | None) -> DatasetDict:
    """Load a Hub id or a folder of tables through Datasets."""
    if os.path.isdir(place) and not _is_saved(place) and not _has_tables(place):
        raise _input_error(
            f"{place} is not a data set: it has neither images and masks, nor metadata.jsonl, nor subfolders that do, "
            "nor Parquet files. zegclip import turns other layouts into one of these."
        )
    try:
        tables = load_from_disk(place) if _is_saved(place) else load_dataset(place)
    except Exception as error:  # Of any kind: from the network, the cache, the builder or damaged files.
        kind = "folder" if os.path.isdir(place) else "Hub data set (there is no such folder)"
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise _input_error(f"The {kind} {place} cannot be loaded: {reason}") from error
    data = {}
    for name, table in ({"train": tables} if isinstance(tables, Dataset) else tables).items():
        image, mask = _choose_columns(table.features, place, image_column, mask_column)
        table = table.with_format(None).select_columns([image, mask]).rename_columns({image: "image", mask: "mask"})
        for column, feature in FEATURES.items():
            table = table.cast_column(column, feature)
        data[name] = table
    return DatasetDict(data)


def _choose_columns(
    features: Features, source: str, image_column: str | None, mask_column: str | None
) -> tuple[str, str]:
    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    found = f"its columns with pictures are {columns}, the others {[name for name in features if name not in columns]}"
    for name in (image_column, mask_column):
        if name is not None and name not in columns:
            raise InputError(f"{source} has no column {name!r} with pictures; {found}.")
    images = [name for name in columns if name != mask_column and name.lower() in IMAGE_COLUMNS]
    masks = [name for name in columns if name != image_column and name.lower() in MASK_COLUMNS]
    images, masks = [image_column] if image_column else images, [mask_column] if mask_column else masks
    # If one of the two is known, the other may have any name, as long as only one column is left.
    if len(images) != 1 and len(masks) == 1:
        images = [name for name in columns if name not in masks]
    elif len(masks) != 1 and len(images) == 1:
        masks = [name for name in columns if name not in images]
    if len(images) != 1 or len(masks) != 1 or images == masks:
        raise InputError(f"Set image_column and mask_column for {source}; {found}.")
    return images[0], masks[0]


def _find_names_file(place: str) -> str | None:
    """Find the file with the class names of a folder or of a data set on the Hub."""
    if not os.path.isdir(place):
        for name in NAMES_FILES:
            try:
                return hf_hub_download(place, name, repo_type="dataset")
            except (HfHubHTTPError, OSError):  # It does not exist, or the Hub cannot be reached.
                continue
        return None
    for folders in ([place], [os.path.join(place, name) for name in _list(place)[0]]):
        paths = [os.path.join(folder, name) for folder in folders for name in NAMES_FILES]
        paths = [path for path in paths if os.path.isfile(path)]
        for path in paths[1:]:
            if read_class_names(path) != read_class_names(paths[0]):
                raise _input_error(f"{paths[0]} and {path} differ: choose one with classes_file.")
        if paths:
            return paths[0]
    return None


def _is_saved(folder: str) -> bool:
    """Return whether `save_to_disk` wrote a folder."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_dict.json"))


def _has_tables(root: str) -> bool:
    """Return whether there are Parquet files; raise `InputError` for those that Datasets would silently leave out."""
    places = [place for place, names in _walk(root) if any(name.endswith(".parquet") for name in names)]
    for place in places:
        if Path(place).resolve() != Path(root).resolve() / Path(place).relative_to(root):
            raise _input_error(f"{place} contains Parquet files behind a link, which Datasets ignores: move them.")
    return bool(places)


def _has_pictures(*folder: str) -> bool:
    """Return whether there are pictures in a folder, which need not exist, or below."""
    place = os.path.join(*folder)
    return os.path.isdir(place) and any(is_picture(name) for _, names in _walk(place) for name in names)


def _list(folder: str) -> tuple[list[str], list[str]]:
    """Return the sorted names of the visible folders and of the files in a folder; none if it does not exist."""
    _, folders, files = next(os.walk(folder), ("", [], []))
    return sorted(name for name in folders if not name.startswith(".")), files


def _walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder with the names of its files. Links to folders are followed, except those that lead back."""

    def fail(error: OSError) -> NoReturn:  # os.walk would leave out what it cannot read.
        raise error

    for place, folders, names in os.walk(root, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if not _leads_back(os.path.join(place, name))]
        yield place, names


def _leads_back(path: str) -> bool:
    """Return whether a path is a link to one of the folders that lead to it, or to one above these."""
    link = Path(path)
    return link.is_symlink() and any(parent.resolve().is_relative_to(link.resolve()) for parent in link.parents)


def _input_error(text: str) -> InputError:
    """Return an error of one line: file names may contain anything."""
    return InputError(on_one_line(text))


__all__ = [
    "FEATURES",
    "check_sizes",
    "find_files",
    "load_folder",
    "load_pictures",
    "name_pictures",
    "read_sample",
    "to_dataset",
]
