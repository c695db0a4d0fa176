"""Data sets of pictures and masks: the papers' benchmarks in their standard layouts, folders, and the Hub."""

import difflib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset, load_from_disk
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from PIL.Image import Image as PILImage

from .class_split_zegclip import ClassSplit, split_classes
from .image_reading import load_class_ids, load_rgb

# Without a mode, so that masks keep their ids: a palette picture would become grey or coloured.
FEATURES = Features({"image": Image(), "mask": Image()})

_IMAGE_COLUMNS = ("image", "img", "pixel_values", "picture")
_MASK_COLUMNS = (
    "mask", "label", "labels", "annotation", "annotations", "label_map", "seg_map", "segmentation",
    "segmentation_map", "segmentation_mask", "semantic_mask", "semantic_segmentation",
)  # fmt: skip
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_NAMES_FILES = ("classes.txt", "id2label.json")

Pair = tuple[str, str]
"""Paths of a picture and its mask."""


@cache
def read_class_lists() -> dict[str, dict[str, Any]]:
    """
    Read `class_lists.json`.

    Returns:
        For each benchmark its `names`, `unseen_names`, `first_mask_value`, `ignored_values`, `num_pictures` of each
        split and `source`; and under `templates` the papers' prompt templates, `single` and `multi`.
    """
    return json.loads(Path(__file__).with_name("class_lists.json").read_text(encoding="utf-8"))


def benchmark_split(name: str) -> ClassSplit:
    """
    Return the classes of a benchmark and the papers' split of them.

    Args:
        name: `voc`, `coco_stuff`, `pascal_context_59` or `pascal_context_60`.

    Raises:
        ValueError: If there is no such benchmark.
    """
    if name not in _LOADERS:
        raise ValueError(f"There is no benchmark {name!r}; there are {', '.join(_LOADERS)}.")
    return _split_benchmark(name, seen=None, unseen=read_class_lists()[name]["unseen_names"])


def load_pictures(
    dataset: str,
    data_dir: str | os.PathLike | None = None,
    classes_file: str | os.PathLike | None = None,
    seen: Collection[str] | None = None,
    unseen: Collection[str] | None = None,
    ignored: Collection[str] = (),
    image_column: str | None = None,
    mask_column: str | None = None,
) -> tuple[DatasetDict, ClassSplit]:
    """
    Load a data set and its classes.

    Args:
        dataset: `voc`, `coco_stuff`, `pascal_context_59`, `pascal_context_60`, a folder or a Hub id (`owner/name`).
        data_dir: Where a benchmark lies.
        classes_file: Class names of a folder or Hub data set, see [`read_class_names`]; `None`: its own.
        seen: Names of seen classes, see [`split_classes`].
        unseen: Names of unseen classes. If neither is given, a benchmark has the papers' split.
        ignored: Names that are taken out of the list.
        image_column: As in [`load_hub`].
        mask_column: As in [`load_hub`].

    Returns:
        The splits with the columns `image` and `mask`, and the classes.

    Raises:
        ValueError: One sentence, where something is missing, broken, unknown or contradictory.
    """
    if dataset in _LOADERS:
        given = {"classes_file": classes_file, "image_column": image_column, "mask_column": mask_column}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name} is for folders and Hub data sets; {dataset} has its own.")
        if data_dir is None:
            raise ValueError(f"data_dir is missing: say which folder {dataset} lies in.")
        if seen is None and unseen is None:
            unseen = [name for name in read_class_lists()[dataset]["unseen_names"] if name not in ignored]
        split = _split_benchmark(dataset, seen=seen, unseen=unseen, ignored=ignored)
        return _LOADERS[dataset](os.path.expanduser(data_dir)), split
    if data_dir is not None:
        raise ValueError(f"data_dir is for the benchmarks {', '.join(_LOADERS)}, of which {dataset!r} is none.")

    place = os.path.expanduser(dataset)
    if not os.path.isdir(place):
        _check_hub_id(dataset)
    data, features = _load(place, image_column, mask_column)
    source = _find_names_file(place) if classes_file is None else os.path.expanduser(classes_file)
    if source is None and not _class_labels(features):
        raise ValueError(
            f"There are no class names for {dataset}: give a file with a name a line, by mask value, as classes_file "
            f"(or put it into the folder as {' or '.join(_NAMES_FILES)})."
        )
    names, values = read_class_names(features if source is None else source)
    return data, split_classes(names, seen=seen, unseen=unseen, ignored=ignored, mask_values=values)


