"""Class maps made visible: colours, index masks, and pictures tinted with the colours of their classes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageEnhance

from zegclip.drawing.legend import LETTER, LegendEntry, arrange, class_entries, draw_legend, draw_stripes, draw_text
from zegclip.processing.class_split import ClassSplit

# Twenty colours that stay apart under a picture, before the regular colour map of Pascal VOC goes on: its own first
# colours are dark and much alike.
FIRST_COLOURS = (
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240),
    (240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128), (220, 190, 255), (170, 110, 40),
    (255, 250, 200), (128, 0, 0), (170, 255, 195), (128, 128, 0), (255, 215, 180), (0, 0, 128), (128, 128, 128),
)  # fmt: skip
NO_LABEL = 255
"""Pixels without a label in an 8-bit index mask; `NO_LABEL_16_BIT` where there are more than 255 labels."""
NO_LABEL_16_BIT = 65535

_SMALLEST_SIDE = 480  # A picture's longer side in an overlay, so that the legend fits its size.
_SMALLEST_PANE, _LARGEST_PANE = 360, 512  # The longer side of the pictures on a sheet, in pixels.


def make_colours(count: int) -> np.ndarray:
    """
    Return `count` different colours, `(count, 3)` uint8: some distinct ones, then the colour map of Pascal VOC.

    VOC spreads the bits of an index over the three channels, three at a time, from the highest bit of each down.
    """
    index = np.arange(1, count + 1)[:, None] >> np.arange(3)
    colours = np.zeros((count, 3), dtype=np.uint8)
    for bit in range(8):
        colours |= ((index >> (3 * bit) & 1) << (7 - bit)).astype(np.uint8)
    first = FIRST_COLOURS[:count]
    if first:
        colours[: len(first)] = first
    return colours


def index_mask(ids: np.ndarray, colours: np.ndarray) -> Image.Image:
    """
    Turn a class map into a picture whose pixel values are the ids.

    Args:
        ids: `(height, width)` integers, indices into the colours or -1 for no label.
        colours: `(labels, 3)` uint8.

    Returns:
        Up to 255 labels: mode `P`, the colours as its palette, 255 (black) for no label. More: mode `I;16`, which has
        no palette, 65535 for no label.
    """
    if len(colours) > NO_LABEL:
        return Image.fromarray(np.where(ids < 0, NO_LABEL_16_BIT, ids).astype(np.uint16))
    mask = Image.fromarray(np.where(ids < 0, NO_LABEL, ids).astype(np.uint8))
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(colours)] = colours
    mask.putpalette(palette.tobytes())
    return mask


def overlay(
    picture: Image.Image,
    ids: np.ndarray,
    labels: Sequence[str],
    colours: np.ndarray,
    alpha: float = 0.55,
) -> Image.Image:
    """
    Blend a picture with the colours of its classes, with thin boundaries and a legend at the right.

    Small pictures are enlarged by a whole number, so that the legend is readable; others keep their size.

    Args:
        picture: RGB.
        ids: `(height, width)` integers of the picture's size, indices into `labels` or -1 for no label.
        labels: Texts of the legend, which lists those that occur, the largest first. Long ones are shortened.
        colours: `(labels, 3)` uint8.
        alpha: Share of the class colour, in [0, 1]. Pixels without a label stay as they are.

    Returns:
        RGB, at least as high as the picture and wider.
    """
    factor = max(math.ceil(_SMALLEST_SIDE / max(picture.size)), 1)
    size = picture.width * factor, picture.height * factor
    enlarged = picture.resize(size, Image.Resampling.BICUBIC)
    line_width = max(round(max(size) / 600), 1)
    tinted = tint(enlarged, _resize_ids(ids, size), colours, alpha, unlabelled=enlarged, line_width=line_width)
    shown, shares = class_shares(ids, len(labels))
    entries = class_entries(shown, labels, colours, shares)
    if (ids < 0).any():
        entries.append(LegendEntry(None, "no label", f"{100 * (ids < 0).mean():.1f} %"))
    return arrange([tinted, draw_legend(entries, tinted.height, letter=max(max(size) // 36, 13))], columns=2, gap=0)


def class_panes(
    picture: Image.Image,
    maps: Mapping[str, np.ndarray],
    split: ClassSplit,
    colours: np.ndarray,
    shown: Sequence[int],
    values: Sequence[str],
    *,
    title: str = "picture",
    heading: str = "",
    ignored: str = "",
    alpha: float = 0.55,
) -> Image.Image:
    """
    Put a picture and class maps of it side by side, with titles above and one legend for all maps at the right.

    Args:
        picture: RGB. It is shown with a longer side of 360 to 512 pixels.
        maps: By title, `(height, width)` class ids of the picture's size, or -1 for ignored pixels, which are striped.
        split: The classes; the legend marks those that training had no masks of.
        colours: `(classes, 3)` uint8.
        shown: Classes of the legend, in its order.
        values: Text at the right of each of them.
        title: Of the picture.
        heading: Above the values.
        ignored: Text at the right of "ignored", which stands in the legend where pixels are.
        alpha: Share of the class colours, in [0, 1].

    Returns:
        RGB.
    """
    # Small ones are enlarged, by a whole number where that fits.
    longer = max(picture.size)
    scale = min(_LARGEST_PANE / longer, max(math.ceil(_SMALLEST_PANE / longer), 1))
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    resized, stripes = picture.resize(size, Image.Resampling.BICUBIC), draw_stripes(*size)
    panes = {title: resized}
    for name, ids in maps.items():
        panes[name] = tint(resized, _resize_ids(ids, size), colours, alpha, unlabelled=stripes)
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


def tint(
    picture: Image.Image,
    ids: np.ndarray,
    colours: np.ndarray,
    alpha: float,
    *,
    unlabelled: Image.Image,
    line_width: int = 1,
) -> Image.Image:
    """
    Blend a picture with the colours of its classes and draw white boundaries between them.

    Args:
        picture: RGB.
        ids: `(height, width)` integers of the picture's size, indices into `colours` or -1.
        colours: `(classes, 3)` uint8.
        alpha: Share of the class colour, in [0, 1].
        unlabelled: RGB of the picture's size; shown where the id is -1.
        line_width: Of the boundaries, in pixels.
    """
    # The picture's own colours would be taken for classes.
    tinted = Image.blend(ImageEnhance.Color(picture).enhance(0.3), Image.fromarray(colours[ids]), alpha)
    tinted.paste(unlabelled, mask=Image.fromarray(ids < 0))
    tinted.paste("white", mask=Image.fromarray(find_boundaries(ids, width=line_width)))
    return tinted


def find_boundaries(ids: np.ndarray, width: int) -> np.ndarray:
    """Mark the pixels, `(height, width)` bool, up to `width` pixels before another class begins."""
    marked = np.zeros(ids.shape, dtype=bool)
    for step in range(1, width + 1):
        marked[:, :-step] |= ids[:, :-step] != ids[:, step:]
        marked[:-step] |= ids[:-step] != ids[step:]
    return marked


def _resize_ids(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a class map to a width and height, each pixel to the nearest."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size[::-1], ids.shape))
    return ids[rows[:, None], columns]
