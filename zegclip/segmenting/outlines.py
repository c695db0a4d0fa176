"""Regions of a class map as polygons."""

from itertools import pairwise
from typing import Any

import contourpy
import numpy as np

_LEVEL = 0.501  # At 0.5, a corner at which two pixels touch would be undecided.


def outline(inside: np.ndarray) -> list[list[list[list[float]]]]:
    """
    Return the polygons around a region, as the coordinates of a `MultiPolygon` in GeoJSON.

    They hold the centre of each pixel of the region and of no other: lines lie midway between the centres of two
    pixels, and cut corners off. Pixels that touch at a corner alone belong to different polygons.

    Args:
        inside: `(height, width)` bool.

    Returns:
        For each polygon its outer ring, then those of its holes; for each ring its points, x and y in pixels from the
        picture's upper left corner, the first one again at the end.
    """
    heights = np.pad(inside, 1).astype(np.float32)
    x, y = (np.arange(size) - 0.5 for size in heights.shape[::-1])
    generator = contourpy.contour_generator(x, y, heights, fill_type=contourpy.FillType.OuterOffset)
    polygons: Any = generator.filled(_LEVEL, np.inf)
    return [
        [_without_straight_points(points[start:stop]) for start, stop in pairwise(offsets)]
        for points, offsets in zip(*polygons, strict=True)
    ]


def _without_straight_points(ring: np.ndarray) -> list[list[float]]:
    """Drop the points of a closed ring at which it goes straight on, and round the others to 1/1000 of a pixel."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    kept = points[turns].round(3).tolist()
    return [*kept, kept[0]]