def load_voc(root: str | os.PathLike) -> DatasetDict:
    """
    Load PASCAL VOC 2012 with the additional masks of SBD, as mmsegmentation lays them out.

    Args:
        root: `VOC2012`, or `VOCdevkit` or its parent. Holds `JPEGImages/`, `SegmentationClass/`,
            `SegmentationClassAug/`, and in `ImageSets/Segmentation/` the lists `val.txt` and either `trainaug.txt`
            (or `train_aug.txt`) or both `train.txt` and `aug.txt`. A picture has VOC's own mask where there is one,
            else SBD's.

    Returns:
        `train` and `validation` with the columns `image` and `mask`, in the lists' order.

    Raises:
        ValueError: If a folder, list or file is missing, or a picture is in both lists.
    """
    folder = _find_folder(root, "VOC2012", "JPEGImages")
    lists = os.path.join(folder, "ImageSets", "Segmentation")
    both = [os.path.join(lists, name) for name in ("train.txt", "aug.txt")]
    trainaug = [os.path.join(lists, name) for name in ("trainaug.txt", "train_aug.txt")]
    train_lists = next(([path] for path in trainaug if os.path.isfile(path)), both)
    if train_lists == both and not os.path.isfile(both[1]):
        raise ValueError(
            f"The list of the pictures that SBD adds to the training set is missing: put it at {both[1]} (or "
            f"{trainaug[0]}), and their masks into {os.path.join(folder, 'SegmentationClassAug')}; mmsegmentation's "
            "converter voc_aug.py makes both."
        )
    stems = {
        "train": [stem for path in train_lists for stem in _read_list(path)],
        "validation": _read_list(os.path.join(lists, "val.txt")),
    }
    shared = sorted(set(stems["train"]) & set(stems["validation"]))
    if shared:
        raise ValueError(
            f"{os.path.join(lists, 'val.txt')} shares {len(shared)} pictures with the training lists beside it, "
            f"such as {shared[0]}: take them out there, or validation would measure what was trained on."
        )
    own = _list_names(os.path.join(folder, "SegmentationClass"))

    def pair(stem: str) -> Pair:
        mask_folder = "SegmentationClass" if f"{stem}.png" in own else "SegmentationClassAug"
        return os.path.join(folder, "JPEGImages", f"{stem}.jpg"), os.path.join(folder, mask_folder, f"{stem}.png")

    splits = {name: [pair(stem) for stem in dict.fromkeys(stems[name])] for name in stems}
    _check_files(splits, f"The lists in {lists} ask for")
    return _to_data_set(splits)


def load_coco_stuff(root: str | os.PathLike) -> DatasetDict:
    """
    Load COCO-Stuff 164k, as mmsegmentation lays it out.

    Args:
        root: Holds `images/{train2017,val2017}/*.jpg` and `annotations/{train2017,val2017}/*_labelTrainIds.png`. One
            of the two may be left out altogether: the training pictures alone take 18 GB.

    Returns:
        `train` and `validation` with the columns `image` and `mask`, by name.

    Raises:
        ValueError: If a folder or file is missing.
    """
    root = os.fspath(root)
    splits: dict[str, list[Pair]] = {}
    for name, part in {"train": "train2017", "validation": "val2017"}.items():
        images, masks = (os.path.join(root, kind, part) for kind in ("images", "annotations"))
        if not os.path.isdir(images) and not os.path.isdir(masks):
            continue
        for folder in (images, masks):
            if not os.path.isdir(folder):
                raise ValueError(f"There is no folder {folder}.")
        stems = sorted(file[:-4] for file in _list_names(images) if file.endswith(".jpg") and _is_picture(file))
        if not stems:
            raise ValueError(f"There is no .jpg picture in {images}.")
        splits[name] = [
            (os.path.join(images, f"{stem}.jpg"), os.path.join(masks, f"{stem}_labelTrainIds.png")) for stem in stems
        ]
    if not splits:
        raise ValueError(
            f"{root} does not hold COCO-Stuff: there is neither images/train2017 nor images/val2017 in it."
        )
    _check_files(splits, "mmsegmentation's converter coco_stuff164k.py should have made")
    return _to_data_set(splits)


