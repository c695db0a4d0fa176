"""Own data sets: folders of pictures and masks, tables, the Hub, and the class names that come with them."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset, load_from_disk
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from .image_reading import on_one_line
from .picture_files import (
    FEATURES,
    Pair,
    check_files,
    is_picture,
    list_names,
    make_data_set,
    name_splits,
    read_text,
)

IMAGE_COLUMNS = ("image", "img", "pixel_values", "picture")
MASK_COLUMNS = (
    "mask", "label", "labels", "annotation", "annotations", "label_map", "seg_map", "segmentation",
    "segmentation_map", "segmentation_mask", "semantic_mask", "semantic_segmentation",
)  # fmt: skip
NAMES_FILES = ("classes.txt", "id2label.json")


def load_folder(
    root: str | os.PathLike, image_column: str | None = None, mask_column: str | None = None
) -> DatasetDict:
    """
    Load a folder of pictures and masks.

    Args:
        root: One of
            - a folder with `metadata.jsonl`: an object a line with `file_name` or `image_file_name`, and
              `mask_file_name`, relative to the folder;
            - a folder with `images/` and `masks/`, whose files match in name but for the suffix, subfolders included;
              where first-level subfolders of `images/` are also in `masks/`, these are the splits;
            - a folder with such folders, which are the splits;
            - a folder with Parquet or Arrow files, or one that `save_to_disk` has written: see [`load_hub`].
        image_column: As in [`load_hub`], for the last kind alone.
        mask_column: As in [`load_hub`], for the last kind alone.

    Returns:
        The splits, by their folders' names (`val` becomes `validation`; without splits all is `train`), with the
        columns `image` and `mask`, in the order of `metadata.jsonl` or by name. Masks without a picture don't count.

    Raises:
        ValueError: If something is missing, a path leaves the folder, or the folder is none of these.
    """
    root = os.fspath(root)
    if not os.path.isdir(root):
        raise ValueError(f"There is no folder {root}.")
    return load_with_features(root, image_column, mask_column)[0]


def load_hub(name: str, image_column: str | None = None, mask_column: str | None = None) -> DatasetDict:
    """
    Load a data set of the Hub through Hugging Face Datasets.

    Args:
        name: Hub id.
        image_column: Column of the pictures; `None`: the one called `image`, `img`, `pixel_values` or `picture`.
        mask_column: Column of the masks; `None`: the one called `mask`, `label`, `annotation`, `segmentation_map` or
            the like. Where there are two columns with pictures, knowing one is enough.

    Returns:
        Its splits (`val` becomes `validation`) with the columns `image` and `mask`.

    Raises:
        ValueError: If it cannot be loaded, or it is not clear which columns are meant.
    """
    return load_with_features(name, image_column, mask_column)[0]


def read_class_names(source: str | os.PathLike | Features) -> tuple[list[str], list[int]]:
    """
    Read the class names of a data set.

    Args:
        source: A text file with a name a line, the first one for mask value 0; a JSON file such as
            `{"0": "wall", "1": "floor"}`, from mask values to names; a folder with `classes.txt` or `id2label.json`,
            which may also lie in each split's folder if they are the same; or the features of a data set, with the
            names of one `ClassLabel`.

    Returns:
        Names, and the mask value of each.

    Raises:
        ValueError: If there are none, the file cannot be read, or a name is blank or comes twice.
    """
    if isinstance(source, Features):
        labels = find_class_labels(source)
        if len(labels) != 1:
            raise ValueError(
                f"The data set describes {len(labels)} lists of class names; give the one of its masks with "
                "classes_file."
            )
        return list(labels[0]), list(range(len(labels[0])))
    found = find_names_file(os.fspath(source)) if os.path.isdir(source) else os.fspath(source)
    if found is None:
        raise ValueError(f"There are no class names in {os.fspath(source)}: neither {' nor '.join(NAMES_FILES)}.")
    path, text = found, read_text(found)
    lines = text.rstrip().split("\n") if text.strip() else []
    is_json = path.endswith(".json") or (text.lstrip().startswith("{") and text.rstrip().endswith("}"))
    if (
        not is_json
        and lines
        and (lines[0].startswith("#") or all(re.match(r"\s*\d+\s*[:;,\t]", line) for line in lines))
    ):
        raise ValueError(
            f"{path}: expected a name a line, the first one for mask value 0, but it begins with {lines[0]!r}: write "
            'mask values and names as JSON, such as {"0": "wall", "1": "floor"}.'
        )
    names = _parse_id2label(path, text) if is_json else dict(enumerate(lines))
    if not names:
        raise ValueError(f"{path}: there is no class name in it.")
    places: dict[str, int] = {}
    for value, name in names.items():
        name = name.strip()
        if not name:
            raise ValueError(f"{path}: the name of mask value {value} is blank.")
        if name in places:
            raise ValueError(f"{path}: the name {name!r} is there twice, for mask values {places[name]} and {value}.")
        places[name] = value
    return list(places), list(places.values())


def load_with_features(place: str, image_column: str | None, mask_column: str | None) -> tuple[DatasetDict, Features]:
    """Load a folder or Hub id; also return the features that its tables have, none where it consists of files."""
    pairs = _find_pairs(place) if os.path.isdir(place) else {}
    if not pairs:
        tables = _load_tables(place)
        return _select_columns(tables, place, image_column, mask_column), next(iter(tables.values())).features
    if image_column is not None or mask_column is not None:
        raise ValueError(f"{place} holds files, which have no columns: leave out image_column and mask_column.")
    return make_data_set(pairs), Features()


def _find_pairs(root: str) -> dict[str, list[Pair]]:
    """Return the pictures and masks of each split of a folder of files; nothing if it is none."""
    images, masks = os.path.join(root, "images"), os.path.join(root, "masks")
    if not os.path.isfile(os.path.join(root, "metadata.jsonl")) and os.path.isdir(images):
        parts = sorted(name for name in _list_folders(images) if os.path.isdir(os.path.join(masks, name)))
        if parts:
            beside = sorted(name for name in list_names(images) if is_picture(name))
            if beside:
                raise ValueError(
                    on_one_line(
                        f"{os.path.join(images, beside[0])} lies beside the folders {', '.join(parts)}, which are "
                        "splits: move it into one of them."
                    )
                )
            return {name: _match_files(os.path.join(images, name), os.path.join(masks, name)) for name in parts}
    if pairs := _find_pairs_of_one(root):
        return {"train": pairs}
    found = {name: _find_pairs_of_one(os.path.join(root, name)) for name in sorted(_list_folders(root))}
    return {name: pairs for name, pairs in found.items() if pairs}


def _find_pairs_of_one(folder: str) -> list[Pair]:
    """Return the pictures and masks of a folder without splits; nothing if it is none."""
    metadata, images, masks = (os.path.join(folder, name) for name in ("metadata.jsonl", "images", "masks"))
    if os.path.isfile(metadata):
        return _read_metadata(metadata)
    if not os.path.isdir(images):
        return []
    if not os.path.isdir(masks):
        if _has_tables(folder):  # The pictures are for its documents.
            return []
        raise ValueError(f"{folder} has a folder images, but neither a folder masks nor metadata.jsonl.")
    return _match_files(images, masks)


def _list_folders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith(".")]


def _is_folder(entry: os.DirEntry) -> bool:
    """Tell a folder, or a link to one, without a question about each file."""
    # A link to itself would end `is_dir` with an error.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry))


def _match_files(images: str, masks: str) -> list[Pair]:
    """Match pictures and masks by their path without suffix."""
    pictures, maps = _list_by_stem(images), _list_by_stem(masks)
    if not pictures:
        raise ValueError(f"There is no picture in {images}.")
    without = sorted(pictures.keys() - maps.keys())
    if without:
        more = f", nor do {len(without) - 1} more" if len(without) > 1 else ""
        raise ValueError(on_one_line(f"{pictures[without[0]]} has no mask of the same name in {masks}{more}."))
    return [(pictures[stem], maps[stem]) for stem in sorted(pictures)]


def _list_by_stem(folder: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for place, names in _walk(folder, []):
        for name in names:
            if not is_picture(name):
                continue
            path = os.path.join(place, name)
            stem = os.path.splitext(os.path.relpath(path, folder))[0]
            if stem in found:
                first, second = sorted((found[stem], path))
                raise ValueError(
                    on_one_line(f"{first} and {second} differ in their suffix only, so masks would not be clear.")
                )
            found[stem] = path
    return found


def _walk(folder: str, parents: list[str]) -> Iterator[tuple[str, list[str]]]:
    """
    Yield a folder with the names of its files, then those in it. Links to folders are followed, but not back to a
    folder that leads here (`parents`, as real paths) or lies above.
    """
    place = os.path.realpath(folder)
    if any(os.path.join(parent, "").startswith(os.path.join(place, "")) for parent in parents):
        return
    with os.scandir(folder) as entries:
        listed = {entry.name: _is_folder(entry) for entry in entries}
    yield folder, [name for name in listed if not listed[name]]
    for name in listed:
        if listed[name]:
            yield from _walk(os.path.join(folder, name), [*parents, place])


def _read_metadata(path: str) -> list[Pair]:
    folder = os.path.dirname(path)
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is not JSON.") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: line {number} is not a JSON object.")
        image = entry.get("file_name", entry.get("image_file_name"))
        mask = entry.get("mask_file_name")
        if not isinstance(image, str) or not isinstance(mask, str):
            raise ValueError(f"{path}: line {number} needs file_name (or image_file_name) and mask_file_name.")
        for name in (image, mask):
            if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
                raise ValueError(f"{path}: line {number} names {name!r}, which lies outside of the folder.")
        pairs.append((os.path.join(folder, os.path.normpath(image)), os.path.join(folder, os.path.normpath(mask))))
    if not pairs:
        raise ValueError(f"{path}: this file is empty.")
    check_files({"": pairs}, f"{path} names")
    return pairs


def _is_saved(folder: str) -> bool:
    """Tell whether `save_to_disk` has written a folder."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_dict.json"))


