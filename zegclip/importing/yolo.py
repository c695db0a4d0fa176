"""YOLO's segmentation labels: a text file of polygons per picture, and `data.yaml` with the names."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from zegclip.errors import UsageError
from zegclip.importing.layouts import divide
from zegclip.importing.listing import Listing, NameIndex, Place, fold, one_line
from zegclip.importing.painting import Region, check_packages, paint_regions
from zegclip.importing.sources import ClassName, Item, Skipped, Source, add_background
from zegclip.processing.class_split import read_text
from zegclip.processing.image_reading import read_frame
from zegclip.processing.input_error import InputError


def find_yolo(listing: Listing) -> list[Place]:
    """Return the YAML files that name classes."""
    return [place for place in listing.having(".yaml", ".yml") if _read_names(listing.path(place.path)) is not None]


def read_yolo(listing: Listing) -> Source:
    """
    Read a source of YOLO's layout.

    Raises:
        UsageError: If there is not exactly one file with names, there are no labels, or one fits several pictures.
    """
    check_packages("pycocotools")
    tables = find_yolo(listing)
    if len(tables) != 1:
        named = ", ".join(place.path for place in tables) or "none"
        raise UsageError(f"{listing.root}: one YAML file with the names of YOLO's classes is needed; found: {named}.")
    names = _read_names(listing.path(tables[0].path)) or []
    classes, background = add_background(list(names))
    moved = len(classes) - len(names)
    pictures = [place for place in listing.places if place.is_image and place.role != "other"]
    index = NameIndex((_key(picture), picture) for picture in pictures)
    # From the labels, so that none is another picture's too.
    labels: dict[Place, list[Place]] = defaultdict(list)
    for place in listing.having(".txt"):
        owners = index.find(_key(place))
        if len({_key(picture) for picture in owners}) > 1:
            paths = f"{one_line(owners[0].path)} and {one_line(owners[1].path)}"
            raise UsageError(f"{listing.path(place.path)} may belong to {paths}, whose names are alike: rename one.")
        for picture in owners:
            labels[picture].append(place)
    if not labels:
        raise UsageError(f"{listing.root}: no picture in it has a label file of YOLO.")
    notes: list[str] = []
    told, lists = _splits_of_yaml(listing, tables[0], pictures, notes)
    kept = [picture for picture in pictures if picture in told] if lists else pictures
    result = divide(listing, kept, told)
    source = Source("yolo", classes, [], notes + result.notes, result.skipped)
    if left := len(pictures) - len(kept):
        paths = ", ".join(place.path for place in lists)
        source.notes.append(f"{left} pictures are in none of the lists {paths} and were left out.")
    without = 0
    for picture, name in result.names.items():
        found = labels[picture]
        found = [place for place in found if _key(place) == _key(picture)] or found
        if len(found) > 1:
            reason = f"several label files have its name, such as {found[0].path} and {found[1].path}."
            source.skipped.append(Skipped(picture.path, reason))
            continue
        label = found[0] if found else None
        path = listing.path(picture.path)
        without += label is None
        origin = f"{one_line(path)} without labels" if label is None else str(listing.path(label.path))
        read = partial(read_polygons, None if label is None else origin, path, len(names), moved, background)
        source.items.append(Item(path, result.splits[picture], name, origin, read))
    if without:
        source.notes.append(f"{without} pictures have no label file and became {classes[background]!r}, as YOLO does.")
    return source


def read_polygons(labels: str | None, picture: Path, num_classes: int, moved: int, background: int) -> np.ndarray:
    """
    Read a label file and paint its polygons over the upright picture.

    Args:
        labels: The file; `None`: there is none, and everything is background.
        picture: The picture, whose size the polygons' fractions are of.
        num_classes: Number of classes that the file may name.
        moved: What to add to their numbers.
        background: Id where there is no polygon.

    Returns:
        `(height, width)` int64.

    Raises:
        InputError: If a line is no polygon of a known class.
    """
    orientation, (width, height) = read_frame(picture)
    if orientation >= 5:
        width, height = height, width
    regions = []
    for number, line in enumerate(read_text(labels).split("\n") if labels else (), start=1):
        words = line.split()
        if not words:
            continue
        try:
            class_id, corners = int(words[0]), np.array(words[1:], dtype=np.float64)
        except ValueError as error:
            raise InputError(f"{labels}: line {number} is not a class with numbers.") from error
        if not 0 <= class_id < num_classes:
            raise InputError(f"{labels}: line {number} is of class {class_id}, but there are {num_classes} names.")
        if len(corners) == 4:
            raise InputError(f"{labels}: line {number} is a box, which has no outline.")
        if len(corners) % 2 or len(corners) < 6:
            raise InputError(f"{labels}: line {number} is not a polygon.")
        if not (np.abs(corners) <= 2).all():
            raise InputError(f"{labels}: line {number} has corners that are not fractions of the picture.")
        pixels = corners.reshape(-1, 2) * (width, height)
        regions.append(Region(class_id + moved, [pixels.ravel().tolist()]))
    return paint_regions(regions, (width, height), background, str(labels))


def _read_names(path: Path) -> list[ClassName] | None:
    """Return the names of a `data.yaml`; `None` if it is something else."""
    content = _read_yaml(path)
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and set(names) == {str(index) for index in range(len(names))}:
        names = [names[str(index)] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        return None
    return [str(name) for name in names]


def _read_yaml(path: Path) -> Any:
    try:
        # All values are text there: `no` stays a name.
        return yaml.load(read_text(str(path)), yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, InputError, RecursionError):
        return None


def _key(place: Place) -> str:
    """Return what is the same in the paths of a picture and its labels: all but the folder's kind and the suffix."""
    path = PurePosixPath(place.path).with_suffix("")
    return "/".join("images" if part == "labels" else part for part in path.parts)


