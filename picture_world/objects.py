"""The objects: each function draws one in unit coordinates with its own proportions and returns its main colour."""

import math
from collections.abc import Callable

from .classes import OBJECT_NAMES
from .pen import Pen
from .pools import Colour, Pool, shade

_WHITE_TONES = {"hue": (30.0, 60.0), "saturation": (0.0, 0.1), "value": (0.9, 1.0)}
_DARK_TONES = {"saturation": (0.1, 0.4), "value": (0.08, 0.22)}


def _house(pen: Pen, pool: Pool) -> Colour:
    wall = pool.paint(hue=(0, 70), saturation=(0.15, 0.6), value=(0.75, 1.0))
    roof = pool.paint(saturation=(0.5, 0.9), value=(0.35, 0.75))
    eaves, wide = pool.uniform(-0.25, 0.05), pool.uniform(0.7, 0.85)
    if pool.chance(0.6):
        pen.box(0.3, -0.9, 0.55, eaves, shade(roof, 0.7))
    pen.box(-wide, eaves, wide, 0.95, wall)
    pen.polygon(((-1.0, eaves), (0.0, pool.uniform(-1.0, -0.8)), (1.0, eaves)), roof)
    glass = pool.paint(hue=(180, 230), saturation=(0.2, 0.6), value=(0.5, 0.95))
    pen.box(-0.17, 0.3, 0.2, 0.95, shade(roof, 0.6))
    pen.box(-wide + 0.12, 0.15, -0.28, 0.5, glass)
    pen.box(0.33, 0.15, wide - 0.1, 0.5, glass)
    return wall


def _tree(pen: Pen, pool: Pool) -> Colour:
    leaf = pool.paint(hue=(75, 150), saturation=(0.5, 0.9), value=(0.25, 0.6))
    trunk = pool.paint(hue=(15, 35), saturation=(0.5, 0.8), value=(0.25, 0.5))
    wide = pool.uniform(0.13, 0.22)
    pen.polygon(((-wide, 0.1), (wide, 0.1), (wide * 1.4, 1.0), (-wide * 1.4, 1.0)), trunk)
    for x, y, size in ((-0.42, 0.0, 0.48), (0.42, 0.02, 0.48), (0.0, -0.42, 0.56), (0.0, 0.05, 0.5)):
        pen.oval(x, y, size * pool.uniform(0.9, 1.1), size, leaf)
    for _ in range(4):
        pen.oval(pool.uniform(-0.6, 0.6), pool.uniform(-0.7, 0.2), 0.13, 0.11, shade(leaf, 1.22))
    return leaf


def _car(pen: Pen, pool: Pool) -> Colour:
    body = pool.paint()
    roof = pool.uniform(-0.62, -0.45)
    pen.polygon(((-0.62, 0.0), (-0.4, roof), (0.3, roof), (0.65, 0.0)), shade(body, 0.9))
    glass = pool.paint(hue=(180, 220), saturation=(0.1, 0.4), value=(0.7, 1.0))
    pen.polygon(((-0.5, -0.04), (-0.34, roof + 0.1), (-0.08, roof + 0.1), (-0.08, -0.04)), glass)
    pen.polygon(((0.04, -0.04), (0.04, roof + 0.1), (0.26, roof + 0.1), (0.5, -0.04)), glass)
    pen.polygon(((-1.0, 0.05), (-0.9, -0.06), (0.85, -0.06), (1.0, 0.12), (1.0, 0.42), (-1.0, 0.42)), body)
    pen.box(0.84, 0.06, 1.0, 0.2, (250, 240, 170))
    wheel = pool.uniform(0.22, 0.29)
    for x in (-0.55, 0.55):
        pen.oval(x, 0.42, wheel, wheel, (28, 28, 32))
        pen.oval(x, 0.42, wheel * 0.5, wheel * 0.5, (185, 185, 190))
    return body


def _boat(pen: Pen, pool: Pool) -> Colour:
    hull = pool.paint(saturation=(0.5, 0.9), value=(0.35, 0.8))
    sail = pool.paint(saturation=(0.0, 0.35), value=(0.88, 1.0))
    pen.box(-0.09, -0.95, 0.03, 0.4, (90, 60, 40))
    pen.polygon(((0.06, -0.95), (0.06, 0.22), (pool.uniform(0.7, 0.9), 0.22)), sail)
    pen.polygon(((-0.12, -0.75), (-0.12, 0.22), (pool.uniform(-0.75, -0.55), 0.22)), shade(sail, 0.88))
    keel = pool.uniform(0.5, 0.65)
    pen.polygon(((-1.0, 0.32), (1.0, 0.32), (keel, 0.9), (-keel, 0.9)), hull)
    pen.box(-0.93, 0.42, 0.93, 0.53, shade(hull, 1.6))
    return hull


