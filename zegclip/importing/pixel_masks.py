"""Masks with one value or colour per pixel: what they hold is read from all of them before it is decided."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zegclip.errors import UsageError
from zegclip.importing.class_tables import ClassTable
from zegclip.importing.colours import Colour, label_colours, merge_near, nearest_listed, pack, unpack
from zegclip.importing.layouts import Pairs
from zegclip.importing.listing import ARRAY_SUFFIXES, Listing, one_line
from zegclip.importing.mask_files import load_ids
from zegclip.importing.painting import check_packages
from zegclip.importing.parallel import call_each
from zegclip.importing.shapes import read_cut_out, read_shape
from zegclip.importing.sources import IGNORED, ClassName, Item, Source, add_background, is_background, label_of
from zegclip.processing.class_split import ClassSplit, split_classes
from zegclip.processing.image_reading import load_colours, read_palette, read_storage
from zegclip.processing.input_error import InputError

_BLACK_AND_WHITE = np.array([[0, 0, 0], [255, 255, 255]])
_MOSTLY = 0.9
"""Share of the pixels with listed colours from which on masks are taken for colour-coded."""
_MOST_COLOURS = 256
_FEW_COLOURS = 32
"""So many may be those of classes, also in a file of a format that compresses with loss or without."""
_MOST_COUNTED = 1 << 17
_SMALLEST_SHARE = 0.0005
_IGNORED_VALUES = (255, 65535)


class Look(NamedTuple):
    """
    What one mask holds.

    Attributes:
        values: Its ids; `None` if it cannot be read as ids.
        is_bits: Whether it stores one bit per pixel, which may stand for 0 and 1 as for black and white.
        is_shape: Whether its transparency is a shape.
        is_lossy: Whether its colours have been changed by compression.
        colours: Its most frequent colours with their numbers of pixels; empty if it cannot be read as colours.
        other: Number of pixels of other colours.
        palette: Its ids with their colours, of a file with a palette of its own.
    """

    values: tuple[int, ...] | None = None
    is_bits: bool = False
    is_shape: bool = False
    is_lossy: bool = False
    colours: tuple[tuple[Colour, int], ...] = ()
    other: int = 0
    palette: tuple[tuple[int, Colour], ...] = ()


@dataclass
class Looks:
    """
    What all masks hold.

    Attributes:
        values: All ids.
        sets: The ids of each mask of more than one bit, as far as they are 0, 1 and the largest of 8 or 16 bits.
        have_shapes: Whether the transparency of a mask is a shape.
        exact: Colours of masks that were not compressed with loss.
        are_lossy: Whether there are others.
        have_ids: Whether every mask that can be read at all can be read as ids.
        colours: The frequent colours with their numbers of pixels.
        other: Number of pixels of other colours.
        palette: The ids of palettes with their colours.
        palettes_differ: Whether an id has different colours in different masks.
    """

    values: set[int] = field(default_factory=set)
    sets: set[frozenset[int]] = field(default_factory=set)
    have_shapes: bool = False
    exact: set[Colour] = field(default_factory=set)
    are_lossy: bool = False
    have_ids: bool = True
    colours: Counter[Colour] = field(default_factory=Counter)
    other: int = 0
    palette: dict[int, Colour] = field(default_factory=dict)
    palettes_differ: bool = False

    def add(self, look: Look) -> None:
        """Add a mask."""
        if look.values is None:
            self.have_ids &= not look.colours
        else:
            self.values.update(look.values)
            if not look.is_bits:
                self.sets.add(frozenset(look.values) & {0, 1, *_IGNORED_VALUES})
        self.have_shapes |= look.is_shape
        self.are_lossy |= look.is_lossy
        if not look.is_lossy:
            self.exact.update(colour for colour, _ in look.colours)
        self.colours.update(dict(look.colours))
        self.other += look.other
        if len(self.colours) > _MOST_COUNTED:  # of masks without clear borders
            kept = Counter(dict(self.colours.most_common(_MOST_COUNTED // 2)))
            self.other += self.colours.total() - kept.total()
            self.colours = kept
        for value, colour in look.palette:
            self.palettes_differ |= self.palette.setdefault(value, colour) != colour

    def share_of(self, colours: np.ndarray, exact: bool = False) -> float:
        """Return the share of the pixels that have listed colours, exactly or nearly."""
        if not self.colours:
            return 0.0
        found = np.array(list(self.colours))
        near = nearest_listed(found, colours) >= 0
        if exact:
            near = np.isin(pack(found), pack(colours))
        return float(np.array(list(self.colours.values()))[near].sum() / (self.colours.total() + self.other))

    def are_cut_out(self) -> bool:
        """Return whether transparency is the shape of masks, and all have the same colour beside black and white."""
        others = nearest_listed(np.array(list(self.colours)).reshape(-1, 3), _BLACK_AND_WHITE) < 0
        return self.have_shapes and others.sum() <= 1

    def list_colours(self) -> tuple[list[tuple[Colour, float]], float]:
        """
        Return the frequent colours with their shares of all pixels, and the share of all others. Those that only
        masks compressed with loss have, near a more frequent one, count as that.
        """
        total = max(self.colours.total() + self.other, 1)
        ordered = sorted(self.colours.items(), key=lambda row: (-row[1], row[0]))
        if self.are_lossy:
            ordered = merge_near(ordered, _SMALLEST_SHARE * total, self.exact)
        rows = [(colour, count / total) for colour, count in ordered if count / total >= _SMALLEST_SHARE]
        rows = rows[:_MOST_COLOURS]
        return rows, 1 - sum(share for _, share in rows)


def read_pixel_masks(
    listing: Listing, pairs: Pairs, table: ClassTable | None, kind: str | None, variable: str | None, num_workers: int
) -> Source:
    """
    Read masks with one file per picture.

    Args:
        listing: The source.
        pairs: Pictures, each with one mask.
        table: Names of the classes, if there are any.
        kind: `ids`, `colours` or `binary`; `None`: what the masks prove.
        variable: Name of the array in `.mat` files.
        num_workers: Number of processes.

    Raises:
        UsageError: If the names are missing, or do not fit the masks. Colours without names are an
            [`UnnamedColoursError`].
    """
    files = {picture: listing.path(masks[0][0].path) for picture, masks in pairs.masks.items()}
    if any(path.suffix.lower() == ".mat" for path in files.values()):
        check_packages("scipy")
    paths = list(dict.fromkeys(files.values()))
    looks = Looks()
    for look in call_each(partial(look_at, variable=variable), paths, num_workers, "Looking at masks"):
        looks.add(look)
    decision = _decide(listing, looks, table, kind, variable)
    notes = pairs.notes + decision.notes
    source = Source(decision.kind, decision.names, [], notes, pairs.skipped)
    for picture, path in files.items():
        read = partial(decision.read, path)
        item = Item(listing.path(picture.path), pairs.splits[picture], pairs.names[picture], str(path), read)
        source.items.append(item)
    return source


@dataclass(frozen=True)
class _Decision:
    kind: str
    names: list[ClassName]
    read: Any
    notes: list[str]


def _decide(
    listing: Listing, looks: Looks, table: ClassTable | None, kind: str | None, variable: str | None
) -> _Decision:
    if kind is None:
        kind = _prove_kind(looks, table)
    names = [] if table is None else table.names
    if kind == "colours":
        if table is None or table.colours is None:
            raise UnnamedColoursError(looks.list_colours())
        notes = [f"masks are colour-coded; {table.path} names the colours.", *_remark_on_colours(looks, table)]
        colours = table.colour_array()
        owners = np.array([index for _, index in table.colours], dtype=np.int64)
        return _Decision(kind, list(names), partial(label_colours, colours=colours, owners=owners), notes)
    if kind == "binary":
        return _decide_binary(listing, table)
    if table is None:
        raise UsageError(
            f"{listing.root}: nothing names the classes of the values {ClassSplit.format_values(looks.values)} in the "
            "masks: give the names with --classes, a text file with one name per line, the first for value 0, or JSON "
            'such as {"11": "wall"}.'
        )
    if len(names) == 1 and table.values is None and {0, 1} <= looks.values <= {0, 1, *_IGNORED_VALUES}:
        table = replace(table, names=add_background(names)[0])
    split, notes = _split_of_values(looks.values, table)
    return _Decision("ids", list(table.names), partial(read_ids, split=split, variable=variable), notes)


def _prove_kind(looks: Looks, table: ClassTable | None) -> str:
    """Return the reading of the masks that their values, colours and palettes prove."""
    few_names = table is None or (len(table.names) <= 2 and table.values is None and table.colours is None)
    if few_names and looks.are_cut_out():
        return "binary"
    if not looks.have_ids:
        black_and_white = few_names and looks.share_of(_BLACK_AND_WHITE) >= _MOSTLY
        return "binary" if black_and_white else "colours"
    one_name = table is not None and len(table.names) == 1
    # One bit per pixel goes with either reading.
    values = set().union(*looks.sets) if looks.sets else looks.values
    if few_names and looks.values <= {0, 1, *_IGNORED_VALUES}:
        largest = values & set(_IGNORED_VALUES)
        if (largest and 1 not in values) or (one_name and not largest):
            return "binary"
        if largest and not any(1 in of_mask and of_mask & largest for of_mask in looks.sets):
            raise UsageError(
                f"some masks have the value 1 and others {max(largest)}, but none has both: give --format binary if "
                f"both are the class, or --format ids if pixels of {max(largest)} are to be ignored."
            )
    if looks.palettes_differ:
        return "colours"
    if table is None or table.colours is None:
        return "ids"
    exactly = looks.share_of(table.colour_array(), exact=True)
    # Grey values may be meant as ids even if black, which is 0, is most of them.
    known = {*(table.values or range(len(table.names))), *_IGNORED_VALUES}
    as_ids = not looks.palette and looks.values <= known
    return "colours" if exactly == 1 or (exactly >= _MOSTLY and not as_ids) else "ids"


def _remark_on_colours(looks: Looks, table: ClassTable) -> list[str]:
    """Return a sentence on frequent colours that are not listed."""
    rows, _ = looks.list_colours()
    near = nearest_listed(np.array([colour for colour, _ in rows]).reshape(-1, 3), table.colour_array())
    unlisted = [(colour, share) for (colour, share), index in zip(rows, near) if index < 0]
    if not unlisted:
        return []
    shown = ", ".join(f"{colour} on {100 * share:.2f} % of the pixels" for colour, share in unlisted[:5])
    number = "1 colour is" if len(unlisted) == 1 else f"{len(unlisted)} colours are"
    return [f"{number} not in {table.path} and ignored: {shown}."]


def _decide_binary(listing: Listing, table: ClassTable | None) -> _Decision:
    names: list[ClassName] = [] if table is None else list(table.names)
    if len(names) == 1:
        names, _ = add_background(names)
    if len(names) != 2:
        raise UsageError(
            f"{listing.root}: the masks have the values 0 and 255 alone, so there is one class: give its name with "
            "--classes, a text file with one line; --format class-masks takes it from names of files or folders, and "
            "--format ids ignores 255 instead."
        )
    notes = [f"masks are black for {label_of(names[0])!r} and white for {label_of(names[1])!r}."]
    return _Decision("binary", names, _read_binary, notes)


def _split_of_values(values: set[int], table: ClassTable) -> tuple[ClassSplit, list[str]]:
    """Return which value belongs to which class, and notes."""
    notes = []
    count = len(table.names)
    first = 0
    if table.values is None:
        named = values - set(_IGNORED_VALUES)
        if named and max(named) == count:  # One more than names, so they begin with 1.
            if 0 in named and is_background(table.names[0]):
                raise UsageError(
                    f"{table.path} has {count} names, the first of the background, and masks have the values 0 to "
                    f'{count}: give values with --classes, a JSON file such as {{"0": "background", "1": "cat"}}.'
                )
            first = 1
            zero = "; 0 is ignored" if 0 in values else ""
            notes.append(f"the values 1 to {count} are the classes of {table.path} in their order{zero}.")
        elif named and 0 not in named:
            notes.append(
                f"no mask has the value 0, which is {label_of(table.names[0])!r}: if the first class has the value 1, "
                'give the values with --classes, a JSON file such as {"1": "wall"}.'
            )
    of_classes = table.values or range(first, first + count)
    ignored = [*(value for value in _IGNORED_VALUES if value not in of_classes), *([0] if first else [])]
    return split_classes(table.names, mask_values=list(of_classes), ignored_values=ignored), notes


def look_at(path: Path, variable: str | None = None) -> Look:
    """Read what a mask holds; an empty [`Look`] if it cannot be read, which is reported when it is imported."""
    is_array = path.suffix.lower() in ARRAY_SUFFIXES
    values: np.ndarray | None = None
    colours: tuple[tuple[Colour, int], ...] = ()
    used: tuple[Any, ...] = ()
    other = 0
    mode, may_be_lossy, is_shape = "", False, False
    with suppress(InputError, OSError):
        if not is_array:
            mode, may_be_lossy = read_storage(path)
            is_shape = read_cut_out(path) is not None
    with suppress(InputError, OSError):
        values = np.unique(load_ids(path, variable))
        palette = None if is_array else read_palette(path)
        if palette is not None:
            inside = values[values < len(palette)].tolist()
            used = tuple(zip(inside, map(tuple, palette[inside].tolist())))
    with suppress(InputError, OSError):  # of 16 bits, for example
        colours, other = ((), 0) if is_array else _count_colours(load_colours(path))
    ids = None if values is None else tuple(values.tolist())
    return Look(ids, mode == "1", is_shape, may_be_lossy and len(colours) > _FEW_COLOURS, colours, other, used)


def _count_colours(pixels: np.ndarray) -> tuple[Any, int]:
    values, counts = np.unique(pack(pixels), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_COLOURS]
    found = tuple(zip(map(tuple, unpack(values[order]).tolist()), counts[order].tolist()))
    return found, int(counts.sum() - counts[order].sum())


def read_ids(path: Path, split: ClassSplit, variable: str | None = None) -> np.ndarray:
    """Read a mask whose values are ids; `(height, width)` int64 positions. Raises as [`load_class_ids`]."""
    try:
        labels = split.labels_of(load_ids(path, variable))
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{one_line(path)}: {error}") from error
    return np.where(labels == split.ignore_index, IGNORED, labels)


def _read_binary(path: Path) -> np.ndarray:
    return read_shape(path).astype(np.int64)


class UnnamedColoursError(UsageError):
    """
    Masks are colour-coded, and nothing names the colours.

    Args:
        found: The colours with their shares of the pixels, and the share of all others.
    """

    def __init__(self, found: tuple[list[tuple[Colour, float]], float]) -> None:
        super().__init__("the masks are colour-coded, and nothing names the colours.")
        self.colours, self.other = found
