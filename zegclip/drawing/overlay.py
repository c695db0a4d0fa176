"""Pictures with their classes in colour."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from zegclip.drawing.colours import edge_colours, fill_colours, make_colours
from zegclip.drawing.legend import (
    LETTER,
    LegendEntry,
    arrange,
    class_entries,
    draw_legend,
    draw_stripes,
    draw_text,
)
from zegclip.drawing.lettering import write_names
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.image_reading import Source, load_class_ids, load_rgb
from zegclip.processing.input_error import InputError
from zegclip.processing.names import nested_classes

_CONTRAST = 0.9  # Of the picture in its regions.
_SMALLEST_SIDE = 480  # A picture's longer side beside a legend, so that the legend fits its size.
_SMALLEST_PANE, _LARGEST_PANE = 360, 512  # The longer side of the pictures on a sheet, in pixels.


def draw(
    picture: Source,
    segmentation: Any,
    names: str | Iterable[str | Sequence[str]] | None = None,
    *,
    legend: bool = True,
    side_by_side: bool = True,
) -> Image.Image:
    """
    Draw a picture and, beside it, the same one with its classes in colour.

    A class's colour follows from its place among the names, so that it is the same in all pictures that have the same
    names. Inside of its regions, the hue is the class's, and the brightness varies with the picture. Names are written
    where they fit. Small pictures are enlarged by a whole number; others keep their size.

    Args:
        picture: A path, a URL, a file as bytes or a PIL image.
        segmentation: Its classes, of the upright picture's size. Either a map of ids, `(height, width)` integers as
            array, tensor or PIL image, where -1 and the largest number of an unsigned type stand for no label; or what
            a segmentation pipeline returns for a picture: a list of `{"label": ..., "mask": ...}`, of which a later
            mask covers earlier ones, or, with `output_type="class_map"`, `{"labels": ..., "segmentation": ...}`.
        names: Of the classes, as the pipeline takes them; by default the labels that a pipeline returned.
        legend: Whether to list the classes at the right, the largest first, with their shares of the pixels.
        side_by_side: Whether to show the picture, too. A wide one is shown above.

    Returns:
        RGB.

    Raises:
        InputError: If sizes differ, an id or a label has no name, or the picture cannot be read.
    """
    picture = load_rgb(picture)
    ids, labels = _read_segmentation(segmentation, names)
    if ids.shape != picture.size[::-1]:
        found = "x".join(map(str, ids.shape[::-1]))
        raise InputError(f"The segmentation is {found} pixels, but its picture {picture.width}x{picture.height}.")
    factor = max(math.ceil(_SMALLEST_SIDE / max(picture.size)), 1)
    size = picture.width * factor, picture.height * factor
    letter = max(max(size) // 36, 13)
    enlarged = picture.resize(size, Image.Resampling.BICUBIC)
    colours = make_colours(len(labels))
    drawing = paint(enlarged, _resize_ids(ids, size), labels, colours, unlabelled=enlarged, letter=letter)
    if side_by_side:
        drawing = arrange([enlarged, drawing], columns=1 if picture.width > 2 * picture.height else 2)
    if legend:
        shown, shares = class_shares(ids, len(labels))
        entries = class_entries(shown, labels, colours, shares)
        if (ids < 0).any():
            entries.append(LegendEntry(None, "no label", f"{100 * (ids < 0).mean():.1f} %"))
        drawing = arrange([drawing, draw_legend(entries, drawing.height, letter=letter)], columns=2, gap=0)
    return drawing


def class_panes(
    picture: Image.Image,
    maps: Mapping[str, np.ndarray],
    split: ClassSplit,
    shown: Sequence[int],
    values: Sequence[str],
    *,
    title: str = "picture",
    heading: str = "",
    ignored: str = "",
) -> Image.Image:
    """
    Put a picture and class maps of it side by side, with titles above and one legend for all maps at the right.

    Args:
        picture: RGB. It is shown with a longer side of 360 to 512 pixels.
        maps: By title, `(height, width)` class ids of the picture's size, or -1 for ignored pixels, which are striped.
        split: The classes; the legend marks those that training had no masks of. Each has the same colour on all
            sheets.
        shown: Classes of the legend, in its order.
        values: Text at the right of each of them.
        title: Of the picture.
        heading: Above the values.
        ignored: Text at the right of "ignored", which stands in the legend where pixels are.

    Returns:
        RGB.
    """
    # Small ones are enlarged, by a whole number where that fits.
    longer = max(picture.size)
    scale = min(_LARGEST_PANE / longer, max(math.ceil(_SMALLEST_PANE / longer), 1))
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    resized, stripes = picture.resize(size, Image.Resampling.BICUBIC), draw_stripes(*size)
    colours = make_colours(len(split.names))
    panes = {title: resized}
    for name, ids in maps.items():
        panes[name] = paint(resized, _resize_ids(ids, size), split.names, colours, unlabelled=stripes)
    columns = [arrange([draw_text(text, size[0]), pane], columns=1, gap=0) for text, pane in panes.items()]

    marks = [" (unseen)" if index in split.unseen_ids else "" for index in range(len(split.names))]
    entries = class_entries(shown, split.names, colours, values, marks)
    if any((ids < 0).any() for ids in maps.values()):
        entries.append(LegendEntry(draw_stripes(LETTER, LETTER), "ignored", ignored))
    legend = draw_legend(entries, columns[0].height, heading=heading)
    return arrange([*columns, legend], columns=len(columns) + 1)


def class_shares(ids: np.ndarray, num_classes: int) -> tuple[list[int], list[str]]:
    """List the classes that occur in a map, the largest first, and the share of the pixels of each as text."""
    shares = np.bincount(ids.ravel() + 1, minlength=num_classes + 1)[1:] / ids.size
    shown = [int(index) for index in np.argsort(-shares, kind="stable") if shares[index]]
    return shown, [f"{100 * shares[index]:.1f} %" for index in shown]


def paint(
    picture: Image.Image,
    ids: np.ndarray,
    names: Sequence[str],
    colours: np.ndarray,
    *,
    unlabelled: Image.Image,
    letter: int = LETTER,
) -> Image.Image:
    """
    Show the classes of a picture: filled and outlined in their colours, with their names where they fit.

    A region has its class's filling colour where the picture is as bright as on average over the class, and is darker
    or brighter where the picture is. So its swatch is right for dark and bright pictures, which blending is not. Along
    its outline, a class has its full colour. A thin edge, black or white, parts it from smaller ones.

    Args:
        picture: RGB.
        ids: `(height, width)` integers of the picture's size, indices into `names` or -1.
        names: Of the classes.
        colours: `(classes, 3)` uint8.
        unlabelled: RGB of the picture's size; shown where the id is -1.
        letter: Height of the names in pixels.
    """
    areas = np.bincount(ids.ravel() + 1, minlength=len(names) + 1)[1:]
    present = np.argsort(-areas, kind="stable")[: np.count_nonzero(areas)]
    count, own = len(present), colours[present]
    numbers = np.full(len(names) + 1, count, dtype=np.min_scalar_type(count + 1))
    numbers[present + 1] = np.arange(count)
    regions = numbers[ids + 1]  # Counted from the largest; the last one has no label.

    tones = regions.astype(np.int32) * 256 + np.asarray(picture.convert("L"))
    pixels = _fillings(tones, own).take(tones, axis=0)
    width = max(round(max(picture.size) / 600), 1)
    outline = _near_others(regions, 3 * width, np.not_equal) & (regions < count)
    edge = _near_others(regions, width, np.less)  # Of the larger of two, so that a thin one keeps its colour.
    for line, line_colours in ((outline, own), (edge, edge_colours(own))):
        pixels[line] = line_colours[regions[line]]
    painted = Image.fromarray(pixels)
    painted.paste(unlabelled, mask=Image.fromarray(regions == count))
    inside = np.where(outline | (regions == count), 0, regions + 1)
    write_names(painted, inside, [names[index] for index in present.tolist()], letter)
    return painted


def _fillings(tones: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return the colour of each tone, `(tones, 3)` uint8. A tone is a region's number * 256 + the brightness."""
    counts = np.bincount(tones.ravel(), minlength=256 * (len(colours) + 1)).reshape(-1, 256, 1)
    brightness = np.arange(256)[:, None]
    means = (counts * brightness).sum(axis=1, keepdims=True) / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    change = _CONTRAST * (brightness - means.round()) / 255
    filling = np.vstack([fill_colours(colours), np.zeros((1, 3))])[:, None]
    return np.rint(filling + change * np.where(change < 0, filling, 255 - filling)).astype(np.uint8).reshape(-1, 3)


