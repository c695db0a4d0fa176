"""One binary mask for each class of a picture, as brushes leave them."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np

from zegclip.errors import UsageError
from zegclip.importing.class_tables import ClassTable
from zegclip.importing.layouts import Pairs, divide
from zegclip.importing.listing import Listing, NameIndex, Place, one_line
from zegclip.importing.painting import by_area
from zegclip.importing.shapes import read_shape
from zegclip.importing.sources import ClassName, Item, Skipped, Source, add_background, label_of
from zegclip.processing.input_error import InputError

_BRUSH = re.compile(r"task-(\d+)-annotation-(\d+)-by-.*?-tag-(.+)-(\d+)")
_TAG = re.compile(r"-tag-(.+)-\d+")
"""Behind a picture's name, as `zegclip export-data` writes it, with the class as in a URL."""


def is_brush_export(listing: Listing) -> bool:
    """Return whether a source has masks that are named as Label Studio names them."""
    return any(_BRUSH.fullmatch(place.stem) for place in listing.places if place.is_image)


def pair_brushes(listing: Listing) -> Pairs:
    """
    Find the picture of each task of Label Studio, as its JSON export says or by the picture's own name.

    Raises:
        UsageError: If there is no picture.
    """
    masks = [place for place in listing.places if place.is_image and _BRUSH.fullmatch(place.stem)]
    pictures = [place for place in listing.places if place.is_image and place not in set(masks)]
    of_task = _pictures_of_tasks(listing, pictures)
    found: dict[Place, list[tuple[Place, str]]] = defaultdict(list)
    annotations: dict[Place, set[str]] = defaultdict(set)
    lost = set()
    for mask in masks:
        match = _BRUSH.fullmatch(mask.stem)
        if match is None:
            continue
        picture = of_task.get(match[1])
        if picture is None:
            lost.add(match[1])
            continue
        found[picture].append((mask, match[3]))
        annotations[picture].add(match[2])
    if not found:
        raise UsageError(
            f"{listing.root}: nothing says which picture belongs to task {min(lost, default='1')} of Label Studio: "
            "add its JSON export, or call the picture by the number of its task."
        )
    result = divide(listing, [picture for picture in pictures if picture in found])
    result.skipped += [Skipped(f"task {task}", "there is no picture of this task.") for task in sorted(lost)]
    left = [picture for picture in pictures if picture not in found]
    result.skipped += [Skipped(picture.path, "there is no mask for this picture.") for picture in left]
    for picture in list(result.names):
        if len(annotations[picture]) > 1:
            result.skipped.append(Skipped(picture.path, "it has the masks of several annotations; keep those of one."))
        else:
            result.masks[picture] = found[picture]
    return result


def _pictures_of_tasks(listing: Listing, pictures: Sequence[Place]) -> dict[str, Place]:
    by_name = NameIndex((PurePosixPath(picture.path).name, picture) for picture in pictures)
    found = {match[1]: picture for picture in pictures if (match := re.fullmatch(r"(?:task-)?(\d+)", picture.stem))}
    for file in listing.having(".json"):
        try:
            tasks = json.loads(listing.path(file.path).read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError):
            continue
        for task in tasks if isinstance(tasks, list) else ():
            if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
                continue
            values = [task.get("file_upload"), *task["data"].values()]
            for value in values:
                name = PurePosixPath(unquote(str(value)).partition("?")[0].replace("\\", "/")).name
                # An upload is called by eight letters, a hyphen and its own name.
                named = by_name.find(name) or by_name.find(re.sub(r"^[0-9a-f]{8}-", "", name))
                if len(named) == 1:
                    found[str(task.get("id"))] = named[0]
                    break
    return found


def read_class_masks(listing: Listing, pairs: Pairs, table: ClassTable | None) -> Source:
    """
    Read binary masks whose names end with their class.

    Args:
        listing: The source.
        pairs: Pictures with their masks, whose classes are what their names say beyond the picture's.
        table: The classes in their order; `None`: by name.

    Raises:
        UsageError: If a mask is of a class that the table does not have.
    """
    found = sorted({_class_of(rest) for masks in pairs.masks.values() for _, rest in masks})
    if "" in found:
        raise UsageError(f"{listing.root}: a picture has several masks, of which one names no class.")
    names: list[ClassName] = list(found) if table is None else list(table.names)
    if unknown := set(found) - set(map(label_of, names)):
        path = "" if table is None else table.path
        raise UsageError(f"{path}: it does not have the class {min(unknown)!r}, of which there are masks.")
    classes, background = add_background(names)
    positions = {label_of(name): index for index, name in enumerate(classes)}
    source = Source("class-masks", classes, [], list(pairs.notes), list(pairs.skipped))
    for picture, masks in pairs.masks.items():
        layers: dict[int, list[Path]] = defaultdict(list)
        for mask, rest in masks:
            layers[positions[_class_of(rest)]].append(listing.path(mask.path))
        origin = str(listing.path(masks[0][0].path))
        read = partial(paint_masks, dict(sorted(layers.items())), background)
        item = Item(listing.path(picture.path), pairs.splits[picture], pairs.names[picture], origin, read)
        source.items.append(item)
    return source


def paint_masks(layers: Mapping[int, Sequence[Path]], background: int) -> np.ndarray:
    """
    Paint masks in the order of decreasing area; of equal ones, the class with the larger id lies above.

    Args:
        layers: For each class its files.
        background: Id where there is no mask.

    Returns:
        `(height, width)` int64.

    Raises:
        InputError: If a file is not a binary mask, or sizes differ.
    """
    painted: list[tuple[int, np.ndarray]] = []
    first = next(iter(layers.values()))[0]
    for class_id, paths in layers.items():
        covered: np.ndarray | None = None
        for path in paths:
            mask = read_shape(path)
            other = covered if covered is not None else (painted[0][1] if painted else mask)
            if mask.shape != other.shape:
                raise InputError(f"{one_line(path)} and {one_line(first)} have different sizes.")
            covered = mask if covered is None else covered | mask
        if covered is not None:
            painted.append((class_id, covered))
    ids = np.full(painted[0][1].shape, background, dtype=np.int64)
    for index in by_area(int(mask.sum()) for _, mask in painted):
        class_id, mask = painted[index]
        ids[mask] = class_id
    return ids


def _class_of(rest: str) -> str:
    if match := _TAG.fullmatch(rest):
        return unquote(match[1])
    return rest.strip("_-. ")
