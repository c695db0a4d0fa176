"""Masks of one class: what is drawn, however it is stored."""

from pathlib import Path

import numpy as np

from zegclip.importing.listing import one_line
from zegclip.importing.mask_files import load_ids
from zegclip.processing.image_reading import load_alpha, load_colours, read_palette, read_storage
from zegclip.processing.input_error import InputError

_TOPS = (1, 255, 65535)
"""Values of the class in masks whose other value is 0."""
_BETWEEN = 0.1
"""Largest share of pixels that are neither dark nor light, such as those of smoothed borders."""


def read_shape(path: Path) -> np.ndarray:
    """
    Read a mask of one class: where it is white of black and white, 1 of 0 and 1, light on black, or opaque.

    - A palette, and a file of one bit, count by the colours that are shown, not by the numbers that are stored.
    - If what is opaque is all dark or all light, the transparency is the shape, from half of the largest opacity on.

    Returns:
        `(height, width)` bool.

    Raises:
        InputError: If the file cannot be read, or has other values or colours.
    """
    values = _read_two_values(path)
    try:
        colours = load_colours(path).astype(np.int16)
    except InputError:
        if values is None:
            raise
        return values > 0  # of 16 bits, or of NumPy
    if (drawn := read_cut_out(path)) is not None:
        return drawn
    light = colours.min(axis=2) > 223
    plain = light | (colours.max(axis=2) < 32)
    if values is None:
        fits = plain.mean() >= 1 - _BETWEEN
    else:
        fits = plain.all() and (light.any() or _shows_colours(path))
    if fits:
        return colours.max(axis=2) > 127
    if values is not None:
        return values > 0
    bright = colours.max(axis=2)
    if bright.max(initial=0) < 128 or ((bright > 31) & (bright < 224)).mean() > _BETWEEN:
        raise InputError(f"{one_line(path)} is not a mask of one class: its values are neither 0 and 1 nor 0 and 255.")
    return bright > 127


def _read_two_values(path: Path) -> np.ndarray | None:
    """Read the numbers of a file that has 0 and at most one other, of `_TOPS`; `None` if not."""
    try:
        values = load_ids(path)
    except InputError:
        return None
    top = values.max(initial=0)
    return values if top in (0, *_TOPS) and np.isin(values, (0, top)).all() else None


def read_cut_out(path: Path) -> np.ndarray | None:
    """
    Read a mask whose transparency is the shape.

    Returns:
        `(height, width)` bool; `None` if the colours are the shape.

    Raises:
        InputError: As [`load_colours`].
    """
    alpha = load_alpha(path)
    if alpha is None:
        return None
    colours = load_colours(path)
    if not alpha.any():  # Nothing is drawn, unless colours tell more.
        return np.zeros(alpha.shape, dtype=bool) if (colours == colours[:1, :1]).all() else None
    drawn = 2 * alpha.astype(np.int16) >= alpha.max()
    bright = colours.max(axis=2)[drawn] > 127
    return drawn if not drawn.all() and (bright.all() or not bright.any()) else None


def _shows_colours(path: Path) -> bool:
    """Return whether a file shows other colours than grey values of its numbers."""
    return read_storage(path)[0] == "1" or read_palette(path) is not None
