"""The benchmarks of the papers, in the layouts that mmsegmentation's converters write, and their classes."""

import json
import os
from collections.abc import Collection
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
        converter: mmsegmentation's script that writes lists and masks.
    """

    picture: str
    masks: tuple[str, ...]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    converter: str


_VOC_LISTS = "ImageSets/Segmentation"
_CONTEXT_LISTS = "ImageSets/SegmentationContext"
_CONTEXT = Layout(
    "JPEGImages/{}.jpg",
    ("SegmentationClassContext/{}.png",),
    train=(f"{_CONTEXT_LISTS}/train.txt",),
    validation=(f"{_CONTEXT_LISTS}/val.txt",),
    converter="pascal_context.py",
)
BENCHMARKS = {
    # VOC's own masks come first: SBD has masks of some of the same pictures.
    "voc": Layout(
        "JPEGImages/{}.jpg",
        ("SegmentationClass/{}.png", "SegmentationClassAug/{}.png"),
        train=(f"{_VOC_LISTS}/train.txt", f"{_VOC_LISTS}/aug.txt"),
        validation=(f"{_VOC_LISTS}/val.txt",),
        converter="voc_aug.py",
    ),
    "coco_stuff": Layout(
        "images/{}.jpg",
        ("annotations/{}_labelTrainIds.png",),
        train=("images/train2017",),
        validation=("images/val2017",),
        converter="coco_stuff164k.py",
    ),
    # The files are the same with and without the background as a class.
    "pascal_context_59": _CONTEXT,
    "pascal_context_60": _CONTEXT,
}


@cache
def read_class_lists() -> dict[str, dict[str, Any]]:
    """
    Read `class_lists.json`.

    Returns:
        For each benchmark its `names`, `unseen_names`, `first_mask_value`, `ignored_values`, `num_pictures` of each
        split and `source`; and under `templates` the papers' prompt templates, `single` and `multi`.
    """
    return json.loads(Path(__file__).with_name("class_lists.json").read_text(encoding="utf-8"))


def benchmark_split(
    name: str,
    seen: Collection[str] | None = None,
    unseen: Collection[str] | None = None,
    ignored: Collection[str] = (),
) -> ClassSplit:
    """Return the classes of a benchmark as [`split_classes`] does; by default with the papers' unseen classes."""
    entry = read_class_lists()[name]
    if seen is None and unseen is None:
        unseen = [unseen_name for unseen_name in entry["unseen_names"] if unseen_name not in ignored]
    values = range(entry["first_mask_value"], entry["first_mask_value"] + len(entry["names"]))
    return split_classes(
        entry["names"],
        seen=seen,
        unseen=unseen,
        ignored=ignored,
        mask_values=values,
        ignored_values=entry["ignored_values"],
    )


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
        split: list(
            dict.fromkeys(stem for path in sources[split] for stem in _list_stems(root, path, layout.converter))
        )
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


def _list_stems(root: str, source: str, converter: str) -> list[str]:
    """Read a list, or list the pictures of a folder as `folder/stem`."""
    path = os.path.join(root, source)
    if not os.path.exists(path):
        raise InputError(f"There is no {path}. The layout must be that of mmsegmentation's converter {converter}.")
    if source.endswith(".txt"):
        # A line may hold more: SBD's lists have paths, `/JPEGImages/x.jpg /SegmentationClassAug/x.png`.
        lines = [line.split() for line in read_text(path).split("\n")]
        stems = [os.path.splitext(os.path.basename(words[0]))[0] for words in lines if words]
    else:
        names = [name for name in os.listdir(path) if name.endswith(".jpg") and not name.startswith(".")]
        stems = sorted(f"{os.path.basename(source)}/{name.removesuffix('.jpg')}" for name in names)
    if not stems:
        raise InputError(f"{path} lists no picture.")
    return stems


__all__ = ["BENCHMARKS", "Layout", "benchmark_split", "find_benchmark_files", "read_class_lists"]