def _splits_of_yaml(
    listing: Listing, file: Place, pictures: Sequence[Place], notes: list[str]
) -> tuple[dict[Place, str], list[Place]]:
    """Return the split of each picture as the YAML file says, by folders or lists of pictures, and the lists."""
    content = _read_yaml(listing.path(file.path))
    folders: dict[tuple[str, ...], str] = {}
    lists: dict[Place, str] = {}
    for key, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        values = content.get(key) or []
        for value in [values] if isinstance(values, str) else values:
            wanted = _parts(str(value))
            listed = [place for place in listing.having(".txt") if _parts(place.path)[-len(wanted) :] == wanted]
            # What stands for two splits is the first one's.
            if wanted and listed:
                lists.setdefault(min(listed, key=lambda place: len(place.path)), split)
            elif wanted:
                folders.setdefault(tuple(wanted), split)
    found: dict[Place, str] = {}
    for picture in pictures:
        inside = _parts(picture.path)[:-1]
        fitting = [wanted for wanted in folders if _is_within(wanted, inside)]
        if fitting:
            found[picture] = folders[max(fitting, key=len)]
    of_stem: dict[str, list[tuple[Place, list[str]]]] = defaultdict(list)
    for picture in pictures:
        of_stem[fold(picture.stem)].append((picture, _parts(picture.path)[:-1]))
    in_list: dict[Place, str] = {}
    twice: set[Place] = set()
    for place, split in lists.items():
        for line in read_text(str(listing.path(place.path))).split("\n"):
            parts = _parts(line)
            if line.strip().startswith("./"):  # relative to the list
                parts = _parts(place.path)[:-1] + parts
            same = of_stem[fold(PurePosixPath(parts[-1]).stem)] if parts else []
            agreeing = [_common_end(parts[:-1], inside) for _, inside in same]
            most = max(agreeing, default=0)
            # The same name may be in several folders; where none of them is the line's, it may be that of none.
            for (picture, _), count in zip(same, agreeing, strict=True):
                if count == most and (most or len(same) == 1) and in_list.setdefault(picture, split) != split:
                    twice.add(picture)
    if twice:
        first = min(picture.path for picture in twice)
        notes.append(
            f"{len(twice)} pictures, such as {one_line(first)}, are in the lists of several splits and belong to the "
            "first of these (train, val, test)."
        )
    found |= in_list
    return found, list(lists)


def _parts(path: str) -> list[str]:
    """Return the folders and the name of a path that may be relative or of another system."""
    parts = PurePosixPath(path.strip().replace("\\", "/")).parts
    return [part for part in parts if part not in ("..", ".", "/")]


def _is_within(folders: Sequence[str], path: Sequence[str]) -> bool:
    """Return whether folders follow each other in a path."""
    length = len(folders)
    return any(tuple(path[start : start + length]) == folders for start in range(len(path) - length + 1))


def _common_end(some: Sequence[str], others: Sequence[str]) -> int:
    """Return how many of the last folders of two paths agree."""
    pairs = zip(reversed(some), reversed(others), strict=False)
    return sum(1 for _ in takewhile(lambda pair: fold(pair[0]) == fold(pair[1]), pairs))
