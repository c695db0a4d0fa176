"""Colours of classes, the same ones in index masks, pictures and legends."""

import numpy as np
from PIL import Image

FIRST_COLOURS = (
    (45, 115, 213), (255, 59, 3), (45, 255, 199), (143, 45, 73), (185, 241, 129), (255, 227, 17),
    (227, 101, 101), (199, 115, 171), (157, 3, 3), (73, 31, 199), (115, 45, 129), (185, 171, 255),
    (73, 185, 143), (171, 171, 73), (255, 171, 45), (129, 87, 255), (157, 87, 171), (17, 129, 59),
    (143, 241, 157), (87, 45, 157), (185, 87, 115), (241, 157, 213), (143, 59, 115), (213, 241, 101),
    (143, 143, 255), (115, 143, 17), (241, 115, 213), (157, 199, 115), (3, 87, 17), (59, 73, 199),
    (255, 185, 255), (199, 31, 45), (3, 227, 157), (59, 157, 101), (115, 59, 157), (171, 87, 143),
    (171, 101, 255), (143, 143, 59), (213, 185, 73), (199, 199, 101),
)  # fmt: skip
"""
Forty colours, then the colour map of Pascal VOC goes on: its own first colours are dark and much alike.

Found by a search for colours that stay apart, also inside of outlines ([`fill_colours`]) and to protanopes,
deuteranopes and tritanopes; the first ones most.
"""
NO_LABEL = 255
"""Pixels without a label in an 8-bit index mask; `NO_LABEL_16_BIT` where there are more than 255 labels."""
NO_LABEL_16_BIT = 65535

_SHARE, _GREY = 0.65, 150  # Of a class's colour inside of its regions, and what it is mixed with.


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


def fill_colours(colours: np.ndarray) -> np.ndarray:
    """Return what classes look like inside of their outlines, where the picture shines through, as `colours`."""
    return np.rint(_SHARE * colours + (1 - _SHARE) * _GREY).astype(np.uint8)


def edge_colours(colours: np.ndarray) -> np.ndarray:
    """Return black or white for each colour, `(count, 3)` uint8: the one that is far from it."""
    brightness = colours @ np.array([0.299, 0.587, 0.114])
    return np.where(brightness[:, None] > 128, 0, 255).astype(np.uint8).repeat(3, axis=1)


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
