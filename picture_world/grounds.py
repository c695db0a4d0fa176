"""The grounds: each function paints a texture over a whole picture from a pool's parameters."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from .classes import GROUND_NAMES, OBJECT_NAMES
from .pools import Colour, Pool


def _noise(size: int, scale: float, pool: Pool, cells_wide: float, cells_high: float) -> np.ndarray:
    """Smooth noise (size, size) in about -1..1, with the given cells per 96 units of the scene across and down."""
    wide, high = max(2, round(cells_wide * size / 96 / scale)), max(2, round(cells_high * size / 96 / scale))
    coarse = pool.rng.random((high, wide), dtype=np.float32) * 2 - 1
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def _axes(size: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the pixel centres in units of the scene: down (size, 1) and across (1, size), float32."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) / scale)[:, None]
    return line, line.T


def _blend(base: Colour, other: Colour, amount: np.ndarray) -> np.ndarray:
    """Mix two colours by an amount (size, size) in 0..1 into (size, size, 3) float32."""
    start = np.asarray(base, dtype=np.float32)
    return start + amount[..., None] * (np.asarray(other, dtype=np.float32) - start)


def _grass(size: int, scale: float, pool: Pool) -> np.ndarray:
    light = pool.paint(hue=(80, 125), saturation=(0.5, 0.8), value=(0.6, 0.8))
    dark = pool.paint(hue=(90, 130), saturation=(0.6, 0.85), value=(0.3, 0.45))
    blades = _noise(size, scale, pool, pool.uniform(40, 56), pool.uniform(12, 18))
    return _blend(light, dark, np.clip(0.5 + 0.7 * blades, 0, 1))


def _water(size: int, scale: float, pool: Pool) -> np.ndarray:
    deep = pool.paint(hue=(175, 215), saturation=(0.6, 0.9), value=(0.4, 0.65))
    crest = pool.paint(hue=(175, 205), saturation=(0.25, 0.5), value=(0.8, 0.95))
    down, across = _axes(size, scale)
    bend = pool.uniform(1, 2.5) * np.sin(across / pool.uniform(4, 8) + pool.rng.random() * 6)
    waves = np.sin((down + bend) * (6.283 / pool.uniform(7, 12)))
    waves = waves + 0.6 * _noise(size, scale, pool, 10, 16)
    return _blend(deep, crest, np.clip(waves * 0.8 - 0.1, 0, 1))


def _sand(size: int, scale: float, pool: Pool) -> np.ndarray:
    light = pool.paint(hue=(36, 52), saturation=(0.3, 0.5), value=(0.82, 0.95))
    dark = pool.paint(hue=(30, 46), saturation=(0.4, 0.6), value=(0.6, 0.75))
    grain = pool.uniform(0.3, 0.5) * (pool.rng.random((size, size), dtype=np.float32) - 0.5)
    return _blend(light, dark, np.clip(0.4 + grain + 0.35 * _noise(size, scale, pool, 6, pool.uniform(10, 16)), 0, 1))


def _brick(size: int, scale: float, pool: Pool) -> np.ndarray:
    clay = pool.paint(hue=(2, 24), saturation=(0.5, 0.75), value=(0.5, 0.75))
    mortar = pool.paint(hue=(20, 50), saturation=(0.05, 0.2), value=(0.65, 0.85))
    down, across = _axes(size, scale)
    high = pool.uniform(6.5, 9.5)
    wide = high * pool.uniform(1.8, 2.3)
    row = np.floor((down + 10 * pool.rng.random()) / high)
    along = across + wide / 2 * (row % 2)
    gap = pool.uniform(1.1, 1.8)
    joint = ((down + 0 * across) % high < gap) | (along % wide < gap)
    tone = np.sin(row * 12.99 + np.floor(along / wide) * 78.23) * 0.16
    tone = tone + 0.12 * _noise(size, scale, pool, 40, 40)
    wall = np.asarray(clay, dtype=np.float32) * (1 + tone[..., None])
    return np.where(joint[..., None], np.asarray(mortar, dtype=np.float32), wall)


def _snow(size: int, scale: float, pool: Pool) -> np.ndarray:
    light = pool.paint(hue=(190, 240), saturation=(0.0, 0.05), value=(0.95, 1.0))
    dark = pool.paint(hue=(205, 235), saturation=(0.12, 0.25), value=(0.8, 0.9))
    drifts = _noise(size, scale, pool, pool.uniform(3, 6), pool.uniform(8, 13))
    return _blend(light, dark, np.clip(0.35 + 0.6 * drifts, 0, 1))


def _sky(size: int, scale: float, pool: Pool) -> np.ndarray:
    top = pool.paint(hue=(200, 222), saturation=(0.5, 0.75), value=(0.75, 0.95))
    low = pool.paint(hue=(195, 215), saturation=(0.2, 0.4), value=(0.9, 1.0))
    down, across = _axes(size, scale)
    air = _blend(top, low, np.clip(down / 80 + 0 * across, 0, 1))
    cloud = np.clip(1.6 * (_noise(size, scale, pool, pool.uniform(3, 6), pool.uniform(6, 9)) - 0.15), 0, 0.95)
    return air + cloud[..., None] * (250 - air)


def _night(size: int, scale: float, pool: Pool) -> np.ndarray:
    top = pool.paint(hue=(225, 260), saturation=(0.55, 0.9), value=(0.08, 0.18))
    low = pool.paint(hue=(230, 275), saturation=(0.5, 0.8), value=(0.2, 0.32))
    down, across = _axes(size, scale)
    dark = _blend(top, low, np.clip(down / 96 + 0 * across, 0, 1))
    count = round(pool.uniform(45, 90) * (size / 96 / scale) ** 2)
    y, x = (pool.rng.random((2, count)) * (size - scale)).astype(int)
    for step_y in range(max(1, round(scale))):
        for step_x in range(max(1, round(scale))):
            dark[y + step_y, x + step_x] = (245, 240, 205)
    return dark


def _road(size: int, scale: float, pool: Pool) -> np.ndarray:
    tar = pool.paint(saturation=(0.0, 0.08), value=(0.32, 0.5))
    paint = pool.paint(hue=(40, 60), saturation=(0.0, 0.5), value=(0.85, 1.0))
    down, across = _axes(size, scale)
    period, long = pool.uniform(22, 34), pool.uniform(12, 18)
    wide, spacing = pool.uniform(2.5, 4), pool.uniform(24, 36)
    lane = np.floor((down + 40 * pool.rng.random()) / spacing)
    dash = (down % spacing < wide) & ((across + period * 0.5 * (lane % 2) + 30 * pool.rng.random()) % period < long)
    grain = pool.uniform(0.1, 0.2) * (pool.rng.random((size, size), dtype=np.float32) - 0.5)
    surface = np.asarray(tar, dtype=np.float32) * (1 + grain[..., None])
    return np.where(dash[..., None], np.asarray(paint, dtype=np.float32), surface)


def _wood(size: int, scale: float, pool: Pool) -> np.ndarray:
    light = pool.paint(hue=(22, 38), saturation=(0.45, 0.7), value=(0.6, 0.85))
    dark = pool.paint(hue=(15, 32), saturation=(0.55, 0.8), value=(0.35, 0.5))
    down, across = _axes(size, scale)
    plank = pool.uniform(10, 16)
    row = np.floor((across + 10 * pool.rng.random()) / plank)
    veins = np.sin(across * pool.uniform(1.5, 2.2) + 2.5 * _noise(size, scale, pool, 4, 3) + row * 2.3)
    board = _blend(light, dark, np.clip(0.3 + 0.25 * veins + 0.2 * np.sin(row * 7.7), 0, 1))
    gap = ((across + 0 * down) - row * plank) % plank < pool.uniform(0.8, 1.3)
    return np.where(gap[..., None], 0.5 * np.asarray(dark, dtype=np.float32), board)


def _gravel(size: int, scale: float, pool: Pool) -> np.ndarray:
    light = pool.paint(hue=(20, 60), saturation=(0.02, 0.15), value=(0.7, 0.9))
    dark = pool.paint(hue=(200, 260), saturation=(0.02, 0.15), value=(0.25, 0.4))
    stones = _noise(size, scale, pool, pool.uniform(20, 30), pool.uniform(20, 30))
    return _blend(light, dark, np.clip(0.5 + 1.4 * stones, 0, 1))


def _carpet(size: int, scale: float, pool: Pool) -> np.ndarray:
    cloth = pool.paint(hue=(285, 380), saturation=(0.5, 0.85), value=(0.4, 0.7))
    figure = pool.paint(hue=(35, 60), saturation=(0.3, 0.7), value=(0.75, 0.95))
    down, across = _axes(size, scale)
    step = pool.uniform(13, 20)
    x, y = (across + 20 * pool.rng.random()) % step - step / 2, (down + 20 * pool.rng.random()) % step - step / 2
    distance = (np.abs(x) + np.abs(y)) / step
    ring = ((distance > 0.36) & (distance < pool.uniform(0.44, 0.5))) | (distance < pool.uniform(0.1, 0.18))
    thread = pool.uniform(0.1, 0.2) * (pool.rng.random((size, size), dtype=np.float32) - 0.5)
    return _blend(cloth, figure, ring.astype(np.float32)) * (1 + thread[..., None])


_PAINTERS: tuple[Callable[[int, float, Pool], np.ndarray], ...] = (
    _grass,
    _water,
    _sand,
    _brick,
    _snow,
    _sky,
    _night,
    _road,
    _wood,
    _gravel,
    _carpet,
)


def paint_ground(class_id: int, size: int, scale: float, pool: Pool) -> np.ndarray:
    """Paint a ground.

    Args:
        class_id: the ground's class id.
        size: side of the picture in pixels.
        scale: pixels per unit of the scene; textures keep their size in units.
        pool: the source of colours and texture parameters.

    Returns:
        Colours (size, size, 3), float32, in about 0..255.
    """
    return _PAINTERS[class_id - len(OBJECT_NAMES)](size, scale, pool)


# Both lists are in the order of the class ids.
assert [painter.__name__.removeprefix("_") for painter in _PAINTERS] == list(GROUND_NAMES)
