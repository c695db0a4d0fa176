import cv2
import numpy as np
import pytest
import torch
from torch import nn
from transformers.image_utils import SizeDict

from zegclip.processing.input_error import InputError
from zegclip.processing.resizing import resize_bilinear, resize_nearest, resized_shape


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((480, 640), {"shortest_edge": 512}, (512, 683)),
        ((375, 500), {"shortest_edge": 512}, (512, 683)),
        ((1, 1), {"shortest_edge": 512}, (512, 512)),
        ((100, 1000), {"shortest_edge": 512}, (512, 5120)),
        ((100, 1000), {"shortest_edge": 512, "longest_edge": 2048}, (205, 2048)),
        ((1, 10000), {"shortest_edge": 512, "longest_edge": 512}, (1, 512)),
        ((100, 1000), {"height": 64, "width": 32}, (64, 32)),
    ],
)
def test_resized_shape(shape, size, expected):
    assert resized_shape(*shape, SizeDict(**size)) == expected


@pytest.mark.parametrize(
    ("shape", "size", "reason"),
    [
        ((0, 5), {"shortest_edge": 512}, "empty"),
        ((1, 5000), {"shortest_edge": 512}, "longest_edge"),
        ((5, 5), {"max_height": 3, "max_width": 3}, "shortest_edge"),
    ],
)
def test_resized_shape_refuses(shape, size, reason):
    with pytest.raises(InputError, match=reason):
        resized_shape(*shape, SizeDict(**size))


@pytest.mark.parametrize("new_shape", [(7, 9), (13, 5), (30, 41), (12, 10), (1, 1)])
def test_floats_are_interpolated_exactly(new_shape):
    image = torch.from_numpy(np.random.default_rng(0).random((3, 12, 10)))
    exact = nn.functional.interpolate(image[None], new_shape, mode="bilinear")[0]
    torch.testing.assert_close(resize_bilinear(image, *new_shape), exact.float())


SIDES = [1, 2, 3, 7, 48, 97, 333, 375, 427, 500, 512, 640, 683, 1023, 2048]


@pytest.mark.parametrize("old", SIDES)
def test_nearest_is_identical_to_opencv(old):
    for new in (*SIDES, *range(5, 200, 13)):
        expected = cv2.resize(np.arange(old, dtype=np.int32)[None], (new, 1), interpolation=cv2.INTER_NEAREST)
        assert np.array_equal(resize_nearest(np.arange(old)[None], 1, new), expected)


@pytest.mark.parametrize("installed", [True, False])
def test_bilinear_is_bit_identical_to_opencv(monkeypatch, installed):
    if not installed:
        monkeypatch.setattr("zegclip.processing.resizing.cv2", None)
    rng = np.random.default_rng(0)
    shapes = [(11, 7, 11, 7), *rng.integers(1, 120, (40, 4)).tolist()]  # also without a change
    for height, width, new_height, new_width in shapes:
        image = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
        expected = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        ours = resize_bilinear(torch.from_numpy(image).permute(2, 0, 1), new_height, new_width)
        assert np.array_equal(ours.permute(1, 2, 0), expected)
