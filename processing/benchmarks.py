"""The papers' benchmarks in the layouts that mmsegmentation's converters write, and their classes."""

import json
import os
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from .class_split import ClassSplit, split_classes
from .picture_files import Pair, check_files, is_picture, list_names, make_data_set, read_text

SPLITS = ("train", "validation")


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
    if name not in BENCHMARKS:
        raise ValueError(f"There is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
    return split_benchmark(name, seen=None, unseen=read_class_lists()[name]["unseen_names"])


def load_voc(root: str | os.PathLike, splits: Collection[str] = SPLITS) -> DatasetDict:
    """
    Load PASCAL VOC 2012 with the additional masks of SBD, as mmsegmentation lays them out.

    Args:
        root: `VOC2012`, or `VOCdevkit` or its parent. Holds `JPEGImages/`, `SegmentationClass/`,
            `SegmentationClassAug/`, and in `ImageSets/Segmentation/` the lists `val.txt` and either `trainaug.txt`
            (or `train_aug.txt`) or both `train.txt` and `aug.txt`. A picture has VOC's own mask where there is one,
            else SBD's.
        splits: Which to load; files of the other need not be there.

    Returns:
        These splits with the columns `image` and `mask`, in the lists' order.

    Raises:
        ValueError: If a folder, list or file is missing, or a picture is in both lists.
    """
    folder = _find_folder(root, "VOC2012", "JPEGImages")
    lists = os.path.join(folder, "ImageSets", "Segmentation")
    stems = {}
    if "train" in splits:
        stems["train"] = [stem for path in _find_train_lists(folder, lists) for stem in _read_list(path)]
    if "validation" in splits:
        stems["validation"] = _read_list(os.path.join(lists, "val.txt"))
    shared = sorted(set(stems.get("train", ())) & set(stems.get("validation", ())))
    if shared:
        raise ValueError(
            f"{os.path.join(lists, 'val.txt')} shares {len(shared)} pictures with the training lists beside it, "
            f"such as {shared[0]}: take them out there, or validation would measure what was trained on."
        )
    own = list_names(os.path.join(folder, "SegmentationClass"))

    def pair(stem: str) -> Pair:
        mask_folder = "SegmentationClass" if f"{stem}.png" in own else "SegmentationClassAug"
        return os.path.join(folder, "JPEGImages", f"{stem}.jpg"), os.path.join(folder, mask_folder, f"{stem}.png")

    pairs = {name: [pair(stem) for stem in dict.fromkeys(stems[name])] for name in stems}
    check_files(pairs, f"The lists in {lists} ask for")
    return make_data_set(pairs)


def _find_train_lists(folder: str, lists: str) -> list[str]:
    both = [os.path.join(lists, name) for name in ("train.txt", "aug.txt")]
    trainaug = [os.path.join(lists, name) for name in ("trainaug.txt", "train_aug.txt")]
    for path in trainaug:
        if os.path.isfile(path):
            return [path]
    if not os.path.isfile(both[1]):
        raise ValueError(
            f"The list of the pictures that SBD adds to the training set is missing: put it at {both[1]} (or "
            f"{trainaug[0]}), and their masks into {os.path.join(folder, 'SegmentationClassAug')}; mmsegmentation's "
            "converter voc_aug.py makes both."
        )
    return both


def load_coco_stuff(root: str | os.PathLike, splits: Collection[str] = SPLITS) -> DatasetDict:
    """
    Load COCO-Stuff 164k, as mmsegmentation lays it out.

    Args:
        root: Holds `images/{train2017,val2017}/*.jpg` and `annotations/{train2017,val2017}/*_labelTrainIds.png`. One
            of the two may be left out altogether: the training pictures alone take 18 GB.
        splits: Which to load.

    Returns:
        Those of them that are there, with the columns `image` and `mask`, by name.

    Raises:
        ValueError: If a folder or file is missing.
    """
    root = os.fspath(root)
    pairs: dict[str, list[Pair]] = {}
    for name, part in {"train": "train2017", "validation": "val2017"}.items():
        images, masks = (os.path.join(root, kind, part) for kind in ("images", "annotations"))
        if name not in splits or not (os.path.isdir(images) or os.path.isdir(masks)):
            continue
        for folder in (images, masks):
            if not os.path.isdir(folder):
                raise ValueError(f"There is no folder {folder}.")
        stems = sorted(file[:-4] for file in list_names(images) if file.endswith(".jpg") and is_picture(file))
        if not stems:
            raise ValueError(f"There is no .jpg picture in {images}.")
        pairs[name] = [
            (os.path.join(images, f"{stem}.jpg"), os.path.join(masks, f"{stem}_labelTrainIds.png")) for stem in stems
        ]
    if not pairs:
        raise ValueError(
            f"{root} does not hold COCO-Stuff: there is neither images/train2017 nor images/val2017 in it."
            if len(splits) > 1
            else f"There is no folder {os.path.join(root, 'images', 'train2017' if 'train' in splits else 'val2017')}."
        )
    check_files(pairs, "mmsegmentation's converter coco_stuff164k.py should have made")
    return make_data_set(pairs)


def load_pascal_context(root: str | os.PathLike, splits: Collection[str] = SPLITS) -> DatasetDict:
    """
    Load PASCAL Context, as mmsegmentation lays it out; the files are the same for 59 and 60 classes.

    Args:
        root: `VOC2010`, or `VOCdevkit` or its parent. Holds `JPEGImages/`, `SegmentationClassContext/` and
            `ImageSets/SegmentationContext/{train,val}.txt`.
        splits: Which to load; files of the other need not be there.

    Returns:
        These splits with the columns `image` and `mask`, in the lists' order.

    Raises:
        ValueError: If a folder, list or file is missing.
    """
    folder = _find_folder(root, "VOC2010", "JPEGImages")
    lists = os.path.join(folder, "ImageSets", "SegmentationContext")
    images, masks = (os.path.join(folder, name) for name in ("JPEGImages", "SegmentationClassContext"))
    pairs = {
        name: [
            (os.path.join(images, f"{stem}.jpg"), os.path.join(masks, f"{stem}.png"))
            for stem in dict.fromkeys(_read_list(os.path.join(lists, file)))
        ]
        for name, file in {"train": "train.txt", "validation": "val.txt"}.items()
        if name in splits
    }
    check_files(pairs, f"The lists in {lists} ask for")
    return make_data_set(pairs)


def split_benchmark(name: str, **groups: Any) -> ClassSplit:
    """Split the classes of a benchmark by name; `groups` as in [`split_classes`]."""
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
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path}: this list is empty.")
    return [os.path.splitext(os.path.basename(words[0]))[0] for words in lines]


BENCHMARKS: dict[str, Callable[..., DatasetDict]] = {
    "voc": load_voc,
    "coco_stuff": load_coco_stuff,
    "pascal_context_59": load_pascal_context,
    "pascal_context_60": load_pascal_context,
}

__all__ = [
    "BENCHMARKS",
    "SPLITS",
    "benchmark_split",
    "load_coco_stuff",
    "load_pascal_context",
    "load_voc",
    "read_class_lists",
    "split_benchmark",
]
