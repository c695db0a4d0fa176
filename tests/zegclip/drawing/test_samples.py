"""Strips and sheets show what was predicted, for pictures of any size."""

import numpy as np
import pytest
from PIL import Image

from zegclip.drawing.colours import FIRST_COLOURS, edge_colours, fill_colours, make_colours
from zegclip.drawing.samples import sample_sheet, sample_strip
from zegclip.processing.class_split import ClassSplit

SPLIT = ClassSplit(
    names=("cat", "sky | cloud", "boat", "umbrella", "lamp"),
    seen_ids=(0, 1),
    unseen_ids=(3, 2),
    groups={"objects": (0, 2, 3)},
)
GREY = (100, 100, 100)
GAP, LINE = 8, 22  # Around a strip's parts, and of its headings.


def has_colour(pixels, colour):
    return (pixels == colour).all(axis=-1).any()


def grey_picture(ids):
    return Image.new("RGB", ids.shape[::-1], GREY)


def scene():
    """A truth of three classes and ignored pixels, and a prediction that has another class at its right edge."""
    truth = np.zeros((96, 96), dtype=np.int64)
    truth[48:] = 3
    truth[48:, :40] = 1
    truth[:16] = 255
    predicted = np.where(truth == 255, 0, truth)
    predicted[:, 80:] = 2
    return truth, predicted


def panes_of(strip, width=384, height=384):
    pixels = np.asarray(strip)
    top, lefts = GAP + LINE, [GAP + index * (width + GAP) for index in range(4)]
    panes = [pixels[top : top + height, left : left + width] for left in lefts[:3]]
    return *panes, pixels[:, lefts[3] :]


def test_a_strip_shows_picture_truth_and_prediction():
    truth, predicted = scene()
    picture, shown_truth, shown_prediction, _ = panes_of(sample_strip(grey_picture(truth), truth, predicted, SPLIT))
    assert (picture == GREY).all()
    fillings = fill_colours(make_colours(5))  # By id, so that a class has one colour on all strips.
    for row, column in ((30, 30), (90, 20), (90, 60), (30, 90), (90, 90)):
        for shown, ids in ((shown_truth, truth), (shown_prediction, predicted)):
            found = shown[4 * row, 4 * column]
            assert (found == fillings[ids[row, column]]).all()
    stripes = shown_truth[4:56].reshape(-1, 3)
    assert {tuple(pixel) for pixel in stripes.tolist()} == {(255, 255, 255), (150, 150, 150)}
    assert (shown_prediction[30, 30] == fillings[0]).all()
    assert (shown_truth[4 * 48 - 1, 200] == edge_colours(make_colours(1))).all()  # an outline


def test_the_legend_lists_what_occurs_and_marks_unseen_classes():
    truth, predicted = scene()
    legend = panes_of(sample_strip(grey_picture(truth), truth, predicted, SPLIT))[3]
    for colour in FIRST_COLOURS[:4]:
        assert has_colour(legend, colour)
    assert not has_colour(legend, FIRST_COLOURS[4])
    everything_labelled = np.where(truth == 255, 0, truth)
    rest = panes_of(sample_strip(grey_picture(truth), everything_labelled, predicted, SPLIT))[3]
    # Half of the striped swatch beside "ignored".
    striped, unstriped = ((part == 150).all(axis=-1).sum() for part in (legend, rest))
    assert striped > unstriped + 60

    # The longest name is marked or not.
    all_seen = ClassSplit(names=SPLIT.names, seen_ids=(0, 1, 2, 3))
    only_seen = panes_of(sample_strip(grey_picture(truth), truth, predicted, all_seen))[3]
    assert legend.shape[1] > only_seen.shape[1] + 40


def test_ids_beyond_8_bits_and_another_ignore_index():
    names = tuple(f"class {index}" for index in range(300))
    split = ClassSplit(names=names, seen_ids=(0,), unseen_ids=(299,), ignore_index=65535, ignored_values=(65535,))
    truth = np.full((96, 96), 299, dtype=np.uint16)
    truth[:48], truth[:, :48] = 65535, 255
    _, shown_truth, _, legend = panes_of(sample_strip(grey_picture(truth), truth, truth * 0, split))
    assert (shown_truth[-10, -10] == fill_colours(make_colours(300)[299])).all()
    assert has_colour(legend, FIRST_COLOURS[0])


@pytest.mark.parametrize("size", [(1, 1), (900, 3), (3, 900), (300, 200), (2000, 1500)])
@pytest.mark.parametrize("num_classes", [1, 60])
def test_pictures_of_any_size_and_number_of_classes(size, num_classes):
    split = ClassSplit(names=tuple(f"class with a long name {index}" for index in range(num_classes)), seen_ids=(0,))
    ids = np.arange(size[0] * size[1]).reshape(size[::-1]) % num_classes
    strip = sample_strip(grey_picture(ids), ids, ids, split)
    assert 360 <= max(strip.size) <= 2600
    assert not has_colour(np.asarray(strip)[:, -GAP:], (0, 0, 0))  # no text is cut off
    assert np.asarray(strip.crop((0, 0, *strip.size))).min() < 100


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda truth, predicted: (truth[1:], predicted), "truth.*96x95"),
        (lambda truth, predicted: (truth, predicted[:, 1:]), "prediction.*95x96"),
        (lambda truth, predicted: (truth + 3, predicted), "258"),
        (lambda truth, predicted: (truth, predicted + 3), "prediction.* 5"),
        (lambda truth, predicted: (truth, predicted - 1), "prediction.* -1"),
    ],
)
def test_a_strip_of_what_does_not_belong_together(change, named):
    truth, predicted = scene()
    with pytest.raises(ValueError, match=named):
        sample_strip(grey_picture(truth), *change(truth, predicted), SPLIT)


def test_a_sheet_stacks_strips_under_its_title():
    strips = [Image.new("RGB", size, colour) for size, colour in (((400, 50), "red"), ((300, 70), "blue"))]
    sheet = np.asarray(sample_sheet(strips, "step 400"))
    top = len(sheet) - 120
    assert sheet.shape[1] == 400
    assert (sheet[:top] < 100).any()  # the title
    assert (sheet[top : top + 50] == (255, 0, 0)).all()
    assert (sheet[top + 50 :, :300] == (0, 0, 255)).all()
    assert (sheet[top + 50 :, 300:] == 255).all()
    assert sample_sheet(strips, "a very long title " * 100).size == sheet.shape[1::-1]
    with pytest.raises(ValueError, match="strip"):
        sample_sheet([], "step 400")