def _has_tables(folder: str) -> bool:
    patterns = ("*.parquet", "*.arrow", "*/*.parquet", "*/*.arrow")
    return _is_saved(folder) or any(next(Path(folder).glob(pattern), None) for pattern in patterns)


def _check_table_links(root: str) -> None:
    """Complain of tables behind a link to a folder, which Datasets would leave out in silence."""
    for folder, names in _walk(root, []):
        behind_link = os.path.realpath(folder) != os.path.normpath(
            os.path.join(os.path.realpath(root), os.path.relpath(folder, root))
        )
        if behind_link and any(name.endswith((".parquet", ".arrow")) for name in names):
            raise ValueError(
                on_one_line(
                    f"{folder} holds tables behind a link to a folder, which Datasets does not follow: move it."
                )
            )


def _load_tables(place: str) -> DatasetDict:
    """Load a Hub id or folder through Datasets, with all of its columns."""
    is_folder = os.path.isdir(place)
    if is_folder and not _has_tables(place):
        raise ValueError(
            f"{place} is no data set: it has neither metadata.jsonl, nor images and masks, nor subfolders that do, "
            "nor Parquet or Arrow files."
        )
    if is_folder and not _is_saved(place):
        _check_table_links(place)
    try:
        data = load_from_disk(place) if _is_saved(place) else load_dataset(place)
    except Exception as error:  # Of any kind: from the network, the cache, the builder or the files.
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        what = "this data set" if is_folder else "there is no such folder, and as a Hub id it"
        raise ValueError(f"{place}: {what} cannot be loaded: {reason}") from error
    return DatasetDict({"train": data} if isinstance(data, Dataset) else name_splits(data))


