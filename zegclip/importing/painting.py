"""Class maps from outlines and run lengths. Where regions overlap, the larger area lies below."""

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from zegclip.errors import UsageError
from zegclip.processing.input_error import InputError

_FARTHEST = 20
"""How far outside a polygon may reach, in sides of the picture."""


class Region(NamedTuple):
    """
    A region of one class.

    Attributes:
        class_id: Its class.
        outline: As in COCO: a list of polygons `[x, y, x, y, ...]` in pixels, or run lengths with `size` and `counts`.
    """

    class_id: int
    outline: Any


def check_packages(*names: str) -> None:
    """Raise a `UsageError` unless these packages of the extra `import` are installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"this format needs {', '.join(missing)}, not installed here: pip install 'zegclip[import]'.")


def paint_regions(regions: Sequence[Region], size: tuple[int, int], background: int, name: str) -> np.ndarray:
    """
    Paint regions in the order of decreasing area; of equal ones, the later lies above.

    Args:
        regions: The regions of a picture.
        size: Width and height in pixels.
        background: Id where there is no region.
        name: What errors call the annotations.

    Returns:
        `(height, width)` int64.

    Raises:
        InputError: If an outline is no polygon or no run lengths of this size.
    """
    from pycocotools import mask as coco_mask

    width, height = size
    encoded = []
    for region in regions:
        try:
            encoded.append(_encode(region.outline, width, height))
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            raise InputError(f"{name}: an outline cannot be read: {error}") from error
    areas = [0 if code is None else int(coco_mask.area(code)) for code in encoded]
    ids = np.full((height, width), background, dtype=np.int64)
    for index in by_area(areas):
        if encoded[index] is not None:
            ids[coco_mask.decode(encoded[index]).astype(bool)] = regions[index].class_id
    return ids


def by_area(areas: Iterable[int]) -> list[int]:
    """Return the order in which regions with these areas are painted."""
    areas = list(areas)
    return sorted(range(len(areas)), key=lambda index: -areas[index])


def _encode(outline: Any, width: int, height: int) -> Any:
    """Return compressed run lengths; `None` for polygons that enclose nothing."""
    from pycocotools import mask as coco_mask

    if isinstance(outline, dict):
        if [int(side) for side in outline["size"]] != [height, width]:
            raise ValueError(f"its run lengths are of {outline['size']} pixels, not {[height, width]}")
        counts = outline["counts"]
        counts = list(map(int, counts)) if isinstance(counts, list) else _decompress(counts)
        # pycocotools does not check the sum, and leaves what is not covered as it was in memory.
        if sum(counts) != height * width or min(counts, default=0) < 0:
            raise ValueError(f"its run lengths do not cover {width}x{height} pixels")
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    polygons = []
    for polygon in outline:
        corners = np.asarray(polygon, dtype=np.float64).ravel()
        if len(corners) % 2 or not np.isfinite(corners).all():
            raise ValueError("a polygon needs pairs of finite numbers")
        if np.abs(corners).max(initial=0) > _FARTHEST * max(width, height):  # pycocotools would crash
            raise ValueError(f"a polygon reaches to {np.abs(corners).max():g}, far outside of {width}x{height} pixels")
        if len(corners) >= 6:
            polygons.append(corners.tolist())
    if not polygons:
        return None
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def _decompress(text: str | bytes) -> list[int]:
    """Return the run lengths of COCO's compressed text: 5 bits a letter, from the third on as differences."""
    counts: list[int] = []
    value = shift = 0
    for letter in text.encode() if isinstance(text, str) else text:
        bits = letter - 48
        if not 0 <= bits < 64:
            raise ValueError("its run lengths are not COCO's compressed text")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
