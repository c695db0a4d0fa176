"""What every reader of a foreign format returns, and the writer takes: pictures, and how to get their class maps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

IGNORED = -1
"""Id of pixels that the source itself leaves without a class."""
UNLISTED = -2
"""Id of pixels whose colour is near no listed one: ignored too, but counted."""
BACKGROUND = "background"
"""Class of pixels that no outline or brush covers, in formats that store only what is covered."""

ClassName = str | list[str]
"""A name, or the names of one class where it has several."""


class Skipped(NamedTuple):
    """A file that was not imported, and the reason."""

    file: str
    reason: str


@dataclass(frozen=True)
class Item:
    """
    A picture with its class map.

    Attributes:
        picture: Its file.
        split: Name of its split.
        name: Its path within the split, without suffix; folders are separated by "/".
        mask: What errors call its mask.
        read: Returns the class map, `(height, width)` int64: positions in the source's `class_names`, `IGNORED` or
            `UNLISTED`. It can be pickled, so that other processes can call it.
    """

    picture: Path
    split: str
    name: str
    mask: str
    read: Callable[[], np.ndarray]


@dataclass
class Source:
    """
    What a reader has found.

    Attributes:
        format: Name of the format, as of `--format`.
        class_names: The classes, in the order of the ids.
        items: The pictures.
        notes: A sentence on each choice that was made between several readings.
        skipped: Files that cannot be imported.
    """

    format: str
    class_names: list[ClassName]
    items: list[Item]
    notes: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def label_of(name: ClassName) -> str:
    """Return the first name of a class."""
    return name if isinstance(name, str) else name[0]


def is_background(name: ClassName) -> bool:
    """Return whether a class is called background, as tools spell it."""
    return label_of(name).strip("_ ").lower() == BACKGROUND


def add_background(names: list[ClassName]) -> tuple[list[ClassName], int]:
    """Return class names with the background among them, first if it is new, and its id."""
    for index, name in enumerate(names):
        if is_background(name):
            return names, index
    return [BACKGROUND, *names], 0
