"""Colours of classes: different ones, also to colour-blind people, and index masks whose ids survive a file."""

import numpy as np
import pytest
from PIL import Image

from zegclip.drawing.colours import FIRST_COLOURS, edge_colours, fill_colours, index_mask, make_colours
from zegclip.processing.image_reading import load_class_ids

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISIONS = {
    "usual": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
OKABE_AND_ITO = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (0, 0, 0),
)  # fmt: skip


def as_lab(colours, vision):
    """CIELAB, `(colours, 3)`, of sRGB colours as a vision sees them, with the white of D65."""
    values = colours / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(VISIONS[vision]), 0, 1)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    xyz = seen @ to_xyz.T / to_xyz.sum(axis=1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def smallest_difference(colours, vision):
    lab = as_lab(np.asarray(colours), vision)
    differences = np.linalg.norm(lab[:, None] - lab, axis=-1)
    return differences[~np.eye(len(lab), dtype=bool)].min()


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize(("count", "outlines", "fillings"), [(8, 28, 19), (12, 25, 16), (20, 15, 10), (40, 9, 6)])
def test_colour_blind_people_can_tell_classes_apart(vision, count, outlines, fillings):
    # Measured, for the worst vision: the 8 colours of Okabe and Ito, the usual choice for colour-blind people, are 16
    # apart, and would be 10 apart as fillings. So the first 12 fillings here are as far apart as those are pure, and
    # the first 20 as those as fillings. A difference begins to be seen at 2.3.
    colours = make_colours(count)
    assert smallest_difference(colours, vision) >= outlines
    assert smallest_difference(fill_colours(colours), vision) >= fillings


def test_the_measure_of_differences():
    assert smallest_difference([(0, 0, 0), (255, 255, 255)], "usual") == pytest.approx(100, abs=0.1)
    assert min(smallest_difference(OKABE_AND_ITO, vision) for vision in VISIONS) == pytest.approx(16.1, abs=0.1)
    # Red-green blind people confuse these two, others do not.
    brown_and_green = [(160, 110, 0), (90, 130, 0)]
    for vision in VISIONS:
        confused = smallest_difference(brown_and_green, vision) < 8
        assert confused == (vision in ("protanopia", "deuteranopia"))


def test_edges_contrast_with_every_colour():
    colours = make_colours(1000)
    # In lightness; at most one of the two can be more than 50 away.
    for pair in np.stack([colours, edge_colours(colours)], axis=1):
        assert abs(np.diff(as_lab(pair, "usual")[:, 0])) > 30


def test_colours_are_all_different_and_go_on_as_in_voc():
    colours = make_colours(60000)
    assert len(np.unique(colours, axis=0)) == 60000
    assert colours[: len(FIRST_COLOURS)].tolist() == [list(colour) for colour in FIRST_COLOURS]
    # VOC's 42nd and 65th colour; its first one is the background.
    assert colours[40].tolist() == [192, 0, 64]
    assert colours[63].tolist() == [32, 0, 0]
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