def _fish(pen: Pen, pool: Pool) -> Colour:
    body = pool.paint(saturation=(0.55, 1.0), value=(0.65, 1.0))
    fin = shade(body, pool.uniform(0.6, 0.8))
    tall = pool.uniform(0.48, 0.6)
    pen.polygon(((-0.4, 0.0), (-1.0, -0.55), (-0.85, 0.0), (-1.0, 0.55)), fin)
    pen.polygon(((-0.2, -0.35), (0.1, -0.9), (0.35, -0.35)), fin)
    pen.polygon(((-0.1, 0.35), (-0.15, 0.8), (0.25, 0.4)), fin)
    pen.oval(0.18, 0.0, 0.8, tall, body)
    for x in (-0.25, 0.05):
        pen.oval(x, 0.0, 0.07, tall * 0.75, shade(body, 1.5))
    pen.oval(0.6, -0.12, 0.15, 0.15, (250, 250, 250))
    pen.oval(0.63, -0.12, 0.08, 0.08, (15, 15, 20))
    return body


def _umbrella(pen: Pen, pool: Pool) -> Colour:
    cloth = pool.paint()
    other = shade(cloth, pool.uniform(1.45, 1.75))
    grip = pool.paint(hue=(15, 40), saturation=(0.4, 0.8), value=(0.2, 0.45))
    low = pool.uniform(0.05, 0.2)
    pen.box(-0.08, low - 0.1, 0.08, 0.85, grip)
    pen.oval(0.14, 0.82, 0.22, 0.2, grip, part=(0.0, 0.5))
    tall = pool.uniform(0.85, 1.0)
    pen.oval(0.0, low, 1.0, tall, cloth, part=(0.5, 1.0))
    pen.oval(0.0, low, 0.62, tall, other, part=(0.5, 1.0))
    pen.oval(0.0, low, 0.24, tall, cloth, part=(0.5, 1.0))
    for x, colour in ((-0.81, cloth), (-0.43, other), (0.0, cloth), (0.43, other), (0.81, cloth)):
        pen.oval(x, low, 0.2, 0.14, colour, part=(0.0, 0.5))
    return cloth


def _flower(pen: Pen, pool: Pool) -> Colour:
    petal = pool.paint(hue=(260, 420), saturation=(0.35, 0.9), value=(0.8, 1.0))
    stem = pool.paint(hue=(90, 140), saturation=(0.5, 0.8), value=(0.3, 0.55))
    pen.box(-0.09, 0.1, 0.09, 1.0, stem)
    pen.oval(0.34, 0.72, 0.3, 0.15, stem)
    pen.oval(-0.34, 0.82, 0.3, 0.15, stem)
    petals = 5 + int(pool.chance(0.5))
    start, size = pool.uniform(0, math.tau / petals), pool.uniform(0.28, 0.34)
    for index in range(petals):
        turn = start + math.tau * index / petals
        pen.oval(0.42 * math.cos(turn), -0.32 + 0.42 * math.sin(turn), size, size, petal)
    pen.oval(0.0, -0.32, 0.26, 0.26, pool.paint(hue=(40, 55), saturation=(0.7, 1.0), value=(0.85, 1.0)))
    return petal


def _apple(pen: Pen, pool: Pool) -> Colour:
    skin = pool.paint(hue=(-15, 100), saturation=(0.65, 0.95), value=(0.6, 0.9))
    wide = pool.uniform(0.52, 0.6)
    for x in (-0.35, 0.35):
        pen.oval(x, 0.16, wide, 0.76, skin)
    pen.box(-0.07, -0.9, 0.07, -0.4, (85, 55, 30))
    pen.oval(0.34, -0.75, 0.32, 0.17, pool.paint(hue=(90, 130), saturation=(0.6, 0.9), value=(0.4, 0.7)))
    pen.oval(-0.45, -0.12, 0.15, 0.26, shade(skin, 1.55))
    return skin


def _mushroom(pen: Pen, pool: Pool) -> Colour:
    cap = pool.paint(hue=(-20, 40), saturation=(0.6, 0.95), value=(0.5, 0.9))
    stalk = pool.paint(hue=(35, 55), saturation=(0.08, 0.25), value=(0.85, 1.0))
    wide = pool.uniform(0.25, 0.36)
    pen.polygon(((-wide, 0.0), (wide, 0.0), (wide * 1.3, 0.8), (-wide * 1.3, 0.8)), stalk)
    pen.oval(0.0, 0.8, wide * 1.3, 0.18, stalk)
    pen.oval(0.0, 0.12, 1.0, pool.uniform(0.95, 1.1), cap, part=(0.5, 1.0))
    pen.oval(0.0, 0.12, 1.0, 0.14, shade(cap, 0.75))
    for x, y, size in ((-0.55, -0.22, 0.15), (0.02, -0.55, 0.2), (0.52, -0.25, 0.17), (-0.05, -0.1, 0.11)):
        pen.oval(x, y, size, size * 0.85, shade(stalk, 1.3))
    return cap


