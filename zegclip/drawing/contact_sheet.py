"""A data set at a glance: some of its pictures, each beside its classes in colour."""

from collections.abc import Iterable

import numpy as np
from PIL import Image

from zegclip.drawing.legend import arrange
from zegclip.drawing.overlay import class_panes, class_shares
from zegclip.processing.class_split import ClassSplit


def draw_contact_sheet(pictures: Iterable[tuple[str, Image.Image, np.ndarray]], split: ClassSplit) -> Image.Image:
    """
    Draw pictures in a grid, each beside its classes, with a legend of the shares of its pixels.

    Args:
        pictures: At least one; title, RGB picture, and `(height, width)` ids of its size, or -1 for ignored pixels.
        split: The classes.

    Returns:
        RGB.
    """
    tiles = []
    for title, picture, ids in pictures:
        shown = class_shares(ids, len(split.names))
        ignored = f"{100 * (ids < 0).mean():.1f} %"
        tiles.append(class_panes(picture, {"classes": ids}, split, *shown, title=title, ignored=ignored))
    return arrange(tiles, columns=3, gap=0)
