"""The classes of a data set, which of them training sees, and the labels that follow from that."""

import difflib
import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from .input_error import InputError
from .names import fold_name, split_synonyms

Setting = Literal["inductive", "transductive", "fully_supervised"]
"""What training sees of the unseen classes: nothing, their names and where their pixels are, or everything."""

UNLABELLED = -1
"""Label in transductive training of pixels whose class has no mask there; pseudo labels fill it."""

_UNKNOWN = -2


@dataclass(frozen=True)
class ClassSplit:
    """
    Class names of a data set and their zero-shot split (generalised zero-shot protocol).

    Args:
        names: All class names; the position is the id in the label maps.
        seen_ids: Ids whose masks are trained on.
        unseen_ids: Ids whose masks are held out, and which mIoU(U) is the mean over. Ids in neither list compete for
            pixels but enter neither mean.
        groups: Further sets of ids to report the same means over, such as objects without backgrounds.
        ignore_index: Label of pixels without a class; larger than every id.
        mask_values: The value that mask files use for each class; `None`: the id.
        ignored_values: Values in mask files of pixels without a class.
        merged_values: Further values in mask files that belong to a class, with its id.
        names_of: For classes that have several names, or others than their own: all of these names. The best of them
            decides.

    Raises:
        InputError: If any of these contradict each other.
    """

    names: tuple[str, ...]
    seen_ids: tuple[int, ...]
    unseen_ids: tuple[int, ...] = ()
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ignore_index: int = 255
    mask_values: tuple[int, ...] | None = None
    ignored_values: tuple[int, ...] = (255,)
    merged_values: dict[int, int] = field(default_factory=dict)
    names_of: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for names in (self.names, self.all_names()):
            if (repeated := _first_repeated(names)) is not None:
                raise InputError(f"The class name {repeated!r} occurs twice.")
        if unknown := self.names_of.keys() - set(self.names):
            raise InputError(f"There are names of {min(unknown)!r}, which is not a class.")
        if without := [name for name, names in self.names_of.items() if not names]:
            raise InputError(f"The class {without[0]!r} has no name.")
        outside = [i for i in (*self.seen_ids, *self.unseen_ids) if not 0 <= i < len(self.names)]
        if outside:
            raise InputError(f"The split contains the id {outside[0]}, but there are {len(self.names)} classes.")
        if both := set(self.seen_ids) & set(self.unseen_ids):
            raise InputError(f"The class {self.names[min(both)]!r} is listed as seen and as unseen.")
        if self.ignore_index < len(self.names):
            raise InputError(
                f"ignore_index={self.ignore_index} must be larger than every id of the {len(self.names)} classes: use "
                f"ignore_index={255 if len(self.names) <= 255 else 65535}."
            )
        self._check_mask_values()

    def _check_mask_values(self) -> None:
        values = self._values
        if len(values) != len(self.names):
            raise InputError(f"There are {len(self.names)} classes, but {len(values)} mask values.")
        owners = [*zip(values, self.names), *((value, self.names[i]) for value, i in self.merged_values.items())]
        values = tuple(value for value, _ in owners)
        repeated = _first_repeated(values)
        if repeated is not None:
            first, second = (name for value, name in owners if value == repeated)
            raise InputError(f"The mask value {repeated} belongs to two classes, {first!r} and {second!r}.")
        if both := set(values) & set(self.ignored_values):
            name = dict(owners)[min(both)]
            raise InputError(f"The mask value {min(both)} belongs to the class {name!r} and is also ignored.")
        outside = [value for value in (*values, *self.ignored_values) if not 0 <= value <= 65535]
        if outside:
            raise InputError(f"A mask value must lie between 0 and 65535, not be {outside[0]}.")

    def nested_names(self, ids: Iterable[int] | None = None) -> list[list[str]]:
        """Return all names of each class, or of those with the given ids, as the processor takes them."""
        classes = self.names if ids is None else [self.names[index] for index in ids]
        return [list(self.names_of.get(name, (name,))) for name in classes]

    def all_names(self, ids: Iterable[int] | None = None) -> list[str]:
        """Return [`ClassSplit.nested_names`] as one list."""
        return [name for names in self.nested_names(ids) for name in names]

    def classes_among(self, ids: Iterable[int], names: Iterable[str]) -> list[str]:
        """Return those of the classes with these ids of which any name is among `names`, see [`fold_name`]."""
        known = set(map(fold_name, names))
        return [
            self.names[index]
            for index in ids
            if not known.isdisjoint(map(fold_name, [self.names[index], *self.all_names([index])]))
        ]

    @property
    def seen_names(self) -> list[str]:
        """Names of the seen classes, in the order of `seen_ids`."""
        return [self.names[index] for index in self.seen_ids]

    @property
    def _values(self) -> tuple[int, ...]:
        return tuple(range(len(self.names))) if self.mask_values is None else self.mask_values

    @property
    def known_values(self) -> list[int]:
        """Values that mask files may contain: those of the classes and the ignored ones."""
        return [*self._values, *self.merged_values, *self.ignored_values]

    @cached_property
    def _labels_by_value(self) -> np.ndarray:
        """The label of each mask value, up to the largest known one."""
        table = np.full(max(0, *self.known_values) + 1, _UNKNOWN)
        table[list(self.ignored_values)] = self.ignore_index
        table[list(self._values)] = np.arange(len(self.names))
        table[list(self.merged_values)] = list(self.merged_values.values())
        return table

    def labels_of(self, mask_values: np.ndarray) -> np.ndarray:
        """
        Map the values of a mask file to ids.

        Args:
            mask_values: Integers of any shape.

        Returns:
            int64 ids or the ignore index, of the same shape.

        Raises:
            InputError: If a value neither belongs to a class nor is ignored.
        """
        table = self._labels_by_value
        if mask_values.size == 0:
            return np.zeros(mask_values.shape, dtype=np.int64)
        if mask_values.min() >= 0 and mask_values.max() < len(table):
            labels = table[mask_values]
            if labels.min() != _UNKNOWN:
                return labels
        raise InputError(self.unknown_value_message(np.setdiff1d(mask_values, self.known_values)[0]))

    def unknown_value_message(self, value: int) -> str:
        """Return the error message for a mask value that neither belongs to a class nor is ignored."""
        of_classes, ignored = map(self.format_values, ([*self._values, *self.merged_values], self.ignored_values))
        return (
            f"The mask contains the value {value}, which neither belongs to a class ({of_classes}) nor is ignored "
            f"({ignored})."
        )

    @staticmethod
    def format_values(values: Collection[int]) -> str:
        """Format numbers as in "0 to 4 and 7"."""
        ordered = sorted(values)
        starts = [value for value in ordered if value - 1 not in values]
        ends = [value for value in ordered if value + 1 not in values]
        texts = [str(start) if start == end else f"{start} to {end}" for start, end in zip(starts, ends)]
        return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts) or "none"

    def training_ids(self, setting: Setting) -> tuple[int, ...]:
        """Return the ids that are queries in training: inductive, the seen ones; else all (ZegCLIP section 4.1)."""
        return self.seen_ids if setting == "inductive" else tuple(range(len(self.names)))

    def training_labels(self, labels: np.ndarray, setting: Setting = "inductive") -> np.ndarray:
        """
        Map ids to what training sees of them: positions in `training_ids`.

        Args:
            labels: int64 ids or the ignore index, of any shape.
            setting: Inductive: classes that are not seen are ignored. Transductive: they are `UNLABELLED`. Fully
                supervised: nothing changes.

        Returns:
            int64, the same shape.

        Raises:
            InputError: As [`ClassSplit.check`].
        """
        self.check(labels)
        if setting == "fully_supervised":
            return labels
        not_seen = self.ignore_index if setting == "inductive" else UNLABELLED
        table = np.full(self.ignore_index + 1, not_seen)
        table[self.ignore_index] = self.ignore_index
        table[list(self.seen_ids)] = np.arange(len(self.seen_ids)) if setting == "inductive" else self.seen_ids
        return table[labels]

    def check(self, labels: np.ndarray) -> None:
        """Raise `InputError` if a label is neither an id nor the ignore index."""
        unknown = (labels != self.ignore_index) & ((labels < 0) | (labels >= len(self.names)))
        if unknown.any():
            raise InputError(
                f"A label map holds the id {int(labels[unknown][0])}, which is not in the class list "
                f"(0 to {len(self.names) - 1}, or {self.ignore_index} to ignore)."
            )