def _clock(pen: Pen, pool: Pool) -> Colour:
    frame = pool.paint(saturation=(0.5, 0.9), value=(0.3, 0.8))
    face = pool.paint(**_WHITE_TONES)
    inner = pool.uniform(0.7, 0.78)
    pen.oval(0.0, 0.0, 0.95, 0.95, frame)
    pen.oval(0.0, 0.0, inner, inner, face)
    for index in range(12):
        turn = math.tau * index / 12
        near, far = (0.45 if index % 3 == 0 else 0.55), 0.66
        x, y = math.sin(turn), math.cos(turn)
        pen.stroke((near * x, near * y), (far * x, far * y), 0.09, (30, 30, 30))
    for length, width in ((0.36, 0.15), (0.56, 0.11)):
        turn = pool.uniform(0, math.tau)
        pen.stroke((0.0, 0.0), (length * math.cos(turn), length * math.sin(turn)), width, (25, 25, 30))
    return frame


def _cup(pen: Pen, pool: Pool) -> Colour:
    body = pool.paint(saturation=(0.35, 0.9), value=(0.65, 0.98))
    foot = pool.uniform(0.42, 0.56)
    pen.oval(0.55, 0.1, 0.42, 0.42, shade(body, 0.85))
    # The background cannot show through a tile, so the hole of the handle counts as cup.
    pen.oval(0.55, 0.1, 0.2, 0.22, shade(body, 0.45))
    pen.polygon(((-0.85, -0.6), (0.6, -0.6), (foot, 0.75), (-foot - 0.2, 0.75)), body)
    pen.oval(-0.12, 0.75, foot + 0.06, 0.14, body)
    pen.oval(-0.12, -0.6, 0.73, 0.2, shade(body, 1.35))
    pen.oval(-0.12, -0.58, 0.6, 0.14, pool.paint(hue=(15, 35), saturation=(0.5, 0.9), value=(0.2, 0.45)))
    stripe = shade(body, pool.uniform(1.55, 1.8))
    pen.polygon(((-0.8, -0.1), (0.53, -0.1), (0.5, 0.15), (-0.75, 0.15)), stripe)
    return body


def _hat(pen: Pen, pool: Pool) -> Colour:
    felt = pool.paint(saturation=(0.3, 0.85), value=(0.3, 0.85))
    top = pool.uniform(0.4, 0.55)
    pen.oval(0.0, 0.5, 1.0, pool.uniform(0.24, 0.32), shade(felt, 0.8))
    pen.polygon(((-0.62, 0.5), (-top, -0.65), (top, -0.65), (0.62, 0.5)), felt)
    pen.oval(0.0, -0.65, top, 0.16, shade(felt, 1.15))
    band = pool.paint(saturation=(0.5, 0.95), value=(0.6, 1.0))
    pen.polygon(((-0.64, 0.5), (-0.58, 0.12), (0.58, 0.12), (0.64, 0.5)), band)
    pen.oval(0.0, 0.5, 0.63, 0.12, band, part=(0.0, 0.5))
    return felt


def _butterfly(pen: Pen, pool: Pool) -> Colour:
    wing = pool.paint(saturation=(0.6, 1.0), value=(0.7, 1.0))
    spot = pool.paint(saturation=(0.4, 0.9), value=(0.8, 1.0))
    high = pool.uniform(0.42, 0.52)
    for side in (-1, 1):
        pen.polygon(((0, 0.05), (side * 0.35, -0.9), (side * 0.98, -0.85), (side * 0.9, -0.05)), wing)
        pen.oval(side * 0.62, -0.48, 0.36, high, wing)
        pen.oval(side * 0.48, 0.45, 0.4, 0.45, shade(wing, 0.78))
        pen.oval(side * 0.66, -0.5, 0.2, 0.22, spot)
        pen.oval(side * 0.5, 0.5, 0.16, 0.18, spot)
    dark = pool.paint(**_DARK_TONES)
    pen.oval(0.0, 0.0, 0.12, 0.8, dark)
    pen.oval(0.0, -0.7, 0.17, 0.17, dark)
    return wing


