"""Class maps made visible: colours, index masks, and a picture under its classes with a legend beside it."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

# Twenty colours that stay apart under a picture, before the regular colour map of Pascal VOC goes on: its own first
# colours are dark and much alike.
FIRST_COLOURS = (
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 190, 212),
    (0, 128, 128),
    (220, 190, 255),
    (170, 110, 40),
    (255, 250, 200),
    (128, 0, 0),
    (170, 255, 195),
    (128, 128, 0),
    (255, 215, 180),
    (0, 0, 128),
    (128, 128, 128),
)
NO_LABEL = 255
"""Pixels without a label in an 8-bit index mask; `NO_LABEL_16_BIT` where there are more than 255 labels."""
NO_LABEL_16_BIT = 65535

_SMALLEST_SIDE = 480  # A picture's longer side in an overlay, so that the legend fits its size.
_MOST_ENTRIES = 40  # Lines of a legend.
_LONGEST_LABEL = 16  # Width of a legend's texts, in heights of a letter.


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
    enlarged = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    large_ids = ids.repeat(factor, axis=0).repeat(factor, axis=1)
    line_width = max(round(max(enlarged.size) / 600), 1)
    tinted = tint(enlarged, large_ids, colours, alpha, unlabelled=enlarged, line_width=line_width)

    legend = _draw_legend(_legend_entries(ids, labels, colours), max(tinted.size), tinted.height)
    result = Image.new("RGB", (tinted.width + legend.width, max(tinted.height, legend.height)), "white")
    result.paste(tinted)
    result.paste(legend, (tinted.width, 0))
    return result


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


Entry = tuple[np.ndarray | None, str, float]


def _legend_entries(ids: np.ndarray, labels: Sequence[str], colours: np.ndarray) -> list[Entry]:
    """Colour (`None` for no swatch), text and share of pixels of each line of the legend."""
    counts = np.bincount(ids.ravel() + 1, minlength=len(labels) + 1)
    shares = counts[1:] / ids.size
    order = [index for index in np.argsort(-shares, kind="stable") if shares[index]]
    entries: list[Entry] = [(colours[index], labels[index], shares[index]) for index in order[:_MOST_ENTRIES]]
    rest = order[_MOST_ENTRIES:]
    if rest:
        entries.append((None, f"{len(rest)} more", shares[rest].sum()))
    if counts[0]:
        entries.append((None, "no label", counts[0] / ids.size))
    return entries


def _draw_legend(entries: Sequence[Entry], longer_side: int, height: int) -> Image.Image:
    """Draw swatches, labels and shares, in as many columns as `height` pixels ask for."""
    size = max(longer_side // 36, 13)
    line, gap = round(1.6 * size), size // 2
    font = load_font(size)
    texts = [shorten(label, font, _LONGEST_LABEL * size) for _, label, _ in entries]
    label_width = math.ceil(max(font.getlength(text) for text in texts))
    share_width = math.ceil(font.getlength("100.0 %"))
    column = size + label_width + share_width + 4 * gap
    rows = min(max((height - 2 * gap) // line, 10), len(entries))

    legend = Image.new("RGB", (math.ceil(len(entries) / rows) * column + gap, rows * line + 2 * gap), "white")
    draw = ImageDraw.Draw(legend)
    for index, ((colour, _, share), text) in enumerate(zip(entries, texts, strict=True)):
        left = index // rows * column + 2 * gap
        middle = gap + index % rows * line + line // 2
        if colour is not None:
            box = (left, middle - size // 2, left + size, middle - size // 2 + size)
            draw.rectangle(box, fill=tuple(colour.tolist()), outline="grey")
        draw.text((left + size + gap, middle), text, fill="black", font=font, anchor="lm")
        right = left + size + label_width + share_width + 2 * gap
        draw.text((right, middle), f"{100 * share:.1f} %", fill="black", font=font, anchor="rm")
    return legend


def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Load the font that matplotlib brings along: it has more scripts than Pillow's own."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Put a text on one line and cut it, with an ellipsis, until it is at most `width` pixels wide."""
    text = " ".join(text.split())
    short = text[:100]
    while short and font.getlength(short if short == text else short + "…") > width:
        short = short[:-1]
    return short if short == text else short.rstrip() + "…"