def split_classes(
    names: Sequence[str | Sequence[str]],
    *,
    seen: Collection[str] | None = None,
    unseen: Collection[str] | None = None,
    ignored: Collection[str] = (),
    mask_values: Sequence[int] | None = None,
    ignored_values: Sequence[int] | None = None,
) -> ClassSplit:
    """
    Split classes by name.

    Args:
        names: All class names. A list in place of a name holds the names of one class, which is called by the first.
        seen: Names of the seen classes; `None`: all except the unseen.
        unseen: Names of the unseen classes; `None`: all except the seen, or none if `seen` is `None` as well.
        ignored: Names to remove from the list. Pixels of these classes are ignored.
        mask_values: The value that mask files use for each name; `None`: its position.
        ignored_values: Values in mask files of pixels without a class; `None`: 255, or 65535 if 255 is a class.

    Returns:
        The split; ids are positions among the names that remain. The ignore index is 255, or 65535 if more than 255
        names remain.

    Raises:
        InputError: If a name is unknown, is in two of the lists or occurs twice, all are ignored, or mask values
            contradict each other.
    """
    names_of = {item[0]: tuple(item) for item in names if not isinstance(item, str)}
    labels = [item if isinstance(item, str) else item[0] for item in names]
    values = tuple(range(len(labels))) if mask_values is None else tuple(mask_values)
    if ignored_values is None:
        ignored_values = (65535,) if 255 in values else (255,)
    # Checks the names and values as given, before some are removed.
    ClassSplit(
        tuple(labels),
        (),
        ignore_index=65535,
        mask_values=values,
        ignored_values=tuple(ignored_values),
        names_of=names_of,
    )
    for role, group in {"seen": seen, "unseen": unseen, "ignored": ignored}.items():
        for name in group or ():
            if name not in labels:
                close = difflib.get_close_matches(name, labels, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else "."
                if owner := [label for label, synonyms in names_of.items() if name in synonyms]:
                    hint = f"; it is another name of {owner[0]!r}."
                raise InputError(f"The class {name!r}, listed as {role}, is not among the {len(labels)} classes{hint}")
            if role != "ignored" and name in ignored:
                raise InputError(f"The class {name!r} is listed as {role} and as ignored.")
    kept = [(name, value) for name, value in zip(labels, values) if name not in ignored]
    if not kept:
        raise InputError("All classes are ignored." if labels else "The list of class names is empty.")
    if seen is None:
        seen = [name for name, _ in kept if name not in (unseen or ())]
    if unseen is None:
        unseen = [name for name, _ in kept if name not in seen]
    extra = [value for name, value in zip(labels, values) if name in ignored]
    return ClassSplit(
        names=tuple(name for name, _ in kept),
        seen_ids=tuple(index for index, (name, _) in enumerate(kept) if name in seen),
        unseen_ids=tuple(index for index, (name, _) in enumerate(kept) if name in unseen),
        ignore_index=255 if len(kept) <= 255 else 65535,
        mask_values=tuple(value for _, value in kept),
        ignored_values=(*ignored_values, *extra),
        names_of={name: names_of[name] for name, _ in kept if name in names_of},
    )


def are_numbered(lines: Sequence[str]) -> bool:
    """Return whether a number stands before each name, such as `7: wall`, or as in `0 wall`, `1 floor`, `2 door`."""
    found = [re.match(r"\s*(\d+)\s*([:;\t]|[.,)]?(?=\s|(?<=\s)\S))", line) for line in lines if line.strip()]
    matches = [match for match in found if match is not None]
    if not matches or len(matches) < len(found):
        return False
    # A name may begin with a number, too.
    numbers = [int(match[1]) for match in matches]
    counted = len(numbers) > 2 and numbers[0] < 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return counted or all(match[2] and match[2] in ":;\t" for match in matches)


def refuse_comments(lines: Iterable[str], what: str) -> None:
    """Raise `InputError` for a line that looks like a comment, which would become a name."""
    for line in lines:
        if line.lstrip().startswith("#"):
            raise InputError(f"each line is a {what}, and {line.strip()!r} looks like a comment: remove it.")


def read_class_names(path: str | os.PathLike) -> tuple[list[str | list[str]], list[int]]:
    """
    Read the class names of a data set from a file.

    Args:
        path: A JSON file from mask values to names, such as `{"0": "wall", "1": ["sofa", "couch"]}`; or, if its name
            does not end in `.json`, a text file with one class a line, the first for mask value 0, such as
            `sofa/couch`, without comments.

    Returns:
        The name of each class, or a list of its names where it has several; and the mask value of each.

    Raises:
        InputError: If the file cannot be read or is in another format, has no name, or a name is blank or occurs
            twice.
    """
    path = os.fspath(path)
    text = read_text(path)
    if path.endswith(".json"):
        pairs = _parse_id2label(path, text)
    else:
        lines = text.rstrip().split("\n")
        # Colour tables, numbered lists and JSON would become names without an error, also below a header.
        rows = lines[1:] if len(lines) > 1 and re.search(r"[:;,\t]", lines[0]) else lines
        columns = (r"\s*\d+\s*[:;,\t]", r".*[:;,\t]\s*\d+\s*$")
        numbered = are_numbered(lines) or any(all(re.match(column, row) for row in rows) for column in columns)
        if lines[0].lstrip().startswith(("{", "[")) or numbered:
            raise InputError(
                f"{path}: expected one name a line, the first for mask value 0, but the first line is {lines[0]!r}. "
                'To give mask values as well, use a .json file such as {"0": "wall", "1": "floor"}.'
            )
        try:
            refuse_comments(lines, "class name")
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        pairs = list(enumerate(map(split_synonyms, lines if text.strip() else [])))
    classes = [list(dict.fromkeys(name.strip() for name in names)) for _, names in pairs]
    values = [value for value, _ in pairs]
    if not classes:
        raise InputError(f"{path}: this file contains no class name.")
    for value, names in zip(values, classes):
        if "" in names:
            raise InputError(f"{path}: the name of mask value {value} is blank.")
    lists: dict[str, Sequence] = {"name": [name for names in classes for name in names], "mask value": values}
    for what, items in lists.items():
        if (repeated := _first_repeated(items)) is not None:
            raise InputError(f"{path}: the {what} {repeated!r} occurs twice.")
    return [names if len(names) > 1 else names[0] for names in classes], values


def _parse_id2label(path: str, text: str) -> list[tuple[int, list[str]]]:
    try:
        # Objects as pairs: of two equal keys, a dictionary would keep the second.
        content = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: this file is not JSON.") from error
    if not isinstance(content, tuple):
        raise InputError(f'{path}: expected an object such as {{"0": "wall", "1": "floor"}}.')
    pairs = []
    for key, name in content:
        names = name if isinstance(name, list) and name else [name]
        if not re.fullmatch("[0-9]{1,9}", key) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{path}: {key!r}: {name!r} is not a mask value with a class name.")
        pairs.append((int(key), names))
    return sorted(pairs)


def read_text(path: str) -> str:
    """Read a text file in UTF-8; raise `InputError` if it does not exist or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"There is no file {path}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: this file is not UTF-8 text.") from error


def _first_repeated(items: Sequence) -> object | None:
    known = set()
    for item in items:
        if item in known:
            return item
        known.add(item)
    return None


__all__ = [
    "UNLABELLED",
    "ClassSplit",
    "Setting",
    "are_numbered",
    "read_class_names",
    "read_text",
    "refuse_comments",
    "split_classes",
]
