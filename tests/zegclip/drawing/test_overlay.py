"""Pictures with their classes in colour: what is drawn where, and from what."""

import numpy as np
import pytest
import torch
from PIL import Image

import zegclip
from zegclip.drawing.colours import edge_colours, fill_colours, index_mask, make_colours
from zegclip.drawing.overlay import draw
from zegclip.processing.input_error import InputError

GREY = (100, 100, 100)


def grey_picture(ids):
    return Image.new("RGB", ids.shape[::-1], GREY)


def has_colour(pixels, colour):
    return (pixels == colour).all(axis=-1).any()


def two_halves(left=0, right=2):
    ids = np.full((480, 480), left)
    ids[:, 240:] = right
    return ids


def only(picture, ids, names):
    """Pixels of the overlay alone."""
    return np.asarray(draw(picture, ids, names, legend=False, side_by_side=False))


def test_regions_swatches_and_outlines_have_the_colours_of_their_classes():
    ids = two_halves()
    ids[:100] = -1
    drawn = np.asarray(draw(grey_picture(ids), ids, ["cat", "tree", "sky"]))
    picture, overlay, legend = drawn[8:488, 8:488], drawn[8:488, 496:976], drawn[:, 984:]
    assert (picture == GREY).all()
    assert (overlay[:100] == GREY).all()
    colours = make_colours(3)
    fillings, edges = fill_colours(colours), edge_colours(colours)
    for index, columns in ((0, slice(0, 240)), (2, slice(None, 239, -1))):
        region = overlay[100:, columns][::-1]
        assert (region[1, :-3] == fillings[index]).all()
        assert (region[1, -3:-1] == colours[index]).all()
        assert (region[1, -1] == (colours if index else edges)[index]).all()  # One of the two has the edge.
        for colour in (fillings[index], colours[index]):
            assert has_colour(legend, colour)
    assert not has_colour(legend, colours[1])
    assert not has_colour(legend, fillings[1])


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_thin_region_keeps_its_colour(width):
    ids = np.zeros((480, 480), dtype=int)
    ids[100, 50:90], ids[300:400, 200 : 200 + width] = 1, 1
    pixels = only(grey_picture(ids), ids, ["cat", "tree"])
    assert (pixels[ids == 1] == make_colours(2)[1]).all()
    assert (pixels[300:400, [199, 200 + width]] == edge_colours(make_colours(1))).all()


@pytest.mark.parametrize(("darkest", "brightest"), [(0, 40), (60, 200), (220, 255), (0, 255)])
def test_a_region_shows_the_picture_around_the_colour_of_its_swatch(darkest, brightest):
    brightness = np.linspace(darkest, brightest, 480).round().astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(brightness[:, None, None], (480, 480, 3)))
    names = [f"class {index}" for index in range(40)]
    for index, filling in enumerate(fill_colours(make_colours(40))[:12]):
        column = only(picture, np.full((480, 480), index), names)[:, 0].astype(int)
        assert np.abs(column.mean(axis=0) - filling).max() < 25 * (brightest - darkest) / 255 + 2
        steps = np.diff(column.sum(axis=-1))
        assert (steps >= 0).all()
        assert column[-1].sum() - column[0].sum() > 0.8 * (brightest - darkest)


def test_a_class_has_one_colour_in_all_pictures_of_a_run():
    names = ["cat", "tree", "sky"]
    for first, second in ((0, 2), (2, 1), (2, 2)):
        ids = two_halves(first, second)
        dark, bright = (Image.new("RGB", (480, 480), colour) for colour in ("black", "white"))
        for picture in (dark, bright):
            found = only(picture, ids, names)[-1, [0, -1]]
            assert (found == fill_colours(make_colours(3))[[first, second]]).all()
    assert np.asarray(index_mask(ids, make_colours(3)).convert("RGB"))[0, 0].tolist() == make_colours(3)[2].tolist()


def written(pixels, ids):
    """Where the overlay of a grey picture has neither fillings nor outlines."""
    colours = make_colours(ids.max() + 1)
    return ~np.any([(pixels == shades[ids]).all(axis=-1) for shades in (fill_colours(colours), colours)], axis=0)


@pytest.mark.parametrize("name", ["cat", "a long name of a class", "a" * 10000, "猫👩\u200d👧", "two\nlines"])
def test_names_lie_inside_of_the_outlines_of_their_regions(name):
    rows, columns = np.mgrid[:600, :600]
    disc = (rows - 200) ** 2 + (columns - 330) ** 2 < 150**2
    ids = np.where(disc, 1, 0)
    ids[:, 560:] = 2
    ids[400:, :560] = np.where((columns[400:, :560] + rows[400:, :560]) // 60 % 2, 3, 4)  # diagonal stripes
    pixels = only(grey_picture(ids), ids, [name, *"bcde"])
    marks = written(pixels, ids)
    padded = np.pad(ids, 3, mode="edge")
    steps = [(step, 3) for step in range(7)] + [(3, step) for step in range(7)]
    near = np.any([padded[down : down + 600, right : right + 600] != ids for down, right in steps], axis=0)
    edges = edge_colours(make_colours(5))[ids]
    assert ((pixels == edges).all(axis=-1) | ~marks)[near].all()
    for index in (0, 1):
        assert marks[(ids == index) & ~near].sum() > 50
        assert has_colour(pixels[(ids == index) & ~near], (0, 0, 0))
        assert has_colour(pixels[(ids == index) & ~near], (255, 255, 255))


def test_a_name_that_does_not_fit_is_left_to_the_legend():
    ids = np.zeros((480, 480), dtype=int)
    ids[200:208] = 1
    pixels = only(grey_picture(ids), ids, ["cat", "tree"])
    assert written(pixels, ids)[:190].any() or written(pixels, ids)[218:].any()
    assert not written(pixels, ids)[201:207].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (7, 5), (700, 1000)])
