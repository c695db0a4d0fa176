"""Files that name classes: their colours or values in masks, or only their order."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zegclip.errors import UsageError
from zegclip.importing.listing import Listing
from zegclip.importing.sources import BACKGROUND, ClassName, is_background
from zegclip.processing.class_split import read_class_names, read_text
from zegclip.processing.input_error import InputError

Colour = tuple[int, int, int]

_NAMES = (
    "labelmap.txt", "label_colors.txt", "label_colors.csv", "class_dict.csv", "_classes.csv", "classes.csv",
    "colors.csv", "colours.csv", "classes.json", "colors.json", "colours.json", "classes.txt", "id2label.json",
    "class_names.txt", "codes.txt", "labels.txt",
)  # fmt: skip
"""Names of such files, in the order in which they are looked for."""
_NAME_FIELDS = ("name", "class", "label", "title", "class_name", "classname", "label_name", "category")
_VALUE_FIELDS = ("pixel value", "pixel_value", "value", "id", "index", "class_id", "mask_value", "label_id")
_COLOUR_FIELDS = ("color", "colour", "color_rgb", "rgb", "hex")
_CHANNEL_FIELDS = (("r", "red"), ("g", "green"), ("b", "blue"))


@dataclass(frozen=True)
class ClassTable:
    """
    Classes by name.

    Attributes:
        path: The file, for messages.
        names: Names in the order of the file, each once.
        values: Mask value of each name, where the file has them.
        colours: The colours and the position of the name that each belongs to, where the file has them. A position of
            -1 says that a colour is ignored.
    """

    path: str
    names: list[ClassName]
    values: tuple[int, ...] | None = None
    colours: tuple[tuple[Colour, int], ...] | None = None

    def colour_array(self) -> np.ndarray:
        """Return the colours, `(n, 3)` int64."""
        return np.array([colour for colour, _ in self.colours or ()], dtype=np.int64).reshape(-1, 3)

    def spellings(self) -> list[frozenset[str]]:
        """Return all names of each class, without differences in case and of blanks."""
        classes = [[name] if isinstance(name, str) else name for name in self.names]
        return [
            frozenset(BACKGROUND if is_background(name) else name.lower().replace("_", " ") for name in names)
            for names in classes
        ]

    def meanings(self) -> list[tuple[Colour | int, frozenset[str]]]:
        """Return values and colours with the [`ClassTable.spellings`] that the file gives them."""
        names = self.spellings()
        values = range(len(names)) if self.values is None and self.colours is None else self.values or ()
        return [*zip(values, names), *((colour, names[index]) for colour, index in self.colours or () if index >= 0)]


def has_table(listing: Listing) -> bool:
    """Return whether a source has a file of a known name that names classes."""
    return any(place.path.split("/")[-1].lower() in _NAMES for place in listing.places)


def find_table(listing: Listing, given: Path | None) -> ClassTable | None:
    """
    Read the file that names the classes: the given one, or the one of a known name in the source or its splits.

    Raises:
        UsageError: If several files of the same name differ, or two files give a value or colour different names.
        InputError: If the file cannot be read or is in no known form.
    """
    if given is not None:
        return read_table(given)
    found: list[ClassTable] = []
    depth = 0
    for name in _NAMES:
        if not found:  # Others count where the first one lies.
            depth = 2 if any(place.path == name for place in listing.places) else 4
        paths = [
            listing.path(place.path)
            for place in listing.places
            if place.path.split("/")[-1].lower() == name and place.path.count("/") < depth
        ]
        try:
            tables = [read_table(path) for path in paths]
        except InputError:
            if not found:
                raise
            continue  # Such as a table of something else.
        for table in () if found else tables[1:]:
            if (table.names, table.values, table.colours) != (tables[0].names, tables[0].values, tables[0].colours):
                raise UsageError(f"{tables[0].path} and {table.path} differ: choose one with --classes.")
        found += tables
    # Of the same names in the same order, with values and without, those without say nothing.
    valued = [
        [names for _, names in sorted(zip(table.values, table.spellings()), key=lambda pair: pair[0])]
        for table in found
        if table.values is not None
    ]
    named: dict[Colour | int, tuple[frozenset[str], str]] = {}
    for table in found:
        if table.values is None and table.colours is None and table.spellings() in valued:
            continue
        for key, names in table.meanings():
            others, path = named.setdefault(key, (names, table.path))
            if others.isdisjoint(names) and not all(re.fullmatch(r"label \d+", name) for name in names | others):
                raise UsageError(f"{path} and {table.path} differ: choose one with --classes.")
    return found[0] if found else None


def read_table(path: Path) -> ClassTable:
    """
    Read a file that names classes.

    Args:
        path: CVAT's `labelmap.txt`; a CSV with a header (name, and r, g, b, a colour or a value) or rows of name and
            colour; lines such as "64 128 64 Animal"; JSON from names to colours or from values to names, or a list of
            objects; or one name per line.

    Raises:
        InputError: If the file cannot be read or is in no known form.
    """
    text = read_text(str(path))
    try:
        if path.suffix.lower() == ".json":
            rows = _parse_json(text)
        elif re.search(r"^#?\s*label\s*:\s*color_rgb", text, re.MULTILINE):
            fields = [line.rsplit(":", 3) for line in text.splitlines() if line.strip() and not line.startswith("#")]
            rows = [(name.strip(), _parse_colour(colour), None) for name, colour, _, _ in fields]
        else:
            rows = _parse_colour_lines(text) or _parse_csv(text, path.suffix.lower() == ".csv")
    except (ValueError, KeyError, TypeError, IndexError, csv.Error, RecursionError) as error:
        raise InputError(f"{path}: these class names and colours cannot be read: {error}") from error
    if rows:
        return _to_table(path, rows)
    lines = text.rstrip().split("\n")
    if lines[0].strip() == "__ignore__":  # labelme's name of the value -1
        names = [line.strip() for line in lines[1:]]
        return ClassTable(str(path), list(names), tuple(range(len(names))))
    classes, values = read_class_names(path)
    return ClassTable(str(path), classes, tuple(values) if path.suffix.lower() == ".json" else None)


Row = tuple[str, Colour | None, int | None]


def _to_table(path: Path, rows: Sequence[Row]) -> ClassTable:
    names = list(dict.fromkeys(name.strip() for name, _, _ in rows if name.strip()))
    if not names:
        raise InputError(f"{path}: no row has a name; fill in a name for each colour that is a class.")
    values, colours = None, None
    if all(colour is not None for _, colour, _ in rows):
        positions = {name: index for index, name in enumerate(names)}
        colours = tuple((colour, positions.get(name.strip(), -1)) for name, colour, _ in rows if colour)
        of_colour: dict[Colour, int] = {}
        for colour, index in colours:
            if of_colour.setdefault(colour, index) != index:
                raise InputError(f"{path}: the colour {colour} belongs to two classes.")
    if all(value is not None for _, _, value in rows):
        if len(names) < len(rows):
            raise InputError(f"{path}: a name is blank or occurs twice.")
        values = tuple(value for _, _, value in rows if value is not None)
        if len(set(values)) < len(values):
            raise InputError(f"{path}: a value belongs to two classes.")
    return ClassTable(str(path), list(names), values, colours)


def _parse_json(text: str) -> list[Row]:
    """Return the rows of a JSON file with colours; none for one from values to names."""
    content = json.loads(text)
    if isinstance(content, dict) and isinstance(content.get("classes"), list):
        content = content["classes"]
    if isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        return [_parse_fields(entry) for entry in content]
    if isinstance(content, dict) and content and not all(re.fullmatch(r"\d+", key) for key in content):
        return [(name, _parse_colour(colour), None) for name, colour in content.items()]
    return []


def _parse_colour_lines(text: str) -> list[Row]:
    """Return the rows of lines such as "64 128 64 Animal"; none if there are other lines."""
    lines = [line for line in text.splitlines() if line.strip()]
    matches = [re.fullmatch(r"\s*(\d{1,3})\s+(\d{1,3})\s+(\d{1,3})\s+(\S.*?)\s*", line) for line in lines]
    return (
        [(match[4], _parse_colour(match.group(1, 2, 3)), None) for match in matches if match] if all(matches) else []
    )


def _parse_csv(text: str, is_csv: bool) -> list[Row]:
    """Return the rows of a table with or without header; none for a list of names."""
    lines = [row for row in csv.reader(io.StringIO(text), skipinitialspace=True) if any(cell.strip() for cell in row)]
    header = [cell.strip().lower() for cell in lines[0]] if lines else []
    if set(header) & set(_NAME_FIELDS) and len(header) > 1:
        return [_parse_fields(dict(zip(header, row))) for row in lines[1:]]
    if is_csv and lines and all(len(row) in (2, 4) for row in lines):
        return [(row[0].strip(), _parse_colour(row[1] if len(row) == 2 else row[1:]), None) for row in lines]
    if is_csv:
        raise ValueError("a header with name, r, g, b is expected")
    return []


def _parse_fields(entry: Mapping[str, Any]) -> Row:
    fields = {str(key).strip().lower(): value for key, value in entry.items()}

    def pick(names: Sequence[str]) -> Any:
        return next((fields[name] for name in names if name in fields), None)

    name, value, colour = pick(_NAME_FIELDS), pick(_VALUE_FIELDS), pick(_COLOUR_FIELDS)
    channels = [pick(names) for names in _CHANNEL_FIELDS]
    if colour is None and all(channel is not None for channel in channels):
        colour = channels
    if not isinstance(name, str):
        raise ValueError(f"{entry} has no name")
    number = int(value) if re.fullmatch(r"\s*\d+\s*", str(value)) else None
    if colour is None and number is None:
        raise ValueError(f"{name!r} has neither a colour nor a value")
    return name, None if colour is None else _parse_colour(colour), number


def _parse_colour(colour: Any) -> Colour:
    """Return a colour given as three numbers, text of these, or "#rrggbb"."""
    if isinstance(colour, str):
        if match := re.fullmatch(r"\s*#([0-9a-fA-F]{6})\s*", colour):
            colour = bytes.fromhex(match[1])
        else:
            colour = re.findall(r"[^\s,;()\[\]]+", colour)
    numbers = [int(number) for number in colour]
    if len(numbers) not in (3, 4) or not all(0 <= number <= 255 for number in numbers):
        raise ValueError(f"{colour!r} is not a colour of three numbers from 0 to 255")
    red, green, blue = numbers[:3]
    return red, green, blue
