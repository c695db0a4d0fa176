"""Text beside pictures: titles, legends of classes, and the arrangement of both on a sheet."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zegclip.drawing.colours import fill_colours

LETTER = 14
"""Height of the text on sheets in pixels."""
GAP = 8
"""Margin around the parts of a sheet in pixels."""

_STRIPES = ((255, 255, 255), (150, 150, 150))
_MOST_CLASSES = 40  # Of a legend.
_FEWEST_ROWS = 21  # So that two columns hold them all, with "... more" and "ignored".
_LONGEST_TEXT = 16  # Width of a legend's texts, in heights of a letter.


class LegendEntry(NamedTuple):
    """
    A line of a legend.

    Attributes:
        swatch: A class's colour, which is shown as in pictures: its outline around its filling. Or a picture as high
            and wide as a letter, or `None` for none.
        text: Name of the class; long ones are shortened.
        value: Number at the right.
        mark: Follows the text and is never cut off.
    """

    swatch: tuple[int, ...] | Image.Image | None
    text: str
    value: str = ""
    mark: str = ""


def class_entries(
    shown: Sequence[int],
    names: Sequence[str],
    colours: np.ndarray,
    values: Sequence[str],
    marks: Sequence[str] | None = None,
) -> list[LegendEntry]:
    """
    List the first 40 classes of `shown` for a legend, and how many more there are.

    Args:
        shown: Class ids, in the order of the legend.
        names: Name of each class.
        colours: `(classes, 3)` uint8.
        values: Text at the right of each entry of `shown`.
        marks: Text after each class's name.
    """
    entries = [
        LegendEntry(tuple(colours[index].tolist()), names[index], value, marks[index] if marks else "")
        for index, value in list(zip(shown, values, strict=True))[:_MOST_CLASSES]
    ]
    rest = len(shown) - _MOST_CLASSES
    return [*entries, LegendEntry(None, f"{rest} more")] if rest > 0 else entries


def draw_legend(
    entries: Sequence[LegendEntry], height: int, *, letter: int = LETTER, heading: str = ""
) -> Image.Image:
    """
    Draw the entries in as many columns as `height` pixels ask for, each of at least 21 rows.

    Args:
        entries: At least one.
        height: Of what the legend stands beside, in pixels.
        letter: Height of the text in pixels.
        heading: Above the values of each column.
    """
    line, gap = round(1.6 * letter), letter // 2
    font = load_font(letter)
    texts = [shorten_name(entry.text, font, letter) + entry.mark for entry in entries]
    text_width = math.ceil(max(map(font.getlength, texts)))
    value_width = math.ceil(max(font.getlength(text) for text in (heading, *(entry.value for entry in entries))))
    column = letter + text_width + value_width + 5 * gap
    top = gap + (line if heading else 0)
    rows = min(max((height - top - gap) // line, _FEWEST_ROWS), len(entries))

    legend = Image.new("RGB", (math.ceil(len(entries) / rows) * column + gap, top + rows * line + gap), "white")
    draw = ImageDraw.Draw(legend)
    for index, (entry, text) in enumerate(zip(entries, texts, strict=True)):
        left, right = index // rows * column + 2 * gap, (index // rows + 1) * column
        middle = top + index % rows * line + line // 2
        if index % rows == 0:
            draw.text((right, gap + line // 2), heading, fill="black", font=font, anchor="rm")
        box = (left, middle - letter // 2, left + letter, middle - letter // 2 + letter)
        if isinstance(entry.swatch, Image.Image):
            legend.paste(entry.swatch, box)
            draw.rectangle(box, outline="grey")
        elif entry.swatch is not None:
            fill = tuple(fill_colours(np.array(entry.swatch)).tolist())
            draw.rectangle(box, fill=fill, outline=entry.swatch, width=max(letter // 6, 2))
            draw.rectangle(box, outline="grey")
        draw.text((left + letter + gap, middle), text, fill="black", font=font, anchor="lm")
        draw.text((right, middle), entry.value, fill="black", font=font, anchor="rm")
    return legend


def draw_text(text: str, width: int, letter: int = LETTER) -> Image.Image:
    """Draw one line of text, shortened to `width` pixels or, where that is less, to 16 times the letters' height."""
    font = load_font(letter)
    text = shorten(text, font, max(width, _LONGEST_TEXT * letter))
    line = Image.new("RGB", (max(math.ceil(font.getlength(text)), 1), round(1.6 * letter)), "white")
    ImageDraw.Draw(line).text((0, line.height // 2), text, fill="black", font=font, anchor="lm")
    return line


def draw_stripes(width: int, height: int) -> Image.Image:
    """Draw what stands for ignored pixels."""
    diagonal = np.add.outer(np.arange(height), np.arange(width)) // 4 % 2
    return Image.fromarray(np.array(_STRIPES, dtype=np.uint8)[diagonal])


def arrange(parts: Sequence[Image.Image], columns: int, gap: int = GAP) -> Image.Image:
    """Put pictures into a grid, row by row, with `gap` white pixels around each."""
    rows = [parts[start : start + columns] for start in range(0, len(parts), columns)]
    widths = [max(part.width for part in parts[column::columns]) for column in range(len(rows[0]))]
    heights = [max(part.height for part in row) for row in rows]
    size = (sum(widths) + gap * (len(widths) + 1), sum(heights) + gap * (len(heights) + 1))
    sheet = Image.new("RGB", size, "white")
    for number, row in enumerate(rows):
        for column, part in enumerate(row):
            corner = sum(widths[:column]) + gap * (column + 1), sum(heights[:number]) + gap * (number + 1)
            sheet.paste(part, corner)
    return sheet


def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Load the font that matplotlib brings along: it has more scripts than Pillow's own."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def shorten_name(name: str, font: ImageFont.FreeTypeFont, letter: int) -> str:
    """Shorten a class's name as in legends, to a width of 16 times the letters' height."""
    return shorten(name, font, _LONGEST_TEXT * letter)


def shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Put a text on one line and cut it, with an ellipsis, until it is at most `width` pixels wide."""
    text = " ".join(text.split())
    short = text[:100]
    while short and font.getlength(short if short == text else short + "…") > width:
        short = short[:-1]
    return short if short == text else short.rstrip() + "…"
