"""Colour-coded masks: the class of a pixel is that of the nearest listed colour, if it is near enough."""

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from zegclip.files import replacing
from zegclip.importing.shapes import read_cut_out
from zegclip.importing.sources import IGNORED, UNLISTED
from zegclip.processing.image_reading import load_colours

DISTANCE = 24
"""Largest distance in RGB from a listed colour; less where listed colours lie closer together."""
_BLOCK = 1 << 16

Colour = tuple[int, int, int]


def nearest_listed(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """
    Find the listed colour of each pixel.

    Args:
        pixels: `(n, 3)`.
        colours: `(c, 3)`, all different.

    Returns:
        `(n,)` int64 positions; -1 where none is within `DISTANCE` and nearer than half the distance of any two.
    """
    colours = np.asarray(colours, dtype=np.float64)
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    limit = min(DISTANCE, np.nextafter(apart[apart > 0].min(initial=np.inf) / 2, 0))
    found = np.empty(len(pixels), dtype=np.int64)
    for start in range(0, len(pixels), _BLOCK):
        block = np.asarray(pixels[start : start + _BLOCK], dtype=np.float64)
        # |p - c|^2 without an array of pixels x colours x 3; exact, as all are small integers.
        squares = (block**2).sum(1)[:, None] - 2 * block @ colours.T + (colours**2).sum(1)
        nearest = squares.argmin(1)
        within = squares[np.arange(len(block)), nearest] <= limit**2
        found[start : start + _BLOCK] = np.where(within, nearest, -1)
    return found


def merge_near(
    counts: Sequence[tuple[Colour, int]], smallest: float, kept: Collection[Colour]
) -> list[tuple[Colour, int]]:
    """
    Count colours within `DISTANCE` of a more frequent one as that.

    Args:
        counts: Colours with their numbers of pixels, the most frequent one first.
        smallest: Colours that are less frequent, and near none, are left out.
        kept: Colours that count for themselves.

    Returns:
        The same, merged.
    """
    colours = np.array([colour for colour, _ in counts]).reshape(-1, 3)
    left = np.array([count for _, count in counts])
    stays = np.array([colour in kept for colour, _ in counts])
    merged = []
    for index, (colour, _) in enumerate(counts):
        if left[index] == 0:
            continue
        if left[index] < smallest:
            break
        near = (np.linalg.norm(colours - colours[index], axis=1) <= DISTANCE) & (left > 0) & ~stays
        near[index] = True
        merged.append((colour, int(left[near].sum())))
        left[near] = 0
    return sorted(merged, key=lambda row: (-row[1], row[0]))


def pack(colours: np.ndarray) -> np.ndarray:
    """Return colours `(..., 3)` as one number each, `(...)` int64."""
    return np.asarray(colours).astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def unpack(numbers: np.ndarray) -> np.ndarray:
    """Return the colours of such numbers, `(..., 3)` int64."""
    return np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], axis=-1)


def label_colours(path: Path, colours: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """
    Read a colour-coded mask. If it has one colour, and its transparency is a shape, the rest is black.

    Args:
        path: The file.
        colours: The listed colours, `(c, 3)`.
        owners: The class of each, `(c,)`, or -1 to ignore it.

    Returns:
        `(height, width)` int64 ids, `IGNORED` or `UNLISTED`.

    Raises:
        InputError: As [`load_colours`].
    """
    pixels = load_colours(path)
    if (pixels == pixels[:1, :1]).all() and (shape := read_cut_out(path)) is not None:
        pixels = np.where(shape[..., None], pixels, np.uint8(0))
    values, places = np.unique(pack(pixels), return_inverse=True)
    nearest = nearest_listed(unpack(values), colours)
    ids = np.where(nearest < 0, UNLISTED, np.where(owners[nearest] < 0, IGNORED, owners[nearest]))
    return ids[places.reshape(pixels.shape[:2])]


def write_colours(path: Path, colours: Sequence[tuple[Colour, float]]) -> None:
    """Write a table of colours whose names are to be filled in."""
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "r", "g", "b", "share"])
        writer.writerows(["", *colour, f"{share:.4f}"] for colour, share in colours)