def load_pascal_context(root: str | os.PathLike) -> DatasetDict:
    """
    Load PASCAL Context, as mmsegmentation lays it out; the files are the same for 59 and 60 classes.

    Args:
        root: `VOC2010`, or `VOCdevkit` or its parent. Holds `JPEGImages/`, `SegmentationClassContext/` and
            `ImageSets/SegmentationContext/{train,val}.txt`.

    Returns:
        `train` and `validation` with the columns `image` and `mask`, in the lists' order.

    Raises:
        ValueError: If a folder, list or file is missing.
    """
    folder = _find_folder(root, "VOC2010", "JPEGImages")
    lists = os.path.join(folder, "ImageSets", "SegmentationContext")
    images, masks = (os.path.join(folder, name) for name in ("JPEGImages", "SegmentationClassContext"))
    splits = {
        name: [
            (os.path.join(images, f"{stem}.jpg"), os.path.join(masks, f"{stem}.png"))
            for stem in dict.fromkeys(_read_list(os.path.join(lists, file)))
        ]
        for name, file in {"train": "train.txt", "validation": "val.txt"}.items()
    }
    _check_files(splits, f"The lists in {lists} ask for")
    return _to_data_set(splits)


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
    return _load(root, image_column, mask_column)[0]


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
    return _load(name, image_column, mask_column)[0]


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
        labels = _class_labels(source)
        if len(labels) != 1:
            raise ValueError(
                f"The data set describes {len(labels)} lists of class names; give the one of its masks with "
                "classes_file."
            )
        return list(labels[0]), list(range(len(labels[0])))
    found = _find_names_file(os.fspath(source)) if os.path.isdir(source) else os.fspath(source)
    if found is None:
        raise ValueError(f"There are no class names in {os.fspath(source)}: neither {' nor '.join(_NAMES_FILES)}.")
    path, text = found, _read_text(found)
    names = _parse_id2label(path, text) if path.endswith(".json") else dict(enumerate(text.rstrip().splitlines()))
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


def read_sample(row: Mapping[str, Any], split: ClassSplit, index: int | None = None) -> tuple[PILImage, np.ndarray]:
    """
    Read a picture and its labels.

    Args:
        row: `image` and `mask` as files, that is, cast to `Image(decode=False)`: `path` and `bytes`, one of which may
            be `None`.
        split: The classes.
        index: Number of the row, by which errors call a picture that has no path.

    Returns:
        The picture, RGB and upright, and `(height, width)` int64 ids or the split's ignore index.

    Raises:
        ValueError: If one of them cannot be read, the sizes differ, or a mask value is neither a class nor ignored;
            one sentence that names the file.
    """
    numbers = ("picture", "mask") if index is None else (f"picture {index}", f"mask of picture {index}")
    picture, picture_name = _find_file(row["image"], numbers[0])
    mask, mask_name = _find_file(row["mask"], numbers[1])
    image = load_rgb(picture, name=picture_name)
    values = load_class_ids(mask, name=mask_name)
    height, width = values.shape
    if (width, height) != image.size:
        turned = "; a picture with an EXIF orientation is turned upright, its mask only if it has one, too"
        raise ValueError(
            f"{mask_name} has {width}x{height} pixels, but its picture {picture_name} has "
            f"{image.width}x{image.height}{turned if (height, width) == image.size else ''}."
        )
    try:
        return image, split.labels_of(values)
    except ValueError as error:
        raise ValueError(f"{mask_name}: {error}") from error


def _find_file(file: Mapping[str, Any] | None, name: str) -> tuple[bytes | Path, str]:
    """Return what to read, and what to call it."""
    path, content = (None, None) if file is None else (file.get("path"), file.get("bytes"))
    if content is not None:
        return content, name if path is None else f"{name} ({path})"
    if path is None:
        raise ValueError(f"{name} is missing: there is neither a path nor a file in the data set.")
    return Path(path), path


def _split_benchmark(name: str, **groups: Any) -> ClassSplit:
    entry = read_class_lists()[name]
    values = range(entry["first_mask_value"], entry["first_mask_value"] + len(entry["names"]))
    return split_classes(entry["names"], mask_values=values, ignored_values=entry["ignored_values"], **groups)


def _find_folder(root: str | os.PathLike, name: str, content: str) -> str:
    """Return the folder with some content: `root`, or one of a name below it."""
    root = os.fspath(root)
    if not os.path.isdir(root):
        raise ValueError(f"There is no folder {root}.")
    places = [root, os.path.join(root, name), os.path.join(root, "VOCdevkit", name)]
    for place in places:
        if os.path.isdir(os.path.join(place, content)):
            return place
    raise ValueError(f"There is no folder {content} in {', '.join(places[:-1])} or {places[-1]}.")


