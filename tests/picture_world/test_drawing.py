"""Scenes: reproducible, with a class for every pixel and a mask aligned with the picture."""

import numpy as np
import pytest

from zegclip.picture_world.classes import CLASS_NAMES, OBJECT_NAMES
from zegclip.picture_world.drawing import draw_scene
from zegclip.picture_world.pen import Pen

GRASS, SNOW, NIGHT = (CLASS_NAMES.index(name) for name in ("grass", "snow", "night"))


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(seed, pool) for seed in range(150) for pool in ("train", "test")]


def test_seed_and_pool_change_the_scene():
    pictures = {draw_scene(seed, pool).image.tobytes() for seed in (7, 8) for pool in ("train", "test")}
    assert len(pictures) == 4


def test_every_pixel_has_a_class_of_the_scene(scenes):
    for scene in scenes:
        assert (scene.image.mode, scene.mask.mode) == ("RGB", "L")
        assert scene.image.size == scene.mask.size == (96, 96)
        classes = {thing.class_id for thing in scene.things} | set(scene.grounds)
        assert set(np.unique(scene.mask)) <= classes


def test_every_class_occurs_in_both_pools(scenes):
    for pool in (scenes[0::2], scenes[1::2]):
        seen = np.unique(np.stack([np.asarray(scene.mask) for scene in pool]))
        assert set(seen) == set(range(len(CLASS_NAMES)))


def test_every_placed_object_stays_visible(scenes):
    for scene in scenes:
        mask = np.asarray(scene.mask)
        for class_id in {thing.class_id for thing in scene.things}:
            areas = [thing.area for thing in scene.things if thing.class_id == class_id]
            assert np.count_nonzero(mask == class_id) >= 0.5 * min(areas)


@pytest.mark.parametrize("class_id", range(len(OBJECT_NAMES)), ids=OBJECT_NAMES)
def test_object_is_large_and_aligned_with_its_mask(class_id):
    # On a ground of nearly one colour, the pixels that differ from the empty scene are the object.
    scene = draw_scene(class_id, objects=(class_id,), grounds=(NIGHT,))
    inside = np.asarray(scene.mask) == class_id
    assert inside.sum() >= 150
    bare = draw_scene(class_id, objects=(), grounds=(NIGHT,))
    changed = np.abs(np.asarray(scene.image, dtype=int) - np.asarray(bare.image, dtype=int)).max(axis=2) > 60
    grown = np.zeros_like(inside)
    for step_y in (-2, 0, 2):
        for step_x in (-2, 0, 2):
            grown |= np.roll(inside, (step_y, step_x), axis=(0, 1))
    # Stars of the night differ too, but only a few pixels.
    assert np.count_nonzero(changed & ~grown) < 200
    assert np.count_nonzero(changed & inside) > 0.3 * inside.sum()


def test_two_grounds_lie_one_above_the_other():
    mask = np.asarray(draw_scene(3, objects=(), grounds=(SNOW, GRASS)).mask)
    assert set(mask[0]) == {SNOW}
    assert set(mask[-1]) == {GRASS}
    changes = np.count_nonzero(np.diff(mask.astype(int), axis=0), axis=0)
    assert (changes == 1).all()


def test_larger_picture_shows_the_same_kind_of_scene_sharper():
    scene = draw_scene(5, size=192, objects=(0,), grounds=(GRASS,))
    assert scene.image.size == scene.mask.size == (192, 192)
    small = draw_scene(5, objects=(0,), grounds=(GRASS,))
    assert 3 < scene.things[0].area / small.things[0].area < 5


def test_unknown_pool_is_refused():
    with pytest.raises(ValueError, match="validation"):
        draw_scene(0, "validation")


def test_pen_covers_what_it_fills():
    pen = Pen(radius=20, tilt=30, stretch=1.1)
    pen.box(-0.5, -0.5, 0.5, 0.5, (200, 100, 50))
    painted, cover = pen.tile()
    assert cover.sum() == pytest.approx(20 * 20, rel=0.05)
    middle = pen.side // 2
    assert painted[middle, middle].tolist() == [200, 100, 50]
    assert painted[cover[..., 0] == 0].max() == 0
