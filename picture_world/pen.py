"""A pen that draws filled shapes on a transparent, supersampled tile under an affine transformation."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .pools import Colour

Point = tuple[float, float]

SUPERSAMPLING = 3
# Half the side of the tile in units of the radius, with space for corners that a rotation moves outwards.
MARGIN = 1.45

_CIRCLE = [(math.cos(2 * math.pi * step / 24), math.sin(2 * math.pi * step / 24)) for step in range(24)]


class Pen:
    """Draws shapes given in unit coordinates (x right, y down, the object within about [-1, 1] squared).

    Args:
        radius: length of the unit in pixels of the final picture.
        tilt: clockwise turn in degrees.
        stretch: width over height.
        mirrored: whether left and right are exchanged.
    """

    def __init__(self, radius: float, tilt: float = 0.0, stretch: float = 1.0, mirrored: bool = False) -> None:
        self.side = 2 * math.ceil(radius * MARGIN)
        unit = radius * SUPERSAMPLING
        self._centre = self.side * SUPERSAMPLING / 2
        width = unit * math.sqrt(stretch) * (-1 if mirrored else 1)
        height = unit / math.sqrt(stretch)
        turn = math.radians(tilt)
        self._matrix = (
            width * math.cos(turn),
            -height * math.sin(turn),
            width * math.sin(turn),
            height * math.cos(turn),
        )
        self._tile = Image.new("RGBA", (self.side * SUPERSAMPLING,) * 2)
        self._draw = ImageDraw.Draw(self._tile)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon."""
        a, b, c, d = self._matrix
        centre = self._centre
        placed = [(a * x + b * y + centre, c * x + d * y + centre) for x, y in points]
        self._draw.polygon(placed, fill=(*colour, 255))

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill an upright rectangle."""
        self.polygon(((left, top), (right, top), (right, bottom), (left, bottom)), colour)

    def oval(
        self, x: float, y: float, width: float, height: float, colour: Colour, part: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        """Fill an ellipse with the given half axes, or a sector of it: 0 is right, 0.25 is down, 0.5 is left."""
        if part == (0.0, 1.0):
            circle = _CIRCLE
        else:
            turns = [2 * math.pi * (part[0] + (part[1] - part[0]) * step / 16) for step in range(17)]
            circle = [(math.cos(turn), math.sin(turn)) for turn in turns]
        self.polygon([(x + width * cosine, y + height * sine) for cosine, sine in circle], colour)

    def stroke(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        """Fill a straight bar of the given width between two points."""
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        across_x, across_y = (y0 - y1) / length * width / 2, (x1 - x0) / length * width / 2
        self.polygon(
            (
                (x0 + across_x, y0 + across_y),
                (x1 + across_x, y1 + across_y),
                (x1 - across_x, y1 - across_y),
                (x0 - across_x, y0 - across_y),
            ),
            colour,
        )

    def tile(self) -> tuple[np.ndarray, np.ndarray]:
        """Return colours times coverage (side, side, 3) in 0..255 and coverage (side, side, 1) in 0..1, float32."""
        small = np.asarray(self._tile.reduce(SUPERSAMPLING), dtype=np.float32)
        cover = small[..., 3:] / 255
        return small[..., :3] * cover, cover