def _near_others(regions: np.ndarray, reach: int, compare: np.ufunc) -> np.ndarray:
    """Mark the pixels, `(height, width)` bool, that `compare` so with one up to `reach` pixels away along an axis."""
    marked = np.zeros(regions.shape, dtype=bool)
    for step in range(1, reach + 1):
        for one, other in ((np.s_[:, :-step], np.s_[:, step:]), (np.s_[:-step], np.s_[step:])):
            marked[one] |= compare(regions[one], regions[other])
            marked[other] |= compare(regions[other], regions[one])
    return marked


def _read_segmentation(
    segmentation: Any, names: str | Iterable[str | Sequence[str]] | None
) -> tuple[np.ndarray, list[str]]:
    """Return the ids, `(height, width)` int64 with -1 for no label, and the name of each class."""
    if isinstance(segmentation, list) and all(isinstance(part, Mapping) for part in segmentation):
        if not all({"label", "mask"} <= part.keys() for part in segmentation):
            raise InputError("A list has the labels and masks of one picture: give one picture's result.")
        labels = [part["label"] for part in segmentation]
        classes = nested_classes(list(dict.fromkeys(labels)) if names is None else names)
        ids = _merge_masks([np.asarray(part["mask"]) > 0 for part in segmentation], labels, classes)
    elif isinstance(segmentation, Mapping):
        if missing := {"labels", "segmentation"} - segmentation.keys():
            raise InputError(f"The segmentation of a picture has no {min(missing)!r}, only {list(segmentation)}.")
        labels = segmentation["labels"]
        classes = nested_classes(labels if names is None else names)
        places = np.array([*_find_places(labels, classes), -1])  # The last one is where -1 points to.
        ids = places[_read_ids(segmentation["segmentation"], len(labels))]
    else:
        if names is None:
            raise InputError("names is missing: a map of ids needs the names of its classes.")
        classes = nested_classes(names)
        ids = _read_ids(segmentation, len(classes))
    return ids, [synonyms[0] for synonyms in classes]


