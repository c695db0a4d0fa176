"""What the pictures and masks of a data set hold, and what of it is probably a mistake."""

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, Image
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from zegclip.processing.benchmarks import read_class_lists
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.datasets import check_sizes, find_files
from zegclip.processing.image_reading import load_class_ids, load_rgb, read_frame, read_palette
from zegclip.training.arguments import DataArguments
from zegclip.training.pictures import spread_evenly

MOST_LOOKED_AT, MOST_SECONDS = 2000, 60
"""Masks of a split, and time to look at them, before a training or an evaluation."""
_MOST_NAMED = 20  # Classes or ranges of values in one sentence.
# Values that count as no class unless they are named.
_IGNORED_BY_DEFAULT = (255, 65535)
# Of the pixels. Borders and what nobody labelled seldom take more.
_MUCH_IGNORED = 0.25


class Sample(NamedTuple):
    """
    What is known of one picture and its mask, or why they cannot be used.

    Attributes:
        picture: What errors call the picture.
        mask: What they call the mask.
        size: Width and height of both.
        values: Values of the mask, `(n,)`, each once, in order.
        counts: How many pixels have each.
        colours: Their colours in the mask's palette, of those that have one there.
        turned: Whether one of the two is turned by its EXIF orientation and the other is not, although they fit as
            they are stored, so that sizes do not tell which was meant.
        fault: Why they cannot be used; empty if they can.
    """

    picture: str = ""
    mask: str = ""
    size: tuple[int, int] = (0, 0)
    values: np.ndarray = np.zeros(0, dtype=np.int64)
    counts: np.ndarray = np.zeros(0, dtype=np.int64)
    colours: Sequence[Sequence[int]] = ()
    turned: bool = False
    fault: str = ""


class Samples(torch.utils.data.Dataset):
    """
    Reads masks and counts their values.

    Args:
        data: Rows with `image` and `mask`, of which the files are read here.
        decode: Whether to read pictures whole too, and not only their headers.
    """

    def __init__(self, data: Dataset, decode: bool) -> None:
        for column in ("image", "mask"):
            data = data.cast_column(column, Image(decode=False))
        self.data = data
        self.decode = decode

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        try:
            (picture, picture_name), (mask, mask_name) = find_files(self.data[index], index)
            orientation, stored = read_frame(picture, name=picture_name)
            size = stored[::-1] if orientation >= 5 else stored
            if self.decode:
                size = load_rgb(picture, name=picture_name).size
            ids = load_class_ids(mask, name=mask_name)
            check_sizes(picture_name, size, mask_name, (ids.shape[1], ids.shape[0]))
            values, counts = _count_values(ids)
            palette = read_palette(mask, name=mask_name)
            mask_orientation, mask_stored = read_frame(mask, name=mask_name)
        except (ValueError, OSError) as error:
            return Sample(fault=str(error))
        colours = (
            [] if palette is None else [tuple(colour) for colour in palette[values[values < len(palette)]].tolist()]
        )
        turned = orientation != mask_orientation and stored == mask_stored
        return Sample(picture_name, mask_name, size, values, counts, colours, turned)