def _rocket(pen: Pen, pool: Pool) -> Colour:
    body = pool.paint(saturation=(0.02, 0.3), value=(0.8, 1.0))
    trim = pool.paint(saturation=(0.6, 0.95), value=(0.55, 0.9))
    wide = pool.uniform(0.28, 0.36)
    pen.polygon(((-0.2, 0.6), (0.2, 0.6), (0.0, 1.0)), (250, 170, 40))
    pen.polygon(((-wide, 0.1), (-0.75, 0.8), (-wide, 0.65)), trim)
    pen.polygon(((wide, 0.1), (0.75, 0.8), (wide, 0.65)), trim)
    belly = wide + 0.04
    pen.polygon(((-wide, -0.4), (wide, -0.4), (belly, 0.1), (wide, 0.68), (-wide, 0.68), (-belly, 0.1)), body)
    pen.polygon(((-wide, -0.38), (-wide * 0.6, -0.75), (0.0, -1.0), (wide * 0.6, -0.75), (wide, -0.38)), trim)
    pen.oval(0.0, -0.1, 0.2, 0.2, shade(trim, 0.6))
    pen.oval(0.0, -0.1, 0.13, 0.13, (150, 205, 235))
    pen.box(-wide, 0.48, wide, 0.6, trim)
    return trim


def _balloon(pen: Pen, pool: Pool) -> Colour:
    cloth = pool.paint()
    other = pool.paint(saturation=(0.3, 0.95), value=(0.8, 1.0))
    basket = pool.paint(hue=(20, 40), saturation=(0.5, 0.8), value=(0.35, 0.6))
    wide = pool.uniform(0.7, 0.8)
    neck = 0.5
    pen.polygon(((-wide * 0.9, -0.05), (wide * 0.9, -0.05), (0.22, neck), (-0.22, neck)), cloth)
    pen.oval(0.0, -0.3, wide, 0.7, cloth)
    pen.polygon(((-wide * 0.5, 0.1), (wide * 0.5, 0.1), (0.12, neck), (-0.12, neck)), other)
    pen.oval(0.0, -0.3, wide * 0.58, 0.7, other)
    pen.polygon(((-wide * 0.18, 0.1), (wide * 0.18, 0.1), (0.05, neck), (-0.05, neck)), cloth)
    pen.oval(0.0, -0.3, wide * 0.2, 0.7, cloth)
    for x in (-0.2, 0.2):
        pen.stroke((x, neck), (x * 0.9, 0.75), 0.06, shade(basket, 0.6))
    pen.box(-0.23, 0.68, 0.23, 1.0, basket)
    return cloth


def _cake(pen: Pen, pool: Pool) -> Colour:
    icing = pool.paint(hue=(280, 420), saturation=(0.25, 0.6), value=(0.85, 1.0))
    sponge = pool.paint(hue=(20, 45), saturation=(0.45, 0.75), value=(0.5, 0.85))
    step = pool.uniform(0.5, 0.62)
    pen.box(-0.9, 0.2, 0.9, 0.85, sponge)
    pen.box(-step, -0.35, step, 0.2, sponge)
    for x in (-0.3, 0.0, 0.3):
        pen.box(x - 0.06, -0.75, x + 0.06, -0.35, pool.paint(saturation=(0.3, 0.8), value=(0.8, 1.0)))
        pen.oval(x, -0.84, 0.08, 0.13, (255, 205, 60))
    for left, top, drops in ((0.9, 0.2, 6), (step, -0.35, 4)):
        pen.box(-left, top - 0.06, left, top + 0.14, icing)
        for index in range(drops):
            pen.oval(-left + (2 * index + 1) * left / drops, top + 0.14, left / drops * 0.8, 0.14, icing)
    pen.box(-0.98, 0.82, 0.98, 0.93, (235, 235, 240))
    return icing


def _book(pen: Pen, pool: Pool) -> Colour:
    cover = pool.paint(saturation=(0.5, 0.9), value=(0.35, 0.8))
    page = pool.paint(**_WHITE_TONES)
    rise = pool.uniform(0.12, 0.22)
    for side in (-1, 1):
        pen.polygon(((0, -0.5), (side * 1.0, -0.52 - rise), (side * 1.0, 0.62 - rise), (0, 0.74)), cover)
        pen.polygon(((0, -0.55), (side * 0.9, -0.6 - rise), (side * 0.9, 0.48 - rise), (0, 0.6)), page)
        for line in range(4):
            y = -0.36 + 0.23 * line
            pen.stroke((side * 0.14, y), (side * 0.76, y - rise * 0.9), 0.08, (120, 120, 125))
    pen.box(-0.04, -0.55, 0.04, 0.7, shade(cover, 0.7))
    return cover