def _select_columns(
    tables: DatasetDict, source: str, image_column: str | None, mask_column: str | None
) -> DatasetDict:
    """Keep pictures and masks, as columns `image` and `mask`."""
    data = {}
    for name, table in tables.items():
        image, mask = _choose_columns(table.features, source, image_column, mask_column)
        table = table.with_format(None).select_columns([image, mask]).rename_columns({image: "image", mask: "mask"})
        for column, feature in FEATURES.items():
            table = table.cast_column(column, feature)
        data[name] = table
    return DatasetDict(data)


def _choose_columns(
    features: Features, source: str, image_column: str | None, mask_column: str | None
) -> tuple[str, str]:
    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    for name in (image_column, mask_column):
        if name is not None and name not in columns:
            raise ValueError(f"{source} has no column {name!r} of pictures; it has {_describe(features)}.")
    image = image_column or _only(name for name in columns if name != mask_column and name.lower() in IMAGE_COLUMNS)
    mask = mask_column or _only(name for name in columns if name != image_column and name.lower() in MASK_COLUMNS)
    # Of two, the one that is left.
    image = image or (_only(name for name in columns if name != mask) if mask else None)
    mask = mask or (_only(name for name in columns if name != image) if image else None)
    if image is None or mask is None or image == mask:
        raise ValueError(
            f"It is not clear which columns of {source} are picture and mask: name them with image_column and "
            f"mask_column; it has {_describe(features)}."
        )
    return image, mask


