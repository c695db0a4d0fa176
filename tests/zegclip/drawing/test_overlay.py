"""Overlays and index masks: colours, legends, and ids that survive a file."""

import numpy as np
import pytest
from PIL import Image

from zegclip.drawing.overlay import FIRST_COLOURS, index_mask, make_colours, overlay
from zegclip.processing.image_reading import load_class_ids

GREY = (100, 100, 100)


def grey_picture(ids):
    return Image.new("RGB", ids.shape[::-1], GREY)


def legend_of(result, ids):
    """The part of an overlay beside its picture, where that is enlarged to 480 pixels."""
    factor = -(-480 // max(ids.shape))
    return np.asarray(result)[:, ids.shape[1] * factor :]


def has_colour(pixels, colour):
    return (pixels == colour).all(axis=-1).any()


def test_colours_are_all_different_and_go_on_as_in_voc():
    colours = make_colours(60000)
    assert len(np.unique(colours, axis=0)) == 60000
    assert colours[:20].tolist() == [list(colour) for colour in FIRST_COLOURS]
    # VOC's 21st and 32nd colour; its first one is the background.
    assert colours[20].tolist() == [128, 64, 128]
    assert colours[31].tolist() == [0, 0, 64]
    assert make_colours(0).shape == (0, 3)


@pytest.mark.parametrize(("labels", "mode", "no_label"), [(3, "P", 255), (255, "P", 255), (256, "I;16", 65535)])
def test_index_mask_keeps_ids_through_a_file(tmp_path, labels, mode, no_label):
    ids = np.full((4, 70), -1)
    ids[1:].flat[:labels] = np.arange(labels)[: 3 * 70]
    ids[3, -1] = labels - 1
    colours = make_colours(labels)
    index_mask(ids, colours).save(tmp_path / "mask.png")
    mask = Image.open(tmp_path / "mask.png")
    assert mask.mode == mode
    np.testing.assert_array_equal(load_class_ids(mask), np.where(ids < 0, no_label, ids))
    if mode == "P":
        shown = np.asarray(mask.convert("RGB"))
        np.testing.assert_array_equal(shown[ids >= 0], colours[ids[ids >= 0]])
        assert (shown[ids < 0] == 0).all()


def test_classes_are_tinted_bounded_and_listed():
    ids = np.zeros((96, 96), dtype=np.int64)
    ids[:, 48:] = 2
    ids[:24] = -1
    colours = make_colours(3)
    result = overlay(grey_picture(ids), ids, ["cat", "tree", "sky"], colours, alpha=0.5)
    assert result.mode == "RGB"
    pixels = np.asarray(result)
    np.testing.assert_allclose(pixels[300, 100], (colours[0].astype(int) + GREY) / 2, atol=1)
    np.testing.assert_allclose(pixels[300, 400], (colours[2].astype(int) + GREY) / 2, atol=1)
    assert pixels[60, 100].tolist() == list(GREY)
    assert pixels[300, 239].tolist() == [255, 255, 255]
    legend = legend_of(result, ids)
    assert has_colour(legend, colours[0])
    assert has_colour(legend, colours[2])
    assert not has_colour(legend, colours[1])


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (7, 5), (700, 1000)])
@pytest.mark.parametrize("label", ["cat", "a" * 10000, "猫👩\u200d👧", "two\nlines\tand a tab\x07"])
def test_a_picture_of_any_size_and_any_label_have_a_readable_legend(shape, label):
    ids = np.zeros(shape, dtype=np.int64)
    result = overlay(grey_picture(ids), ids, [label], make_colours(1))
    factor = max(-(-480 // max(shape)), 1)
    assert 100 < result.width - shape[1] * factor < 400 + max(shape)
    assert result.height >= max(shape[0] * factor, 20)
    assert max(result.size) >= 480


def test_a_legend_of_many_labels_lists_the_largest():
    ids = np.arange(3000).reshape(50, 60) % 300
    ids[:10] = 7
    result = overlay(grey_picture(ids), ids, [str(index) for index in range(300)], make_colours(300))
    assert result.width < 2000
    assert has_colour(legend_of(result, ids), make_colours(300)[7])


def test_a_picture_without_any_label_stays_as_it_is():
    ids = np.full((480, 480), -1)
    result = overlay(grey_picture(ids), ids, ["cat"], make_colours(1))
    assert result.crop((0, 0, 480, 480)).tobytes() == grey_picture(ids).tobytes()