def _shirt(pen: Pen, pool: Pool) -> Colour:
    cloth = pool.paint(saturation=(0.3, 0.95), value=(0.5, 1.0))
    sleeve = pool.uniform(-0.1, 0.12)
    for side in (-1, 1):
        pen.polygon(
            ((side * 0.3, -0.8), (side * 1.0, -0.35), (side * 0.82, sleeve), (side * 0.45, -0.15)), shade(cloth, 0.82)
        )
    pen.polygon(((-0.5, -0.75), (0.5, -0.75), (0.52, 0.9), (-0.52, 0.9)), cloth)
    pen.oval(0.0, -0.76, 0.25, 0.2, shade(cloth, 0.5), part=(0.0, 0.5))
    print_colour = shade(cloth, pool.uniform(1.55, 1.85))
    pen.box(-0.51, 0.1, 0.51, 0.3, print_colour)
    pen.box(-0.515, 0.48, 0.515, 0.68, print_colour)
    return cloth


def _lamp(pen: Pen, pool: Pool) -> Colour:
    cover = pool.paint(saturation=(0.3, 0.8), value=(0.75, 1.0))
    stand = pool.paint(saturation=(0.2, 0.7), value=(0.2, 0.5))
    top = pool.uniform(0.32, 0.45)
    pen.box(-0.13, 0.0, 0.13, 0.85, stand)
    pen.oval(0.0, 0.42, 0.3, 0.26, stand)
    pen.oval(0.0, 0.88, 0.52, 0.16, shade(stand, 0.8))
    pen.polygon(((-top, -0.95), (top, -0.95), (0.88, 0.1), (-0.88, 0.1)), cover)
    pen.polygon(((-top * 0.4, -0.95), (top * 0.4, -0.95), (0.35, 0.1), (-0.35, 0.1)), shade(cover, 1.45))
    pen.polygon(((-0.85, 0.0), (0.85, 0.0), (0.9, 0.14), (-0.9, 0.14)), shade(cover, 0.7))
    return cover


def _duck(pen: Pen, pool: Pool) -> Colour:
    feathers = pool.paint(hue=(38, 62), saturation=(0.3, 0.95), value=(0.85, 1.0))
    beak = pool.paint(hue=(10, 30), saturation=(0.8, 1.0), value=(0.8, 1.0))
    head = pool.uniform(0.34, 0.4)
    pen.polygon(((-0.55, 0.25), (-1.0, -0.15), (-0.8, 0.5)), feathers)
    pen.oval(-0.12, 0.42, 0.78, 0.48, feathers)
    pen.box(0.15, -0.4, 0.58, 0.3, feathers)
    pen.polygon(((0.6, -0.55), (1.0, -0.4), (0.62, -0.26)), beak)
    pen.oval(0.38, -0.5, head, head, feathers)
    pen.oval(0.48, -0.6, 0.09, 0.09, (15, 15, 20))
    pen.oval(-0.22, 0.36, 0.4, 0.26, shade(feathers, 0.78))
    return feathers


def _turtle(pen: Pen, pool: Pool) -> Colour:
    shell = pool.paint(hue=(20, 160), saturation=(0.45, 0.8), value=(0.25, 0.55))
    skin = pool.paint(hue=(70, 130), saturation=(0.4, 0.75), value=(0.55, 0.85))
    foot = pool.uniform(0.14, 0.19)
    for x in (-0.5, 0.4):
        pen.oval(x, 0.55, foot, 0.28, skin)
    pen.oval(0.78, 0.12, 0.25, 0.23, skin)
    pen.box(0.4, 0.15, 0.75, 0.4, skin)
    pen.oval(0.85, 0.06, 0.06, 0.07, (15, 15, 20))
    pen.oval(-0.08, 0.42, 0.82, pool.uniform(0.9, 1.05), shell, part=(0.5, 1.0))
    pen.oval(-0.08, 0.42, 0.82, 0.13, shade(shell, 0.6))
    plate = shade(shell, 1.4)
    for x, y, size in ((-0.5, 0.1, 0.17), (-0.08, -0.18, 0.22), (0.34, 0.1, 0.17), (-0.08, 0.2, 0.13)):
        pen.polygon([(x + size * cosine, y + size * sine) for cosine, sine in _HEXAGON], plate)
    return shell


_HEXAGON = [(math.cos(math.tau * step / 6), math.sin(math.tau * step / 6)) for step in range(6)]


