"""Random crops and flips keep picture and mask together."""

import numpy as np
import torch
from PIL import Image

from zegclip.processing.augmentation_zegclip import random_crop_and_flip


def pair(height=20, width=30):
    ids = (np.arange(height * width).reshape(height, width) % 251).astype(np.uint8)
    return Image.fromarray(np.repeat(ids[..., None], 3, axis=2)), Image.fromarray(ids)


def test_picture_and_mask_stay_aligned_and_all_places_occur():
    torch.manual_seed(0)
    corners, flipped = set(), 0
    for _ in range(200):
        image, mask = random_crop_and_flip(*pair(), crop_size=19)
        assert image.size == mask.size == (19, 19)
        assert np.array_equal(np.asarray(image)[..., 0], np.asarray(mask))
        row = np.asarray(mask)[0].astype(int)
        flipped += row[1] == (row[0] - 1) % 251
        corners.add(min(row[0], row[-1]))
    assert 70 < flipped < 130
    assert len(corners) == 2 * 12


def test_the_same_generator_state_gives_the_same_crop():
    torch.manual_seed(3)
    first = random_crop_and_flip(*pair(), crop_size=8)[1]
    torch.manual_seed(3)
    assert np.array_equal(np.asarray(first), np.asarray(random_crop_and_flip(*pair(), crop_size=8)[1]))


def test_a_picture_smaller_than_the_crop_is_kept():
    assert random_crop_and_flip(*pair(6, 40), crop_size=16)[0].size == (16, 6)