def _read_list(path: str) -> list[str]:
    """Read the stems of a list's files; also of lines such as `/JPEGImages/x.jpg /SegmentationClassAug/x.png`."""
    lines = [line.split() for line in _read_text(path).splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path}: this list is empty.")
    return [os.path.splitext(os.path.basename(words[0]))[0] for words in lines]


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"There is no file {path}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: this file is not UTF-8 text.") from error


def _list_names(folder: str) -> set[str]:
    """Return the names in a folder, of which there are none if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _check_files(splits: Mapping[str, Sequence[Pair]], demand: str) -> None:
    """Complain of files that do not exist; each folder is listed once, which is faster than asking for each file."""
    listings: dict[str, set[str]] = {}
    absent = []
    for path in (path for pairs in splits.values() for pair in pairs for path in pair):
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = _list_names(folder)
        if name not in listings[folder]:
            absent.append(path)
    if absent:
        folder = os.path.dirname(absent[0])
        what = "such file" if os.path.isdir(folder) else f"folder {folder}"
        more = f" ({len(absent) - 1} more are missing, too)" if len(absent) > 1 else ""
        raise ValueError(f"{demand} {absent[0]}, but there is no {what}{more}.")


def _to_data_set(splits: Mapping[str, Sequence[Pair]]) -> DatasetDict:
    """Make a data set that holds paths only."""
    data = {}
    for name, pairs in _name_splits(splits).items():
        columns = {"image": [image for image, _ in pairs], "mask": [mask for _, mask in pairs]}
        data[name] = Dataset.from_dict(columns, features=FEATURES)
    return DatasetDict(data)


def _name_splits(splits: Mapping[str, Any]) -> dict[str, Any]:
    return {"validation" if name == "val" and "validation" not in splits else name: splits[name] for name in splits}


def _load(place: str, image_column: str | None, mask_column: str | None) -> tuple[DatasetDict, Features]:
    """Load a folder or Hub id; also return the features that its tables have, none where it consists of files."""
    pairs = _find_pairs(place) if os.path.isdir(place) else {}
    if not pairs:
        tables = _load_tables(place)
        return _select_columns(tables, place, image_column, mask_column), next(iter(tables.values())).features
    if image_column is not None or mask_column is not None:
        raise ValueError(f"{place} holds files, which have no columns: leave out image_column and mask_column.")
    return _to_data_set(pairs), Features()


def _find_pairs(root: str) -> dict[str, list[Pair]]:
    """Return the pictures and masks of each split of a folder of files; nothing if it is none."""
    images, masks = os.path.join(root, "images"), os.path.join(root, "masks")
    if not os.path.isfile(os.path.join(root, "metadata.jsonl")) and os.path.isdir(images):
        parts = sorted(name for name in _list_folders(images) if os.path.isdir(os.path.join(masks, name)))
        if parts:
            beside = sorted(name for name in _list_names(images) if _is_picture(name))
            if beside:
                raise ValueError(
                    f"{os.path.join(images, beside[0])} lies beside the folders {', '.join(parts)}, which are splits: "
                    "move it into one of them."
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
        return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _is_picture(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def _match_files(images: str, masks: str) -> list[Pair]:
    """Match pictures and masks by their path without suffix."""
    pictures, maps = _list_by_stem(images), _list_by_stem(masks)
    if not pictures:
        raise ValueError(f"There is no picture in {images}.")
    without = sorted(pictures.keys() - maps.keys())
    if without:
        more = f", nor do {len(without) - 1} more" if len(without) > 1 else ""
        raise ValueError(f"{pictures[without[0]]} has no mask of the same name in {masks}{more}.")
    return [(pictures[stem], maps[stem]) for stem in sorted(pictures)]


def _list_by_stem(folder: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            if not _is_picture(name):
                continue
            path = os.path.join(place, name)
            stem = os.path.splitext(os.path.relpath(path, folder))[0]
            if stem in found:
                first, second = sorted((found[stem], path))
                raise ValueError(f"{first} and {second} differ in their suffix only, so masks would not be clear.")
            found[stem] = path
    return found


def _read_metadata(path: str) -> list[Pair]:
    folder = os.path.dirname(path)
    pairs = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
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
    _check_files({"": pairs}, f"{path} names")
    return pairs


def _is_saved(folder: str) -> bool:
    """Tell whether `save_to_disk` has written a folder."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_dict.json"))


