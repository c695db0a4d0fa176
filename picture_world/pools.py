"""Disjoint pools of drawing parameters for training and test pictures."""

import colorsys
from typing import Literal

import numpy as np

Colour = tuple[int, int, int]
PoolName = Literal["train", "test"]

POOL_NAMES: tuple[PoolName, ...] = ("train", "test")


class Pool:
    """A random source of drawing parameters whose values depend on the pool.

    Each range is cut into equal cells; "train" draws from the even cells and "test" from the odd ones, so no
    parameter of a test picture ever has a value that a training picture could have.

    Args:
        name: "train" or "test".
        rng: the random generator that supplies all numbers.
    """

    def __init__(self, name: PoolName, rng: np.random.Generator) -> None:
        self.offset = POOL_NAMES.index(name)
        self.rng = rng

    def uniform(self, low: float, high: float, cells: int = 12) -> float:
        """Draw a number in [low, high) from this pool's half of an even number of cells."""
        cell = 2 * int(self.rng.random() * (cells // 2)) + self.offset
        return low + (high - low) * (cell + self.rng.random()) / cells

    def chance(self, probability: float) -> bool:
        """Draw a boolean, for instance whether there is a chimney; unlike numbers, it does not depend on the pool."""
        return bool(self.rng.random() < probability)

    def paint(
        self,
        hue: tuple[float, float] = (0.0, 360.0),
        saturation: tuple[float, float] = (0.55, 0.95),
        value: tuple[float, float] = (0.6, 0.97),
    ) -> Colour:
        """Draw a colour (RGB, 0..255) from ranges of hue in degrees (may pass 360), saturation and value in 0..1."""
        red, green, blue = colorsys.hsv_to_rgb(
            self.uniform(*hue, cells=24) / 360.0 % 1.0, self.uniform(*saturation), self.uniform(*value)
        )
        return round(255 * red), round(255 * green), round(255 * blue)


def shade(colour: Colour, factor: float) -> Colour:
    """Darken (factor < 1) a colour towards black or lighten (factor > 1, up to 2) it towards white."""
    if factor <= 1:
        red, green, blue = (round(channel * factor) for channel in colour)
    else:
        red, green, blue = (round(channel + (255 - channel) * (factor - 1)) for channel in colour)
    return red, green, blue


def colour_word(colour: Colour) -> str:
    """Name a colour (RGB, 0..255) with one common English word."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    if value < 0.2:
        return "black"
    if saturation < 0.18:
        return "white" if value > 0.75 else "grey"
    degrees = 360 * hue
    if (degrees < 50 and value < 0.62) or (15 <= degrees < 40 and saturation < 0.62 and value < 0.8):
        return "brown"
    for limit, word in ((15, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (255, "blue"), (292, "purple")):
        if degrees < limit:
            return word
    return "pink" if degrees < 342 else "red"
