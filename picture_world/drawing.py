"""Draws scenes of the picture world: a picture, its exact mask and its objects, from one seed."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .classes import GROUND_NAMES, OBJECT_NAMES
from .grounds import paint_ground
from .objects import draw_object
from .pen import Pen
from .pools import POOL_NAMES, Pool, PoolName, colour_word

SCENE_SIZE = 96
RADIUS_RANGE = (14.0, 26.0)

# Grounds that are often drawn above a horizon; others are more rarely.
_UPPER = tuple(len(OBJECT_NAMES) + GROUND_NAMES.index(name) for name in ("sky", "night", "brick"))
_OBJECTS = tuple(range(len(OBJECT_NAMES)))
_GROUNDS = tuple(range(len(OBJECT_NAMES), len(OBJECT_NAMES) + len(GROUND_NAMES)))
# How often a rare class is chosen, in relation to another one.
_RARE = 0.25
# No object may be hidden by others or the border by more than this share.
_MOST_HIDDEN = 0.4


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        class_id: its class id.
        colour: the word for its main colour.
        area: its full area in pixels.
        centre: row and column of the middle of its drawing, in pixels.
    """

    class_id: int
    colour: str
    area: int
    centre: tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Attributes:
        image: RGB picture.
        mask: mode L, the same size, a class id in every pixel.
        things: the objects, from back to front.
        grounds: class ids of the grounds, the upper one first.
        horizon: mean row of the line between the grounds, in pixels; 0 with one ground.
    """

    image: Image.Image
    mask: Image.Image
    things: tuple[Thing, ...]
    grounds: tuple[int, ...]
    horizon: int


def draw_scene(
    seed: int,
    pool: PoolName = "train",
    *,
    size: int = SCENE_SIZE,
    objects: tuple[int, ...] | None = None,
    grounds: tuple[int, ...] | None = None,
    rare: Collection[int] = (),
    absent: Collection[int] = (),
) -> Scene:
    """Draw a scene; the same arguments give the same scene.

    Args:
        seed: a non-negative number.
        pool: whose drawing parameters to use, "train" or "test".
        size: side of the picture in pixels. Objects and textures scale with it.
        objects: class ids of the objects from back to front; default: 1 to 4 at random. An object without enough
            space is left out.
        grounds: class ids of one ground, or of an upper and a lower one; default: at random.
        rare: class ids that are chosen at random a quarter as often as others.
        absent: class ids that are not chosen at random.

    Returns:
        The scene.
    """
    if pool not in POOL_NAMES:
        raise ValueError(f"Unknown pool of drawing parameters {pool!r}: choose from {', '.join(POOL_NAMES)}.")
    rng = np.random.default_rng([POOL_NAMES.index(pool), seed])
    source = Pool(pool, rng)
    scale = size / SCENE_SIZE
    if grounds is None:
        grounds = _choose_grounds(rng, rare, absent)
    if objects is None:
        count = rng.choice((1, 2, 3, 4), p=(0.3, 0.35, 0.2, 0.15))
        objects = tuple(rng.choice(_OBJECTS, size=count, p=_chances(_OBJECTS, rare, absent)).tolist())

    canvas, mask, horizon = _lay_grounds(grounds, size, scale, source)
    owner = np.full((size, size), -1, dtype=np.int16)
    areas: list[int] = []
    things: list[Thing] = []
    for class_id in objects:
        thing = _place(class_id, canvas, mask, owner, areas, scale, source)
        if thing is not None:
            things.append(thing)
    _light(canvas, scale, source)
    np.clip(canvas, 0, 255, out=canvas)
    return Scene(Image.fromarray(canvas.astype(np.uint8)), Image.fromarray(mask), tuple(things), grounds, horizon)


def _chances(ids: tuple[int, ...], rare: Collection[int], absent: Collection[int]) -> np.ndarray:
    """Return the probability of each class among some."""
    weights = np.array([0.0 if class_id in absent else _RARE if class_id in rare else 1.0 for class_id in ids])
    return weights / weights.sum()


def _choose_grounds(rng: np.random.Generator, rare: Collection[int], absent: Collection[int]) -> tuple[int, ...]:
    """Choose one ground, or an upper and a lower one."""
    lower = int(rng.choice(_GROUNDS, p=_chances(_GROUNDS, rare, absent)))
    if rng.random() < 0.35:
        return (lower,)
    among = _UPPER if rng.random() < 0.6 else _GROUNDS
    upper = int(rng.choice(among, p=_chances(among, rare, absent)))
    return (upper, lower) if upper != lower else (lower,)


def _lay_grounds(grounds: tuple[int, ...], size: int, scale: float, pool: Pool) -> tuple[np.ndarray, np.ndarray, int]:
    """Paint the grounds: colours (size, size, 3) float32, class ids (size, size) uint8, and the row between them."""
    canvas = paint_ground(grounds[-1], size, scale, pool)
    mask = np.full((size, size), grounds[-1], dtype=np.uint8)
    middle = 0
    if len(grounds) == 2:
        across = np.linspace(-1, 1, size, dtype=np.float32)
        horizon = pool.rng.uniform(0.25, 0.7) + pool.uniform(-0.12, 0.12) * across
        horizon = horizon + pool.uniform(0, 0.03) * np.sin(across * pool.uniform(3, 7) + 6 * pool.rng.random())
        middle = round(float(horizon.mean()) * size)
        above = np.arange(size)[:, None] + 0.5 < (horizon * size)[None]
        canvas = np.where(above[..., None], paint_ground(grounds[0], size, scale, pool), canvas)
        mask[above] = grounds[0]
    return canvas, mask, middle


def _place(
    class_id: int,
    canvas: np.ndarray,
    mask: np.ndarray,
    owner: np.ndarray,
    areas: list[int],
    scale: float,
    pool: Pool,
) -> Thing | None:
    """Draw an object where enough of it and of the objects behind it is visible; changes the arrays in place.

    Args:
        class_id: the object's class id.
        canvas: colours (size, size, 3) float32.
        mask: class ids (size, size) uint8.
        owner: index (size, size) of the object that each pixel shows, -1 for ground.
        areas: full pixel counts of the objects so far; the new one's is appended.
        scale: pixels per unit of the scene.
        pool: the source of parameters.

    Returns:
        The object, or None if there is no such position.
    """
    size = len(mask)
    pen = Pen(
        radius=pool.uniform(*RADIUS_RANGE) * scale,
        tilt=pool.uniform(-20, 20),
        stretch=pool.uniform(0.82, 1.22),
        mirrored=pool.chance(0.5),
    )
    colour = draw_object(class_id, pen, pool)
    painted, cover = pen.tile()
    slope = pool.uniform(-0.2, 0.2) * np.linspace(-1, 1, pen.side, dtype=np.float32)
    painted = painted * (1 + slope[None, :, None] + 0.1 * slope[::-1, None, None])
    solid = cover[..., 0] > 0.5
    painted = np.where(_rim(solid, max(1, round(scale)))[..., None], 0.55 * painted, painted)
    area = int(solid.sum())
    for _ in range(6):
        centre_y, centre_x = pool.rng.uniform(0.12, 0.88, size=2) * size
        top, left = int(centre_y) - pen.side // 2, int(centre_x) - pen.side // 2
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = min(top + pen.side, size), min(left + pen.side, size)
        inner = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        outer = (slice(y0, y1), slice(x0, x1))
        shown = solid[inner]
        if shown.sum() < (1 - _MOST_HIDDEN) * area:
            continue
        left_over = [
            np.count_nonzero(owner == index) - np.count_nonzero(owner[outer][shown] == index)
            for index in range(len(areas))
        ]
        if any(rest < (1 - _MOST_HIDDEN) * full for rest, full in zip(left_over, areas, strict=True)):
            continue
        part = canvas[outer]
        canvas[outer] = part + painted[inner] - cover[inner] * part
        owner[outer][shown] = len(areas)
        mask[outer][shown] = class_id
        areas.append(area)
        return Thing(class_id, colour_word(colour), area, (int(centre_y), int(centre_x)))
    return None


def _rim(solid: np.ndarray, width: int) -> np.ndarray:
    """Mark all but the interior of a shape (side, side) bool: its contour, which separates it from any ground."""
    inside = np.zeros_like(solid)
    core = slice(width, -width)
    inside[core, core] = solid[: -2 * width, core] & solid[2 * width :, core]
    inside[core, core] &= solid[core, : -2 * width] & solid[core, 2 * width :]
    return ~inside


def _light(canvas: np.ndarray, scale: float, pool: Pool) -> None:
    """Apply brightness, a slanted gradient and grain to colours (size, size, 3) in place."""
    size = len(canvas)
    line = np.linspace(-1, 1, size, dtype=np.float32)
    glow = pool.uniform(0.8, 1.1) + pool.uniform(-0.12, 0.12) * line[:, None] + pool.uniform(-0.12, 0.12) * line[None]
    canvas *= glow[..., None]
    grain = pool.rng.random((size, size, 1), dtype=np.float32) - 0.5
    canvas += pool.uniform(2, 22) * grain
