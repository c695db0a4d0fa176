"""Disjoint drawing parameters and names of colours."""

import numpy as np
import pytest

from zegclip.picture_world.pools import Pool, colour_word, shade


def _values(name: str, cells: int) -> np.ndarray:
    pool = Pool(name, np.random.default_rng(0))
    return np.array([pool.uniform(2.0, 5.0, cells=cells) for _ in range(4000)])


@pytest.mark.parametrize("cells", [12, 24])
def test_pools_never_share_a_value(cells):
    cell_of = {name: np.floor((_values(name, cells) - 2) / 3 * cells).astype(int) for name in ("train", "test")}
    assert set(cell_of["train"]) == set(range(0, cells, 2))
    assert set(cell_of["test"]) == set(range(1, cells, 2))


def test_paint_stays_in_its_ranges():
    pool = Pool("train", np.random.default_rng(0))
    for _ in range(200):
        red, green, blue = pool.paint(hue=(90, 150), saturation=(0.5, 0.9), value=(0.4, 0.8))
        assert green > red
        assert green > blue
        assert 0.4 * 255 - 1 <= green <= 0.8 * 255 + 1


@pytest.mark.parametrize(
    ("colour", "word"),
    [
        ((220, 30, 30), "red"),
        ((250, 150, 30), "orange"),
        ((240, 230, 40), "yellow"),
        ((40, 160, 60), "green"),
        ((30, 60, 220), "blue"),
        ((130, 50, 200), "purple"),
        ((240, 110, 190), "pink"),
        ((110, 70, 30), "brown"),
        ((250, 250, 245), "white"),
        ((120, 120, 125), "grey"),
        ((20, 20, 25), "black"),
    ],
)
def test_colour_words(colour, word):
    assert colour_word(colour) == word


def test_shade_goes_both_ways():
    assert shade((100, 200, 50), 0.5) == (50, 100, 25)
    assert shade((100, 200, 50), 2.0) == (255, 255, 255)