@dataclass
class Survey:
    """
    What was found in a split.

    Args:
        name: Of the split.
        split: The classes.
        total: How many pictures the split has.

    Attributes:
        broken: For each picture that training could not use, by its number, a sentence.
        unnamed: Numbers of those among them whose masks are whole, but hold values without a class.
        sizes: Width and height of each picture that could be read.
        pictures: In how many of these each class occurs, `(classes,)` int64.
        pixels: On how many pixels, `(classes,)` int64.
        unknown: Pixels of each value that is neither a class nor ignored.
        ignored: Pixels of each value that is ignored.
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
    _looked_at: int = 0
    _masks_with: Counter[int] = field(default_factory=Counter)
    _turned: list[str] = field(default_factory=list)
    _first_unnamed: str = ""
    # For each index in a palette the colours that it has: in how many masks, and in which first.
    _palettes: dict[int, dict[tuple[int, ...], tuple[int, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pictures, self.pixels = np.zeros((2, len(self.split.names)), dtype=np.int64)

    @property
    def num_pixels(self) -> int:
        """All pixels of the pictures that could be read."""
        return sum(width * height for width, height in self.sizes)

    def add(self, index: int, sample: Sample) -> None:
        """Count one picture."""
        self._looked_at += 1
        if sample.fault:
            self.broken[index] = sample.fault
            return
        self.sizes.append(sample.size)
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
        self.pixels[labels[is_class]] += counts[is_class]
        self.ignored.update(dict(zip(sample.values[known][~is_class].tolist(), counts[~is_class].tolist())))
        if sample.turned:
            self._turned.append(sample.picture)
        for value, colour in zip(sample.values.tolist(), sample.colours):
            colours = self._palettes.setdefault(value, {})
            count, first = colours.get(tuple(colour), (0, sample.mask))
            colours[tuple(colour)] = (count + 1, first)

    def describe_unnamed(self) -> str | None:
        """Say in one sentence which values have no name; `None` if all have one."""
        if not self.unnamed:
            return None
        shown = self.split.format_values(self.unknown.keys())
        if shown.count(",") >= _MOST_NAMED:
            shown = f"{len(self.unknown)} ones from {min(self.unknown)} to {max(self.unknown)}"
        one = len(self.unknown) == 1
        value, occurs, it = ("value", "occurs", "it") if one else ("values", "occur", "them")
        return (
            f"{self.name}: {value} {shown} {occurs} in {self._of_masks(len(self.unnamed))}, "
            f"{self._share(sum(self.unknown.values()))} of the pixels: name {it} in classes.txt or id2label.json, or "
            f"ignore {it} (by a name that is listed in ignored_classes); the first is {self._first_unnamed}."
        )

    def find_remarks(self, ids: Collection[int]) -> list[str]:
        """
        Say in one sentence each what can be used but is probably a mistake.

        Args:
            ids: Classes that should have pixels.
        """
        found = (self._remark_on_classes(ids), self._remark_on_palettes(), self._remark_on_turns())
        return [remark for remark in found if remark is not None]

    def _remark_on_classes(self, ids: Collection[int]) -> str | None:
        absent = [self.split.names[index] for index in sorted(ids) if self.sizes and not self.pixels[index]]
        names = ", ".join(absent[:_MOST_NAMED])
        if len(absent) > _MOST_NAMED:
            names += f" and {len(absent) - _MOST_NAMED} more"
        value = max(_IGNORED_BY_DEFAULT, key=lambda value: self.ignored[value])
        pixels = self.ignored[value]
        if not pixels or not (absent or pixels > _MUCH_IGNORED * self.num_pixels):
            return f"{self.name} has no pixel of {names}{self._looked()}." if absent else None
        start = f"{self.name} has no pixel of {names}, and" if absent else f"{self.name}:"
        return (
            f"{start} value {value}, which is read as ignored, covers {self._share(pixels)} of the pixels, in "
            f"{self._of_masks(self._masks_with[value])}: if it stands for a class, name it in id2label.json as "
            f'"{value}", or write the masks with another value (0 and 1 instead of 0 and 255).'
        )

    def _remark_on_palettes(self) -> str | None:
        differing = {value: colours for value, colours in self._palettes.items() if len(colours) > 1}
        if not differing:
            return None
        value = min(differing)
        (usual, (count, _)), (other, (_, mask)), *_ = sorted(differing[value].items(), key=lambda item: -item[1][0])
        more = f" ({len(differing) - 1} more indices differ, too)" if len(differing) > 1 else ""
        return (
            f"{self.name}: palettes differ: index {value} has the colour {usual} in {self._of_masks(count)}, but "
            f"{other} in {mask}{more}: if it was colours that stood for classes, these indices do not."
        )

    def _remark_on_turns(self) -> str | None:
        if not self._turned:
            return None
        return (
            f"{self.name}: {len(self._turned)} of {len(self.sizes)} pictures{self._looked()} are turned by their EXIF "
            "orientation and their masks are not: if masks were drawn over the stored pixels, they lie on the wrong "
            f"side, and the pictures need to be stored upright; the first: {self._turned[0]}."
        )

    def _of_masks(self, count: int) -> str:
        return f"{count} of {len(self.sizes)} masks{self._looked()}"

    def _share(self, pixels: int) -> str:
        return f"{100 * pixels / max(self.num_pixels, 1):.1f} %"

    def _looked(self) -> str:
        return "" if self._looked_at == self.total else f" ({self._looked_at} of {self.total} looked at)"


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
        name: Of the split.
        data: Rows with `image` and `mask`.
        split: The classes.
        decode: Whether to read pictures whole, too; else the header tells their size and orientation.
        num_workers: Processes that read; 0: this one.
        most: How many to look at, evenly spread; `None`: all.
        seconds: Fewer are looked at where that takes longer; `None`: however long it takes.
        description: Of the progress bar; it then appears after some seconds and does not stay.
    """
    survey = Survey(name, split, len(data))
    indices = spread_evenly(len(data), len(data) if most is None else most)
    if seconds is not None:  # In an order of which any beginning is spread out, too.
        indices = np.random.default_rng(0).permutation(indices).tolist()
    loader = DataLoader(
        Subset(Samples(data, decode), indices),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_unchanged,
        generator=torch.Generator(),  # The global one is the training's.
    )
    start = time.monotonic()
    bar = {"desc": name} if description is None else {"desc": description, "delay": 2, "leave": False}
    for index, sample in zip(indices, tqdm(loader, unit="picture", disable=None, **bar)):
        survey.add(index, sample)
        if seconds is not None and time.monotonic() - start > seconds:
            break
    return survey


