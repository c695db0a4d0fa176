"""Names written into the regions of a picture."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from zegclip.drawing.legend import load_font, shorten_name

_SMALLER = 0.8  # Letters where the usual ones do not fit.


def write_names(picture: Image.Image, regions: np.ndarray, names: Sequence[str], letter: int) -> None:
    """
    Write each name once onto a picture, black with a white halo: in the widest part of its region, if it fits there.

    Args:
        picture: RGB, changed in place.
        regions: `(height, width)` unsigned integers of the picture's size: 1 for the region of the first name, and so
            on; 0 where nothing may be written.
        names: Long ones are shortened.
        letter: Height of the text in pixels.
    """
    cell = max(letter // 4, 1)
    cells = _whole_cells(regions, cell)
    areas = np.bincount(cells.ravel(), minlength=len(names) + 1)
    draw = ImageDraw.Draw(picture)
    sizes = [(load_font(size), max(size // 7, 1)) for size in (letter, round(_SMALLER * letter))]
    for index, name in enumerate(names, start=1):
        for font, halo in sizes:
            text = shorten_name(name, font, letter)
            left, top, right, bottom = font.getbbox(text, stroke_width=halo)
            rows, columns = math.ceil((bottom - top + 2) / cell), math.ceil((right - left + 2) / cell)
            if areas[index] < rows * columns:
                continue
            place = _widest_place(cells == index, rows, columns)
            if place is not None:
                x = round((place[1] + columns / 2) * cell - (left + right) / 2)
                y = round((place[0] + rows / 2) * cell - (top + bottom) / 2)
                draw.text((x, y), text, fill="black", font=font, stroke_width=halo, stroke_fill="white")
                break


def _whole_cells(regions: np.ndarray, cell: int) -> np.ndarray:
    """Return the region that each square of `cell` pixels belongs to, 0 where it is not one alone."""
    height, width = (side // cell * cell for side in regions.shape)
    bounds = []
    for choose in (np.minimum, np.maximum):
        rows = functools.reduce(choose, (regions[start:height:cell, :width] for start in range(cell)))
        bounds.append(functools.reduce(choose, (rows[:, start::cell] for start in range(cell))))
    return np.where(bounds[0] == bounds[1], bounds[0], 0)


def _widest_place(inside: np.ndarray, rows: int, columns: int) -> tuple[int, int] | None:
    """
    Find where a box has the widest margin on all sides within a region.

    Args:
        inside: `(height, width)` bool.
        rows: Height of the box.
        columns: Its width.

    Returns:
        The upper left corner of the box; `None` if there is no place.
    """
    height, width = inside.shape
    sums = np.zeros((height + 1, width + 1), dtype=np.int32)
    np.cumsum(np.cumsum(inside, axis=0, dtype=np.int32), axis=1, out=sums[1:, 1:])

    def places(margin: int) -> np.ndarray:
        high, wide = rows + 2 * margin, columns + 2 * margin
        filled = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
        return np.argwhere(filled == high * wide)

    if rows > height or columns > width:
        return None
    best = places(0)
    margin, too_wide = 0, min(height - rows, width - columns) // 2 + 1
    while len(best) and margin + 1 < too_wide:
        middle = (margin + too_wide) // 2
        found = places(middle)
        if len(found):
            margin, best = middle, found
        else:
            too_wide = middle
    if not len(best):
        return None
    nearest = np.abs(best - best.mean(axis=0)).sum(axis=1).argmin()
    row, column = best[nearest] + margin
    return int(row), int(column)