@pytest.mark.parametrize("label", ["cat", "a" * 10000, "猫👩\u200d👧", "two\nlines\tand a tab\x07"])
def test_a_picture_of_any_size_and_any_label_have_a_readable_legend(shape, label):
    ids = np.zeros(shape, dtype=np.int64)
    factor = max(-(-480 // max(shape)), 1)
    height, width = shape[0] * factor, shape[1] * factor
    bare = draw(grey_picture(ids), ids, [label], legend=False, side_by_side=False)
    assert bare.size == (width, height)
    drawn = draw(grey_picture(ids), ids, [label])
    both = (width + 16, 2 * height + 24) if width > 2 * height else (2 * width + 24, height + 16)
    assert 100 < drawn.width - both[0] < 400 + max(shape)
    assert drawn.height >= max(both[1], 20)
    assert draw(grey_picture(ids), ids, [label], legend=False).size == both


def test_a_legend_of_many_labels_lists_the_largest():
    ids = np.arange(3000).reshape(50, 60) % 300
    ids[:10] = 7
    drawn = draw(grey_picture(ids), ids, [str(index) for index in range(300)], side_by_side=False)
    assert drawn.width < 2000
    assert has_colour(np.asarray(drawn)[:, 480:], make_colours(300)[7])


def test_a_picture_without_any_label_stays_as_it_is():
    ids = np.full((480, 480), -1)
    assert (only(grey_picture(ids), ids, ["cat"]) == GREY).all()


def test_all_kinds_of_segmentations_give_the_same_picture(tmp_path):
    ids = two_halves(-1, 2)
    ids[300:] = 0
    names = ["cat", ["tree", "bush"], "sky"]
    expected = draw(grey_picture(ids), ids, names)
    mask = index_mask(ids, make_colours(3))
    results = [
        {"label": name, "score": 0.5, "mask": Image.fromarray(np.uint8(255 * (ids == index)))}
        for index, name in enumerate(("cat", "tree", "sky"))
    ]
    class_map = {"labels": ["cat", "tree", "sky"], "segmentation": ids, "scores": np.ones(ids.shape)}
    turned = {"labels": ["sky", "cat"], "segmentation": np.select([ids == 2, ids == 0], [0, 1], -1)}
    grey_picture(ids).save(tmp_path / "picture.png")
    for picture, segmentation, given in (
        (grey_picture(ids), torch.from_numpy(ids), "cat, tree/bush, sky"),
        (grey_picture(ids), ids.tolist(), names),
        (grey_picture(ids), mask, names),
        (grey_picture(ids), np.asarray(mask), names),
        (grey_picture(ids), np.where(ids < 0, 65535, ids).astype(np.uint16), names),
        (grey_picture(ids), results, None),
        (grey_picture(ids), results[::-2], names),
        (grey_picture(ids), class_map, None),
        (grey_picture(ids), turned, names),
        (str(tmp_path / "picture.png"), ids, names),
    ):
        assert zegclip.draw(picture, segmentation, given).tobytes() == expected.tobytes()
    # With 256 names, 255 is the last of them.
    many = [str(index) for index in range(256)]
    full = draw(grey_picture(ids), np.full(ids.shape, 255, np.uint8), many)
    assert full.tobytes() == draw(grey_picture(ids), np.full(ids.shape, 255), many).tobytes()


@pytest.mark.parametrize(
    ("segmentation", "names", "named"),
    [
        (np.zeros((48, 47), int), ["cat"], "47x48.*48x48"),
        (np.full((48, 48), 3), ["cat", "tree"], "3.*0 to 1"),
        (np.full((48, 48), -2), ["cat"], "-2"),
        (np.full((48, 48), 254, np.uint8), ["cat"], "254"),
        (np.zeros((48, 48)), ["cat"], "float64"),
        (np.zeros((1, 48, 48), int), ["cat"], r"\(1, 48, 48\)"),
        (np.zeros((48, 48), int), None, "names"),
        ([{"label": "dog", "mask": np.zeros((48, 48))}], ["cat"], "'dog'"),
        ([{"label": name, "mask": np.zeros((48, 48 + i))} for i, name in enumerate("ab")], None, "masks"),
        ([], None, "names"),
        ({"labels": ["dog"], "segmentation": np.zeros((48, 48), int)}, ["cat"], "'dog'"),
        ([{"labels": ["cat"], "segmentation": np.zeros((48, 48), int)}], ["cat"], "one picture"),
        ({"labels": ["dog"], "segmentation": np.ones((48, 48), int)}, None, "1.*0 to 0"),
        ({"segmentation": np.zeros((48, 48), int), "segments_info": []}, ["cat"], "'labels'.*'segments_info'"),
    ],
)
def test_what_does_not_belong_together_is_refused(segmentation, names, named):
    with pytest.raises(InputError, match=named):
        draw(Image.new("RGB", (48, 48)), segmentation, names)
