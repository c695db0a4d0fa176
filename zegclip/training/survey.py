"""Count the pixels of each class in a data set, and report what is probably a mistake."""

import hashlib
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from zegclip.processing.benchmarks import read_class_lists
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.datasets import check_sizes, find_files
from zegclip.processing.image_reading import load_class_ids, load_rgb, read_frame, read_palette
from zegclip.processing.input_error import InputError
from zegclip.training.arguments import DataArguments
from zegclip.training.pictures import spread_evenly

MOST_LOOKED_AT, MOST_SECONDS = 2000, 60
"""Limits on the masks of a split that are read before training or evaluation, and on the seconds this takes."""
_MOST_LISTED = 20  # Classes or ranges of values in one sentence.
_IGNORED_BY_DEFAULT = (255, 65535)  # Mask values that are ignored unless they have a class name.
_MUCH_IGNORED = 0.25  # Share of the pixels; borders and unlabelled regions seldom cover more.


class Sample(NamedTuple):
    """
    Statistics of one picture and its mask, or why they cannot be used.

    Attributes:
        picture: What errors call the picture.
        mask: What errors call the mask.
        size: Width and height of both, in pixels.
        values: Distinct values of the mask, `(n,)` int64, sorted.
        counts: Number of pixels with each value, `(n,)` int64.
        colours: RGB colour of each value that is in the mask's palette.
        turned: Whether only one of the two has an EXIF orientation although their stored sizes are the same, so that
            sizes do not tell whether the mask was drawn over the upright picture.
        content: A hash of the picture's bytes, if it was decoded.
        fault: Why they cannot be used; empty if they can.
    """

    picture: str = ""
    mask: str = ""
    size: tuple[int, int] = (0, 0)
    values: np.ndarray = np.zeros(0, dtype=np.int64)
    counts: np.ndarray = np.zeros(0, dtype=np.int64)
    colours: Sequence[Sequence[int]] = ()
    turned: bool = False
    content: bytes = b""
    fault: str = ""


class Samples(torch.utils.data.Dataset):
    """
    Reads masks and counts their values.

    Args:
        data: Rows with `image` and `mask`, not decoded.
        decode: Whether to decode pictures too, or only read their headers.
    """

    def __init__(self, data: Dataset, decode: bool) -> None:
        self.data = data
        self.decode = decode

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        try:
            (picture, picture_name), (mask, mask_name) = find_files(self.data[index], index)
            orientation, stored = read_frame(picture, name=picture_name)
            size, content = stored[::-1] if orientation >= 5 else stored, b""
            if self.decode:
                size = load_rgb(picture, name=picture_name).size
                whole = picture if isinstance(picture, bytes) else picture.read_bytes()
                content = hashlib.blake2b(whole, digest_size=16).digest()
            ids = load_class_ids(mask, name=mask_name)
            check_sizes(picture_name, size, mask_name, (ids.shape[1], ids.shape[0]))
            values, counts = _count_values(ids)
            palette = read_palette(mask, name=mask_name)
            mask_orientation, mask_stored = read_frame(mask, name=mask_name)
        except (InputError, OSError) as error:
            return Sample(fault=str(error))
        colours = [] if palette is None else palette[values[values < len(palette)]].tolist()
        turned = orientation != mask_orientation and stored == mask_stored
        return Sample(picture_name, mask_name, size, values, counts, colours, turned, content)


