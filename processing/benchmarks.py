"""The benchmarks of the papers, in official layouts or those of mmsegmentation's converters, and their classes."""

import json
import os
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .class_split import ClassSplit, read_text, split_classes
from .input_error import InputError


class Layout(NamedTuple):
    """
    Files of a benchmark, relative to its folder.

    Attributes:
        picture: Path of a picture, with `{}` for its stem.
        masks: Paths of its mask; the first that exists is taken.
        train: Text files that list the stems of the split, one a line; or the folder that contains its pictures.
        validation: Likewise.
        origin: Whose layout this is.
        values: For masks with other values than `class_lists.json` says, by the end of their names: fields of
            [`ClassSplit`] to replace.
    """

    picture: str
    masks: tuple[str, ...]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    origin: str
    values: dict[str, dict[str, Any]] = {}


_VOC_LISTS = "ImageSets/Segmentation"
_CONTEXT_LISTS = "ImageSets/SegmentationContext"
_CONTEXT = Layout(
    "JPEGImages/{}.jpg",
    ("SegmentationClassContext/{}.png",),
    train=(f"{_CONTEXT_LISTS}/train.txt",),
    validation=(f"{_CONTEXT_LISTS}/val.txt",),
    origin="mmsegmentation's converter pascal_context.py",
)
# VOC's own masks come first: SBD has masks of some of the same pictures.
_VOC = Layout(
    "JPEGImages/{}.jpg",
    ("SegmentationClass/{}.png", "SegmentationClassAug/{}.png"),
    train=(f"{_VOC_LISTS}/train.txt", f"{_VOC_LISTS}/aug.txt"),
    validation=(f"{_VOC_LISTS}/val.txt",),
    origin="mmsegmentation's converter voc_aug.py",
)
_COCO = Layout(
    "images/{}.jpg",
    ("annotations/{}_labelTrainIds.png",),
    train=("images/train2017",),
    validation=("images/val2017",),
    origin="mmsegmentation's converter coco_stuff164k.py",
)
BENCHMARKS = {
    # The files are the same for all lists of class names, and with and without the background as a class.
    "voc": _VOC,
    "voc20": _VOC,
    "voc21": _VOC,
    "coco_stuff": _COCO,
    "coco_stuff171": _COCO,
    # The papers' masks (*_instanceTrainIds.png, of GroupViT's converter) are drawn from the instances: whatever is not
    # in one is background. From COCO-Stuff's masks the same follows if stuff and pixels without a label, which belong
    # to no instance either, are background; none is ignored.
    "coco_object": _COCO._replace(
        masks=("annotations/{}_instanceTrainIds.png", *_COCO.masks),
        values={
            "_labelTrainIds.png": {
                "mask_values": (255, *range(80)),
                "merged_values": dict.fromkeys(range(80, 171), 0),
                "ignored_values": (),
            }
        },
    ),
    "pascal_context_59": _CONTEXT,
    "pascal_context_60": _CONTEXT,
    "ade20k": Layout(
        "images/{}.jpg",
        ("annotations/{}.png",),
        train=("images/training",),
        validation=("images/validation",),
        origin="ADEChallengeData2016",
    ),
    "cityscapes": Layout(
        "leftImg8bit/{}_leftImg8bit.png",
        ("gtFine/{}_gtFine_labelTrainIds.png", "gtFine/{}_gtFine_labelIds.png"),
        train=("leftImg8bit/train",),
        validation=("leftImg8bit/val",),
        origin="Cityscapes (leftImg8bit and gtFine)",
        values={
            "_labelIds.png": {
                "mask_values": (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33),
                "ignored_values": (*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 255),
            }
        },
    ),
}


@cache
def read_class_lists() -> dict[str, dict[str, Any]]:
    """
    Read `class_lists.json`.

    Returns:
        For each benchmark its `names`, those that stand for a class where these are several or others (`names_of`),
        `unseen_names`, `first_mask_value`, `ignored_values`, `num_pictures` of each split and `source`; and under
        `templates` the papers' prompt templates, `single` and `multi`.
    """
    return json.loads(Path(__file__).with_name("class_lists.json").read_text(encoding="utf-8"))