def _cat(pen: Pen, pool: Pool) -> Colour:
    fur = pool.paint(hue=(15, 45), saturation=(0.05, 0.7), value=(0.35, 0.95))
    ear = pool.uniform(-1.0, -0.85)
    for side in (-1, 1):
        pen.polygon(((side * 0.2, -0.5), (side * 0.72, ear), (side * 0.86, 0.0)), fur)
        pen.polygon(((side * 0.4, -0.5), (side * 0.66, ear + 0.2), (side * 0.74, -0.2)), (235, 160, 165))
    pen.oval(0.0, 0.14, 0.9, 0.76, fur)
    iris = pool.paint(hue=(60, 200), saturation=(0.5, 0.9), value=(0.6, 0.95))
    for side in (-1, 1):
        pen.oval(side * 0.38, 0.0, 0.19, 0.17, iris)
        pen.oval(side * 0.38, 0.0, 0.07, 0.16, (15, 15, 15))
        pen.stroke((side * 0.3, 0.42), (side * 0.85, 0.34), 0.05, shade(fur, 0.45))
        pen.oval(side * 0.14, 0.46, 0.2, 0.16, shade(fur, 1.5))
    pen.polygon(((-0.13, 0.24), (0.13, 0.24), (0.0, 0.4)), (215, 105, 120))
    return fur


def _gift(pen: Pen, pool: Pool) -> Colour:
    paper = pool.paint(saturation=(0.45, 0.9), value=(0.5, 0.95))
    ribbon = pool.paint(saturation=(0.5, 1.0), value=(0.75, 1.0))
    lid = pool.uniform(-0.2, -0.08)
    pen.box(-0.78, lid, 0.78, 0.92, paper)
    pen.box(-0.9, lid - 0.3, 0.9, lid, shade(paper, 0.8))
    pen.box(-0.16, lid - 0.3, 0.16, 0.92, ribbon)
    pen.box(-0.78, 0.32, 0.78, 0.55, ribbon)
    for side in (-1, 1):
        pen.oval(side * 0.34, lid - 0.48, 0.34, 0.24, ribbon)
        pen.oval(side * 0.36, lid - 0.48, 0.16, 0.1, shade(ribbon, 0.6))
    pen.oval(0.0, lid - 0.42, 0.14, 0.15, shade(ribbon, 0.8))
    return paper


def _cactus(pen: Pen, pool: Pool) -> Colour:
    flesh = pool.paint(hue=(95, 160), saturation=(0.45, 0.8), value=(0.35, 0.65))
    pot = pool.paint(hue=(5, 30), saturation=(0.5, 0.85), value=(0.5, 0.85))
    wide, left, right = pool.uniform(0.24, 0.3), pool.uniform(-0.5, -0.3), pool.uniform(-0.35, -0.1)
    for side, tip in ((-1, left), (1, right)):
        pen.box(min(side * 0.78, 0), 0.08, max(side * 0.78, 0), 0.34, flesh)
        pen.box(side * 0.66 - 0.15, tip, side * 0.66 + 0.15, 0.3, flesh)
        pen.oval(side * 0.66, tip, 0.15, 0.15, flesh)
    pen.box(-wide, -0.7, wide, 0.5, flesh)
    pen.oval(0.0, -0.7, wide, 0.28, flesh)
    for x in (-0.14, 0.0, 0.14):
        pen.box(x - 0.025, -0.75, x + 0.025, 0.45, shade(flesh, 1.45))
    pen.polygon(((-0.5, 0.5), (0.5, 0.5), (0.38, 1.0), (-0.38, 1.0)), pot)
    pen.box(-0.58, 0.4, 0.58, 0.56, shade(pot, 0.85))
    return flesh


def _bottle(pen: Pen, pool: Pool) -> Colour:
    glass = pool.paint(hue=(60, 260), saturation=(0.4, 0.9), value=(0.3, 0.75))
    wide, neck = pool.uniform(0.42, 0.54), pool.uniform(-0.5, -0.35)
    pen.box(-0.17, -0.9, 0.17, neck + 0.2, glass)
    pen.polygon(((-0.17, neck - 0.05), (0.17, neck - 0.05), (wide, neck + 0.4), (-wide, neck + 0.4)), glass)
    pen.box(-wide, neck + 0.38, wide, 0.98, glass)
    pen.box(-0.21, -1.0, 0.21, -0.8, pool.paint(hue=(15, 45), saturation=(0.4, 0.8), value=(0.5, 0.8)))
    label = pool.paint(**_WHITE_TONES)
    pen.box(-wide, 0.2, wide, 0.72, label)
    pen.box(-wide * 0.7, 0.38, wide * 0.7, 0.5, shade(glass, 0.7))
    pen.box(-wide + 0.06, neck + 0.42, -wide + 0.16, 0.16, shade(glass, 1.5))
    return glass