def remark_on_number(name: str, found: int, expected: int | None) -> list[str]:
    """Say where a split of a benchmark has not as many pictures as in the papers; `None`: it is no benchmark."""
    return [] if expected in (None, found) else [f"{name} has {found} pictures, but {expected} in the papers."]


def remark_on_data(data: DatasetDict, split: ClassSplit, arguments: DataArguments, num_workers: int = 0) -> None:
    """
    Print what is probably a mistake in the data of a training or an evaluation, in the main process alone.

    Args:
        data: From [`load_data`].
        split: The classes.
        arguments: What the data were loaded with.
        num_workers: Processes that read.

    Raises:
        ValueError: One sentence, if masks hold values without a class, or something else is broken, and bad samples
            are not to be skipped.
    """
    if arguments.dataset == "picture_world":  # Its scenes are exact by construction.
        return
    faults = [_find_fault(data, split, arguments, num_workers)] if PartialState().is_main_process else []
    for fault in gather_object(faults):
        if fault is not None:  # in every process, so that none waits for the others
            raise ValueError(fault)


def _find_fault(data: DatasetDict, split: ClassSplit, arguments: DataArguments, num_workers: int) -> str | None:
    """Print the remarks, and return what no training can go on with, if there is something."""
    for role, rows in sorted(data.items()):  # training first
        name = arguments.train_split if role == "train" else str(arguments.eval_split)
        survey = survey_pictures(
            name,
            rows,
            split,
            decode=False,
            num_workers=num_workers,
            most=MOST_LOOKED_AT,
            seconds=MOST_SECONDS,
            description=f"{name}: looking at masks",
        )
        ids: Collection[int] = (*split.seen_ids, *split.unseen_ids)
        if role == "train":
            ids = range(len(split.names)) if arguments.setting == "fully_supervised" else split.seen_ids
        limit = arguments.num_train_pictures if role == "train" else arguments.num_eval_pictures
        expected = read_class_lists().get(arguments.dataset, {}).get("num_pictures", {}).get(name)
        remarks = [] if limit is not None else remark_on_number(name, len(rows), expected)
        for remark in remarks + survey.find_remarks(ids):
            print(f"note: {remark}")
        unnamed = survey.describe_unnamed()
        if arguments.skip_bad_samples:
            if unnamed is not None:
                print(f"note: {unnamed}")
        elif unnamed is not None:
            return unnamed
        elif survey.broken:
            first, *others = (survey.broken[index] for index in sorted(survey.broken))
            return f"{first} ({len(others)} more of {name} are broken, too.)" if others else first
    return None


def _count_values(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a mask in order, and how often each occurs."""
    if ids.min(initial=0) < 0 or ids.max(initial=0) > 65535:
        return np.unique(ids, return_counts=True)
    counts = np.bincount(ids.ravel())
    values = np.flatnonzero(counts)
    return values, counts[values]


def _unchanged(sample: Any) -> Any:
    """Keep the loader from making tensors."""
    return sample