@dataclass
class Survey:
    """
    Statistics of a split.

    Args:
        name: Name of the split.
        split: The classes.
        total: Number of pictures in the split.

    Attributes:
        broken: A sentence for each picture that training could not use, by the number of its row.
        unnamed: The rows among them whose masks can be read, but contain values without a class.
        sizes: Width and height of each picture that could be read.
        pictures: Number of these pictures in which each class occurs, `(classes,)` int64.
        pixels: Number of their pixels of each class, `(classes,)` int64.
        unknown: Number of pixels of each value that neither belongs to a class nor is ignored.
        ignored: Number of pixels of each value that is ignored.
        contents: What the pictures that could be read are called, by the hash of their bytes, if they were decoded.
    """

    name: str
    split: ClassSplit
    total: int
    broken: dict[int, str] = field(default_factory=dict)
    unnamed: set[int] = field(default_factory=set)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    pictures: np.ndarray = field(init=False)
    pixels: np.ndarray = field(init=False)
    unknown: Counter[int] = field(default_factory=Counter)
    ignored: Counter[int] = field(default_factory=Counter)
    contents: dict[bytes, list[str]] = field(default_factory=dict)
    _num_read: int = 0
    _masks_with: Counter[int] = field(default_factory=Counter)
    _turned: list[str] = field(default_factory=list)
    _first_unnamed: str = ""
    # For each value and each of its colours: the number of masks, and the name of the first.
    _palettes: dict[int, dict[tuple[int, ...], tuple[int, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pictures, self.pixels = np.zeros((2, len(self.split.names)), dtype=np.int64)

    @property
    def num_pixels(self) -> int:
        """Number of pixels of the pictures that could be read."""
        return sum(width * height for width, height in self.sizes)

    def add(self, index: int, sample: Sample) -> None:
        """Add the picture of a row."""
        self._num_read += 1
        if sample.fault:
            self.broken[index] = sample.fault
            return
        self.sizes.append(sample.size)
        if sample.content:
            self.contents.setdefault(sample.content, []).append(sample.picture)
        self._masks_with.update(sample.values.tolist())
        known = np.isin(sample.values, self.split.known_values)
        self.unknown.update(dict(zip(sample.values[~known].tolist(), sample.counts[~known].tolist())))
        if not known.all():
            self.unnamed.add(index)
            self._first_unnamed = sample.mask if index == min(self.unnamed) else self._first_unnamed
            self.broken[index] = f"{sample.mask}: {self.split.unknown_value_message(sample.values[~known][0])}"
        labels = self.split.labels_of(sample.values[known])
        is_class, counts = labels != self.split.ignore_index, sample.counts[known]
        self.pictures[labels[is_class]] += 1
        np.add.at(self.pixels, labels[is_class], counts[is_class])  # of a class that may have several values
        self.ignored.update(dict(zip(sample.values[known][~is_class].tolist(), counts[~is_class].tolist())))
        if sample.turned:
            self._turned.append(sample.picture)
        for value, colour in zip(sample.values.tolist(), sample.colours):
            colours = self._palettes.setdefault(value, {})
            count, first = colours.get(tuple(colour), (0, sample.mask))
            colours[tuple(colour)] = (count + 1, first)

    def describe_unnamed(self) -> str | None:
        """Return a sentence about the values without a class; `None` if there are none."""
        if not self.unnamed:
            return None
        shown = self.split.format_values(self.unknown.keys())
        if shown.count(",") >= _MOST_LISTED:
            shown = f"{len(self.unknown)} between {min(self.unknown)} and {max(self.unknown)}"
        value, occurs, it = ("value", "occurs", "it") if len(self.unknown) == 1 else ("values", "occur", "them")
        return (
            f"{self.name}: {value} {shown} {occurs} in {self._of_masks(len(self.unnamed))}, "
            f"{self._share(sum(self.unknown.values()))} of the pixels: name {it} in classes.txt or id2label.json (and "
            f"in ignored_classes, to ignore {it}); the first mask is {self._first_unnamed}."
        )

    @property
    def is_whole(self) -> bool:
        """Whether all of the data set has been read, not a sample."""
        return self._num_read == self.total

    def find_remarks(self, ids: Collection[int]) -> list[str]:
        """
        Return a sentence for each thing that can be used but is probably a mistake.

        Args:
            ids: Classes that should have pixels.
        """
        found = (self._remark_on_classes(ids), self._remark_on_palettes(), self._remark_on_turns())
        return [remark for remark in found if remark is not None]

    def _remark_on_classes(self, ids: Collection[int]) -> str | None:
        absent = [self.split.names[index] for index in sorted(ids) if self.sizes and not self.pixels[index]]
        names = ", ".join(absent[:_MOST_LISTED])
        if len(absent) > _MOST_LISTED:
            names += f" and {len(absent) - _MOST_LISTED} more"
        value = max(_IGNORED_BY_DEFAULT, key=lambda value: self.ignored[value])
        pixels = self.ignored[value]
        if not pixels or not (absent or pixels > _MUCH_IGNORED * self.num_pixels):
            return f"{self.name} has no pixel of {names}{self._read_so_far()}." if absent else None
        start = f"{self.name} has no pixel of {names}, and" if absent else f"{self.name}:"
        return (
            f"{start} value {value}, which is read as ignored, covers {self._share(pixels)} of the pixels, in "
            f"{self._of_masks(self._masks_with[value])}: if it is a class, name it in id2label.json as "
            f'"{value}", or write the masks with another value (0 and 1 instead of 0 and 255).'
        )

    def _remark_on_palettes(self) -> str | None:
        differing = {value: colours for value, colours in self._palettes.items() if len(colours) > 1}
        if not differing:
            return None
        value = min(differing)
        (usual, (count, _)), (other, (_, mask)), *_ = sorted(differing[value].items(), key=lambda item: -item[1][0])
        more = f" ({len(differing)} indices differ)" if len(differing) > 1 else ""
        return (
            f"{self.name}: palettes differ: index {value} has the colour {usual} in {self._of_masks(count)}, but "
            f"{other} in {mask}{more}: if the classes were colours, these indices do not identify them."
        )

    def _remark_on_turns(self) -> str | None:
        if not self._turned:
            return None
        return (
            f"{self.name}: {len(self._turned)} of {len(self.sizes)} pictures{self._read_so_far()} are turned by their "
            "EXIF orientation, but their masks are not: if masks were drawn over the stored pixels, they do not lie "
            f"over the pictures, which must then be stored upright; the first is {self._turned[0]}."
        )

    def _of_masks(self, count: int) -> str:
        return f"{count} of {len(self.sizes)} masks{self._read_so_far()}"

    def _share(self, pixels: int) -> str:
        return f"{100 * pixels / max(self.num_pixels, 1):.1f} %"

    def _read_so_far(self) -> str:
        return "" if self.is_whole else f" ({self._num_read} of {self.total} read)"


def survey_pictures(
    name: str,
    data: Dataset,
    split: ClassSplit,
    *,
    decode: bool,
    num_workers: int = 0,
    most: int | None = None,
    seconds: float | None = None,
    description: str | None = None,
) -> Survey:
    """
    Read the masks of a split.

    Args:
        name: Name of the split.
        data: Rows with `image` and `mask`, not decoded.
        split: The classes.
        decode: Whether to decode pictures too; otherwise their size and orientation are read from the header.
        num_workers: Number of worker processes; 0: read in this one.
        most: How many rows to read, evenly spread; `None`: all.
        seconds: Stop after this time; `None`: no limit.
        description: Text of the progress bar, which then appears after some seconds and disappears at the end.
    """
    survey = Survey(name, split, len(data))
    indices = spread_evenly(len(data), len(data) if most is None else most)
    if seconds is not None:  # In an order of which every beginning is spread over the split.
        indices = np.random.default_rng(0).permutation(indices).tolist()
    loader = DataLoader(
        Subset(Samples(data, decode), indices),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_identity,  # The default would convert arrays to tensors.
        generator=torch.Generator(),  # The loader must not draw from the global one, which training uses.
    )
    start = time.monotonic()
    bar = {"desc": name} if description is None else {"desc": description, "delay": 2, "leave": False}
    for index, sample in zip(indices, tqdm(loader, unit="picture", disable=None, **bar)):
        survey.add(index, sample)
        if seconds is not None and time.monotonic() - start > seconds:
            break
    return survey


def remark_on_number(name: str, found: int, expected: int | None) -> list[str]:
    """Return a sentence if a split has another number of pictures than in the papers (`None`: not a benchmark)."""
    return [] if expected in (None, found) else [f"{name} has {found} pictures, but {expected} in the papers."]


def remark_on_overlaps(surveys: Sequence[Survey]) -> list[str]:
    """Return a sentence for each two splits that have pictures in common, by their bytes, whatever their names are."""
    remarks = []
    for first, second in combinations(sorted(surveys, key=lambda survey: survey.name != "train"), 2):
        common = [name for content, names in second.contents.items() if content in first.contents for name in names]
        if common:
            are = "picture of {} is" if len(common) == 1 else "pictures of {} are"
            remarks.append(f"{len(common)} {are.format(second.name)} also in {first.name}, such as {common[0]}.")
    return remarks


def remark_on_data(data: DatasetDict, split: ClassSplit, arguments: DataArguments, num_workers: int = 0) -> None:
    """
    Print what is probably a mistake in the data of training or evaluation, in the main process only.

    Args:
        data: From [`load_data`].
        split: The classes.
        arguments: The arguments of [`load_data`].
        num_workers: Number of worker processes.

    Raises:
        InputError: In all processes, if masks contain values without a class or a file is broken, and
            `skip_bad_samples` is not set; or if all training masks were read and none has a class to train on.
    """
    if arguments.dataset == "picture_world":  # Its masks are exact by construction.
        return
    faults = [_find_fault(data, split, arguments, num_workers)] if PartialState().is_main_process else []
    for fault in gather_object(faults):
        if fault is not None:
            raise InputError(fault)


def _find_fault(data: DatasetDict, split: ClassSplit, arguments: DataArguments, num_workers: int) -> str | None:
    """Print the remarks, and return the first fault that stops training."""
    said: set[str] = set()
    for role, rows in sorted(data.items()):  # train before validation
        name = arguments.train_split if role == "train" else str(arguments.eval_split)
        survey = survey_pictures(
            name,
            rows,
            split,
            decode=False,
            num_workers=num_workers,
            most=MOST_LOOKED_AT,
            seconds=MOST_SECONDS,
            description=f"{name}: reading masks",
        )
        ids: Collection[int] = (*split.seen_ids, *split.unseen_ids)
        if role == "train":
            ids = range(len(split.names)) if arguments.setting == "fully_supervised" else split.seen_ids
        limit = arguments.num_train_pictures if role == "train" else arguments.num_eval_pictures
        expected = read_class_lists().get(arguments.dataset, {}).get("num_pictures", {}).get(name)
        remarks = [] if limit is not None else remark_on_number(name, len(rows), expected)
        for remark in remarks + survey.find_remarks(ids):
            if remark not in said:  # Both splits may be the same.
                print(f"note: {remark}")
                said.add(remark)
        unnamed = survey.describe_unnamed()
        if arguments.skip_bad_samples:
            if unnamed is not None and unnamed not in said:
                print(f"note: {unnamed}")
                said.add(unnamed)
        elif unnamed is not None:
            return unnamed
        elif survey.broken:
            first, *others = (survey.broken[index] for index in sorted(survey.broken))
            return f"{first} ({len(others)} more pictures of {name} are broken.)" if others else first
        if role == "train" and survey.is_whole and not survey.pixels[list(ids)].any():
            return f"{name}: no pixel of any mask has a class to train on."
    return None


def _count_values(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted distinct values of a mask, and how often each occurs; np.bincount is faster than np.unique."""
    if ids.min(initial=0) < 0 or ids.max(initial=0) > 65535:
        return np.unique(ids, return_counts=True)
    counts = np.bincount(ids.ravel())
    values = np.flatnonzero(counts)
    return values, counts[values]


def _identity(sample: Any) -> Any:
    return sample