def _crown(pen: Pen, pool: Pool) -> Colour:
    gold = pool.paint(hue=(36, 56), saturation=(0.6, 0.95), value=(0.75, 1.0))
    gem = pool.paint(saturation=(0.75, 1.0), value=(0.5, 0.9))
    high, dip = pool.uniform(-0.8, -0.6), pool.uniform(-0.05, 0.12)
    points = ((-0.95, high), (-0.5, dip), (0.0, high - 0.15), (0.5, dip), (0.95, high), (0.78, 0.7), (-0.78, 0.7))
    pen.polygon(points, gold)
    pen.box(-0.8, 0.42, 0.8, 0.75, shade(gold, 0.75))
    for x, y in ((-0.95, high), (0.0, high - 0.15), (0.95, high)):
        pen.oval(x, y, 0.13, 0.13, gem)
    for x in (-0.5, 0.0, 0.5):
        pen.oval(x, 0.58, 0.12, 0.1, gem)
    return gold


def _snail(pen: Pen, pool: Pool) -> Colour:
    shell = pool.paint(hue=(5, 55), saturation=(0.45, 0.85), value=(0.5, 0.9))
    flesh = pool.paint(hue=(30, 70), saturation=(0.2, 0.5), value=(0.65, 0.9))
    pen.polygon(((-1.0, 0.85), (-0.5, 0.5), (0.6, 0.5), (0.9, 0.85)), flesh)
    pen.box(0.55, -0.2, 0.85, 0.85, flesh)
    for x in (0.6, 0.86):
        pen.stroke((0.7, -0.1), (x, -0.62), 0.08, flesh)
        pen.oval(x, -0.65, 0.09, 0.09, (25, 20, 20))
    big = pool.uniform(0.6, 0.7)
    x, y = -0.15, 0.62 - big
    for turn, (size, factor) in enumerate(((1.0, 1.0), (0.78, 0.6), (0.62, 1.25), (0.42, 0.6), (0.28, 1.25))):
        pen.oval(x + 0.05 * turn, y + 0.03 * turn, big * size, big * size, shade(shell, factor))
    return shell


def _kite(pen: Pen, pool: Pool) -> Colour:
    cloth, other = pool.paint(saturation=(0.6, 1.0)), pool.paint(saturation=(0.4, 1.0))
    middle = pool.uniform(-0.4, -0.2)
    pen.polygon(((0, -1.0), (0.7, middle), (0, 0.55), (-0.7, middle)), cloth)
    pen.polygon(((0, -1.0), (0.7, middle), (0, middle)), other)
    pen.polygon(((0, middle), (-0.7, middle), (0, 0.55)), other)
    pen.stroke((0, 0.55), (0.12, 0.78), 0.07, shade(cloth, 0.5))
    pen.stroke((0.12, 0.78), (-0.08, 1.0), 0.07, shade(cloth, 0.5))
    for x, y in ((0.1, 0.76), (-0.05, 0.98)):
        pen.polygon(((x, y), (x - 0.2, y - 0.1), (x - 0.2, y + 0.1)), other)
        pen.polygon(((x, y), (x + 0.2, y - 0.1), (x + 0.2, y + 0.1)), other)
    return cloth


def _pear(pen: Pen, pool: Pool) -> Colour:
    skin = pool.paint(hue=(48, 95), saturation=(0.5, 0.85), value=(0.6, 0.9))
    neck = pool.uniform(0.26, 0.36)
    pen.stroke((0.0, -0.6), (0.12, -1.0), 0.11, (95, 65, 35))
    pen.polygon(((0.1, -0.8), (0.5, -1.0), (0.62, -0.72), (0.3, -0.65)), (60, 130, 50))
    pen.oval(0.0, -0.4, neck, 0.4, skin)
    pen.polygon(((-neck, -0.4), (neck, -0.4), (0.62, 0.3), (-0.62, 0.3)), skin)
    pen.oval(0.0, 0.4, 0.68, 0.58, skin)
    pen.oval(-0.28, 0.35, 0.14, 0.26, shade(skin, 1.4))
    return skin


def _guitar(pen: Pen, pool: Pool) -> Colour:
    wood = pool.paint(hue=(8, 42), saturation=(0.6, 0.95), value=(0.45, 0.9))
    dark = pool.paint(**_DARK_TONES)
    upper = pool.uniform(0.36, 0.44)
    pen.box(-0.1, -0.85, 0.1, 0.2, shade(dark, 1.2))
    pen.box(-0.18, -1.0, 0.18, -0.74, wood)
    pen.oval(0.0, 0.08, upper, 0.32, wood)
    pen.oval(0.0, 0.55, pool.uniform(0.54, 0.64), 0.44, wood)
    pen.oval(0.0, 0.28, 0.17, 0.16, dark)
    pen.box(-0.25, 0.66, 0.25, 0.78, dark)
    for x in (-0.05, 0.05):
        pen.stroke((x, -0.8), (x, 0.7), 0.03, (235, 230, 210))
    return wood