def _merge_masks(masks: Sequence[np.ndarray], labels: Sequence[str], classes: Sequence[Sequence[str]]) -> np.ndarray:
    places = _find_places(labels, classes)
    if len({mask.shape for mask in masks}) != 1:
        raise InputError("The masks of a picture must all have its size.")
    ids = np.full(masks[0].shape, -1)
    for mask, place in zip(masks, places, strict=True):
        ids[mask] = place
    return ids


def _find_places(labels: Sequence[str], classes: Sequence[Sequence[str]]) -> list[int]:
    """Return the index of each label's class."""
    numbers = {name: index for index, synonyms in enumerate(classes) for name in synonyms}
    if unknown := [label for label in labels if label not in numbers]:
        raise InputError(f"The label {unknown[0]!r} is not among the names.")
    return [numbers[label] for label in labels]


def _read_ids(segmentation: Any, num_classes: int) -> np.ndarray:
    if isinstance(segmentation, torch.Tensor):
        segmentation = segmentation.cpu().numpy()
    if isinstance(segmentation, Image.Image):
        kind = np.uint16 if segmentation.mode.startswith("I") else np.uint8
        segmentation = load_class_ids(segmentation).astype(kind)
    found: np.ndarray = np.asarray(segmentation)
    if found.ndim != 2 or found.dtype.kind not in "iu":
        raise InputError(f"A map of ids is (height, width) integers, not {found.shape} {found.dtype}.")
    largest = np.iinfo(found.dtype).max if found.dtype.kind == "u" else -1
    ids = found.astype(np.int64)
    if largest >= num_classes:
        ids[ids == largest] = -1
    wrong = ids[(ids < -1) | (ids >= num_classes)]
    if wrong.size:
        raise InputError(
            f"The segmentation holds the id {wrong[0]}, but the names are those of 0 to {num_classes - 1}."
        )
    return ids


def _resize_ids(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a class map to a width and height, each pixel to the nearest."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size[::-1], ids.shape))
    return ids[rows[:, None], columns]
