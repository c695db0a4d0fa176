"""A contact sheet shows every picture beside its classes."""

import numpy as np
import pytest
from PIL import Image

from zegclip.drawing.colours import make_colours
from zegclip.drawing.contact_sheet import draw_contact_sheet
from zegclip.processing.class_split import ClassSplit

SPLIT = ClassSplit(names=("cat", "dog", "sky"), seen_ids=(0,), unseen_ids=(1,))


@pytest.mark.parametrize("sizes", [[(1, 1)], [(1, 2000), (2000, 1)], [(30, 20), (2000, 1000), (7, 500), (64, 64)]])
def test_pictures_of_any_size_are_shown_whole(sizes):
    pictures = [(f"{size}", Image.new("RGB", size, "lime"), np.zeros(size[::-1], int)) for size in sizes]
    sheet = draw_contact_sheet(pictures, SPLIT)
    shown = (np.asarray(sheet) == (0, 255, 0)).all(axis=-1).sum()
    longer = {1: 360, 2000: 512, 30: 360, 500: 500, 64: 384}  # Small ones are enlarged by a whole number.
    expected = 0
    for width, height in sizes:
        scale = longer[max(width, height)] / max(width, height)
        expected += max(round(width * scale), 1) * max(round(height * scale), 1)
    assert shown == expected


def test_classes_have_one_colour_on_the_whole_sheet_and_ignored_pixels_are_striped():
    ids = np.full((100, 100), 1)
    pictures = [("one", Image.new("RGB", (100, 100), "black"), value) for value in (ids, ids * 2, ids * -1)]
    sheet = np.asarray(draw_contact_sheet(pictures, SPLIT))
    third = sheet.shape[1] // 3
    colours = make_colours(3)
    for part, colour in ((sheet[:, :third], colours[1]), (sheet[:, third:], colours[2])):
        assert (part == colour).all(axis=-1).any()
        assert not (part == colours[0]).all(axis=-1).any()
    assert ((sheet == 150).all(axis=-1).sum(axis=0) > 100).any()