def _bell(pen: Pen, pool: Pool) -> Colour:
    metal = pool.paint(hue=(30, 55), saturation=(0.35, 0.85), value=(0.55, 0.9))
    shoulder = pool.uniform(0.36, 0.46)
    pen.oval(0.0, -0.86, 0.16, 0.14, shade(metal, 0.6))
    pen.oval(0.0, 0.84, 0.2, 0.16, shade(metal, 0.45))
    pen.oval(0.0, -0.35, shoulder, 0.45, metal)
    pen.polygon(((-shoulder, -0.35), (shoulder, -0.35), (0.62, 0.4), (0.92, 0.7), (-0.92, 0.7), (-0.62, 0.4)), metal)
    pen.box(-0.6, 0.3, 0.6, 0.42, shade(metal, 0.65))
    pen.polygon(((-0.28, -0.5), (-0.16, -0.5), (-0.28, 0.26), (-0.46, 0.26)), shade(metal, 1.5))
    return metal


def _owl(pen: Pen, pool: Pool) -> Colour:
    feathers = pool.paint(hue=(15, 40), saturation=(0.3, 0.75), value=(0.3, 0.65))
    belly = shade(feathers, 1.5)
    for side in (-1, 1):
        pen.polygon(((side * 0.25, -0.75), (side * 0.66, -1.0), (side * 0.7, -0.5)), feathers)
        pen.polygon(((side * 0.1, 0.8), (side * 0.4, 0.8), (side * 0.3, 1.0)), (215, 150, 50))
    pen.oval(0.0, 0.2, 0.72, 0.72, feathers)
    pen.oval(0.0, -0.38, 0.7, 0.5, feathers)
    pen.oval(0.0, 0.38, 0.46, pool.uniform(0.44, 0.52), belly)
    for row in range(3):
        for x in (-0.22, 0.0, 0.22):
            pen.polygon(((x - 0.1, 0.1 + 0.22 * row), (x + 0.1, 0.1 + 0.22 * row), (x, 0.24 + 0.22 * row)), feathers)
    iris = pool.paint(hue=(35, 60), saturation=(0.7, 1.0), value=(0.85, 1.0))
    for side in (-1, 1):
        pen.oval(side * 0.3, -0.42, 0.27, 0.26, iris)
        pen.oval(side * 0.3, -0.42, 0.13, 0.13, (15, 15, 20))
    pen.polygon(((-0.1, -0.28), (0.1, -0.28), (0.0, -0.04)), (220, 140, 40))
    return feathers


def _drum(pen: Pen, pool: Pool) -> Colour:
    barrel = pool.paint(saturation=(0.6, 1.0), value=(0.5, 0.9))
    rim = pool.paint(hue=(38, 55), saturation=(0.5, 0.9), value=(0.75, 1.0))
    skin = pool.paint(**_WHITE_TONES)
    top = pool.uniform(-0.4, -0.25)
    pen.oval(0.0, 0.62, 0.88, 0.3, rim)
    pen.box(-0.88, top, 0.88, 0.6, barrel)
    pen.oval(0.0, 0.5, 0.88, 0.28, barrel)
    for step in range(4):
        x = -0.88 + 0.44 * step
        pen.stroke((x, top + 0.25), (x + 0.22, 0.6), 0.06, rim)
        pen.stroke((x + 0.22, 0.6), (x + 0.44, top + 0.25), 0.06, rim)
    pen.oval(0.0, top, 0.92, 0.34, rim)
    pen.oval(0.0, top - 0.04, 0.8, 0.26, skin)
    for side in (-1, 1):
        pen.stroke((side * 0.1, top), (side * 0.75, -0.95), 0.09, (170, 115, 60))
        pen.oval(side * 0.1, top, 0.11, 0.09, (130, 80, 40))
    return barrel


_DRAWERS: tuple[Callable[[Pen, Pool], Colour], ...] = (
    _house,
    _tree,
    _car,
    _boat,
    _fish,
    _umbrella,
    _flower,
    _apple,
    _mushroom,
    _clock,
    _cup,
    _hat,
    _butterfly,
    _rocket,
    _balloon,
    _cake,
    _book,
    _shirt,
    _lamp,
    _duck,
    _turtle,
    _cat,
    _gift,
    _cactus,
    _bottle,
    _crown,
    _snail,
    _kite,
    _pear,
    _guitar,
    _bell,
    _owl,
    _drum,
)


def draw_object(class_id: int, pen: Pen, pool: Pool) -> Colour:
    """Draw an object, given by its class id, with a pen and return its main colour (RGB, 0..255)."""
    return _DRAWERS[class_id](pen, pool)


# Both lists are in the order of the class ids.
assert [drawer.__name__.removeprefix("_") for drawer in _DRAWERS] == list(OBJECT_NAMES)