def _has_tables(folder: str) -> bool:
    patterns = ("*.parquet", "*.arrow", "*/*.parquet", "*/*.arrow")
    return _is_saved(folder) or any(next(Path(folder).glob(pattern), None) for pattern in patterns)


def _load_tables(place: str) -> DatasetDict:
    """Load a Hub id or folder through Datasets, with all of its columns."""
    is_folder = os.path.isdir(place)
    if is_folder and not _has_tables(place):
        raise ValueError(
            f"{place} is no data set: it has neither metadata.jsonl, nor images and masks, nor subfolders that do, "
            "nor Parquet or Arrow files."
        )
    try:
        data = load_from_disk(place) if _is_saved(place) else load_dataset(place)
    except Exception as error:  # Of any kind: from the network, the cache, the builder or the files.
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        what = "this data set" if is_folder else "there is no such folder, and as a Hub id it"
        raise ValueError(f"{place}: {what} cannot be loaded: {reason}") from error
    return DatasetDict({"train": data} if isinstance(data, Dataset) else _name_splits(data))


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
    image = image_column or _only(name for name in columns if name != mask_column and name.lower() in _IMAGE_COLUMNS)
    mask = mask_column or _only(name for name in columns if name != image_column and name.lower() in _MASK_COLUMNS)
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


def _class_labels(feature: Any) -> list[tuple[str, ...]]:
    """Return the different lists of class names in a feature, however deep."""
    if isinstance(feature, ClassLabel):
        return [tuple(feature.names)]
    if isinstance(feature, dict):
        children = list(feature.values())
    elif isinstance(feature, (list, tuple)):
        children = list(feature)
    else:
        children = [feature.feature] if hasattr(feature, "feature") else []
    return list(dict.fromkeys(names for child in children for names in _class_labels(child)))


def _find_names_file(place: str) -> str | None:
    """Find the file of class names of a folder, or of a data set on the Hub."""
    if os.path.isdir(place):
        for folders in ([place], [os.path.join(place, name) for name in sorted(_list_folders(place))]):
            for name in _NAMES_FILES:
                paths = [path for folder in folders if os.path.isfile(path := os.path.join(folder, name))]
                for path in paths[1:]:
                    if _read_text(path) != _read_text(paths[0]):
                        raise ValueError(f"{paths[0]} and {path} differ: say which with classes_file.")
                if paths:
                    return paths[0]
        return None
    for name in _NAMES_FILES:
        try:
            return hf_hub_download(place, name, repo_type="dataset")
        except (EntryNotFoundError, HfHubHTTPError, OSError):  # It has none, or cannot be asked.
            continue
    return None


def _parse_id2label(path: str, text: str) -> dict[int, str]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: this file is not JSON.") from error
    if not isinstance(content, dict):
        raise ValueError(f'{path}: expected an object such as {{"0": "wall", "1": "floor"}}.')
    names = {}
    for key, name in content.items():
        if not re.fullmatch("[0-9]+", key) or not isinstance(name, str):
            raise ValueError(f"{path}: {key!r}: {name!r} is not a mask value with a class name.")
        names[int(key)] = name
    return dict(sorted(names.items()))


def _check_hub_id(name: str) -> None:
    """Refuse what cannot be a Hub id, before the network is asked."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return
    if os.sep in name or name.startswith((".", "~")):
        raise ValueError(f"There is no folder {name}.")
    close = difflib.get_close_matches(name, _LOADERS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ValueError(
        f"There is no data set {name!r}: give {', '.join(_LOADERS)}, a folder, or a Hub id such as owner/name{hint}"
    )


_LOADERS: dict[str, Callable[[str | os.PathLike], DatasetDict]] = {
    "voc": load_voc,
    "coco_stuff": load_coco_stuff,
    "pascal_context_59": load_pascal_context,
    "pascal_context_60": load_pascal_context,
}

__all__ = [
    "benchmark_split",
    "load_coco_stuff",
    "load_folder",
    "load_hub",
    "load_pascal_context",
    "load_pictures",
    "load_voc",
    "read_class_lists",
    "read_class_names",
    "read_sample",
]