def _only(items: Iterable[str]) -> str | None:
    """Return the only item; `None` if there is none or more than one."""
    found = list(items)
    return found[0] if len(found) == 1 else None


def _describe(features: Features) -> str:
    """List columns, those of pictures marked."""
    texts = [f"{name} (pictures)" if isinstance(feature, Image) else name for name, feature in features.items()]
    return f"the columns {', '.join(texts)}"


def find_class_labels(feature: Any) -> list[tuple[str, ...]]:
    """Return the different lists of class names in a feature, however deep."""
    if isinstance(feature, ClassLabel):
        return [tuple(feature.names)]
    if isinstance(feature, dict):
        children = list(feature.values())
    elif isinstance(feature, (list, tuple)):
        children = list(feature)
    else:
        children = [feature.feature] if hasattr(feature, "feature") else []
    return list(dict.fromkeys(names for child in children for names in find_class_labels(child)))


def find_names_file(place: str) -> str | None:
    """Find the file of class names of a folder, or of a data set on the Hub."""
    if os.path.isdir(place):
        for folders in ([place], [os.path.join(place, name) for name in sorted(_list_folders(place))]):
            for name in NAMES_FILES:
                paths = [path for folder in folders if os.path.isfile(path := os.path.join(folder, name))]
                for path in paths[1:]:
                    if read_text(path) != read_text(paths[0]):
                        raise ValueError(f"{paths[0]} and {path} differ: say which with classes_file.")
                if paths:
                    return paths[0]
        return None
    for name in NAMES_FILES:
        try:
            return hf_hub_download(place, name, repo_type="dataset")
        except (EntryNotFoundError, HfHubHTTPError, OSError):  # It has none, or cannot be asked.
            continue
    return None


def _parse_id2label(path: str, text: str) -> dict[int, str]:
    try:
        # Objects as pairs: of two equal keys, a dictionary would keep the second.
        content = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: this file is not JSON.") from error
    if not isinstance(content, tuple):
        raise ValueError(f'{path}: expected an object such as {{"0": "wall", "1": "floor"}}.')
    names: dict[int, str] = {}
    for key, name in content:
        if not re.fullmatch("[0-9]{1,9}", key) or not isinstance(name, str):
            raise ValueError(f"{path}: {key!r}: {name!r} is not a mask value with a class name.")
        if int(key) in names:
            raise ValueError(f"{path}: the mask value {int(key)} has two names, {names[int(key)]!r} and {name!r}.")
        names[int(key)] = name
    return dict(sorted(names.items()))


__all__ = ["find_class_labels", "find_names_file", "load_folder", "load_hub", "load_with_features", "read_class_names"]