def benchmark_split(
    name: str,
    seen: Collection[str] | None = None,
    unseen: Collection[str] | None = None,
    ignored: Collection[str] = (),
    masks: Iterable[str] = (),
) -> ClassSplit:
    """
    Return the classes of a benchmark as [`split_classes`] does; by default with the papers' unseen classes.

    Args:
        name: A key of `BENCHMARKS`.
        seen: See [`split_classes`], as are `unseen` and `ignored`.
        unseen: Names of the unseen classes.
        ignored: Names to remove from the list.
        masks: Paths of all masks, where their names may tell which values they have.

    Raises:
        InputError: As [`split_classes`], or for masks of several kinds.
    """
    entry = read_class_lists()[name]
    values = _values_of_masks(name, masks)
    if seen is None and unseen is None:
        unseen = [unseen_name for unseen_name in entry["unseen_names"] if unseen_name not in ignored]
    first, names_of = entry["first_mask_value"], entry.get("names_of", {})
    split = split_classes(
        entry["names"],
        seen=seen,
        unseen=unseen,
        ignored=ignored,
        mask_values=values.get("mask_values", range(first, first + len(entry["names"]))),
        ignored_values=values.get("ignored_values", entry["ignored_values"]),
    )
    merged = {value: entry["names"][index] for value, index in values.get("merged_values", {}).items()}
    return replace(
        split,
        names_of={label: tuple(names) for label, names in names_of.items() if label in split.names},
        merged_values={value: split.names.index(label) for value, label in merged.items() if label in split.names},
        ignored_values=(
            *split.ignored_values,
            *(value for value, label in merged.items() if label not in split.names),
        ),
    )


def _values_of_masks(name: str, masks: Iterable[str]) -> dict[str, Any]:
    """Return what [`Layout`] says of the values of these masks; `InputError` if they are of several kinds."""
    known = BENCHMARKS[name].values
    kinds = {next((end for end in known if mask.endswith(end)), "") for mask in masks} if known else set()
    if len(kinds) > 1:
        patterns = " and ".join(BENCHMARKS[name].masks)
        raise InputError(
            f"{name} has masks of several kinds, {patterns}, whose values differ: remove those of one kind."
        )
    return known.get("".join(kinds), {})


def find_benchmark_files(
    name: str, root: str, splits: Collection[str] | None = None
) -> dict[str, list[tuple[str, str]]]:
    """
    List the pictures and masks of a benchmark.

    Args:
        name: A key of `BENCHMARKS`.
        root: The folder that contains its files.
        splits: Which of `train` and `validation` are needed; the files of the other need not exist. `None`: both, but
            COCO-Stuff may lack one of them (its training pictures alone take 18 GB).

    Returns:
        For each split the paths of pictures and masks, in the order of its lists or by name. Whether these files exist
        is not checked.

    Raises:
        InputError: If a list or folder does not exist or is empty, or a picture is in both splits.
    """
    layout = BENCHMARKS[name]
    sources = {"train": layout.train, "validation": layout.validation}
    if not os.path.isdir(root):
        raise InputError(f"There is no folder {root}.")
    if unknown := set(splits or ()) - sources.keys():
        raise InputError(f"{name} has no split {min(unknown)!r}; it has 'train' and 'validation'.")
    if splits is None:
        present = {split for split, (path, *_) in sources.items() if os.path.isdir(os.path.join(root, path))}
        splits = present or sources.keys()
    stems = {
        split: list(dict.fromkeys(stem for path in sources[split] for stem in _list_stems(root, path, layout)))
        for split in sources
        if split in splits
    }
    if shared := sorted(set(stems.get("train", ())) & set(stems.get("validation", ()))):
        raise InputError(
            f"{os.path.join(root, layout.validation[0])} shares {len(shared)} pictures with the training split, such "
            f"as {shared[0]}: remove them there, or validation would measure what was trained on."
        )

    def pair(stem: str) -> tuple[str, str]:
        *preferred, last = (os.path.join(root, mask.format(stem)) for mask in layout.masks)
        return os.path.join(root, layout.picture.format(stem)), next(filter(os.path.isfile, preferred), last)

    return {split: [pair(stem) for stem in stems[split]] for split in stems}


def _list_stems(root: str, source: str, layout: Layout) -> list[str]:
    """Read a list, or list the pictures of a folder and of those in it."""
    path = os.path.join(root, source)
    if not os.path.exists(path):
        raise InputError(f"There is no {path}. The layout must be that of {layout.origin}.")
    if source.endswith(".txt"):
        # A line may hold more: SBD's lists have paths, `/JPEGImages/x.jpg /SegmentationClassAug/x.png`.
        lines = [line.split() for line in read_text(path).split("\n")]
        stems = [os.path.splitext(os.path.basename(words[0]))[0] for words in lines if words]
    else:
        start, end = layout.picture.split("{}")
        places = [
            Path(place, name).relative_to(root).as_posix()
            for place, _, names in os.walk(path, followlinks=True)
            for name in names
            if not name.startswith(".")
        ]
        stems = sorted(place.removeprefix(start).removesuffix(end) for place in places if place.endswith(end))
    if not stems:
        raise InputError(f"{path} lists no picture.")
    return stems


__all__ = ["BENCHMARKS", "Layout", "benchmark_split", "find_benchmark_files", "read_class_lists"]
