"""The training augmentation: bit-identical to the official code where that is determined, else its distribution."""

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from zegclip import ZegClipImageProcessorPil
from zegclip.processing.augmentation import TrainingAugmentation, distort_colours, fill_up
from zegclip.processing.input_error import InputError
from zegclip.processing.resizing import resize_bilinear

GOLDENS = Path(__file__).parents[1] / "goldens"
# Without any random change; tests switch on single ones.
STILL = TrainingAugmentation(
    scale_range=None, max_category_share=1.0, flip_probability=0.0, photometric_distortion=False
)


def rng(*key):
    return np.random.default_rng(key)


def numbered(height, width, dtype=np.int32):
    """A label map that numbers all pixels, and a picture with the same numbers in red and green."""
    ids = np.arange(height * width).reshape(height, width)
    return np.stack([ids % 256, ids // 256, np.zeros_like(ids)], axis=2).astype(np.uint8), ids.astype(dtype)


def to_tensors(image, labels, **kwargs):
    """A crop as the tensors of training."""
    processor = ZegClipImageProcessorPil()
    prepared = processor(image, do_resize=False, input_data_format="channels_last", return_tensors="pt")
    return fill_up(prepared["pixel_values"][0], labels, **kwargs)


def read_numbers(image):
    return image[..., 0].astype(int) + 256 * image[..., 1].astype(int)


def assert_mean(values, expected, deviation):
    """The mean of independent draws is within 4 standard errors of its expectation."""
    assert abs(np.mean(values) - expected) < 4 * deviation / math.sqrt(len(values))


def assert_uniform(values, low, high):
    """Mean, variance and range of draws from U[low, high)."""
    values = np.asarray(values)
    assert_mean(values, (low + high) / 2, (high - low) / math.sqrt(12))
    # For a uniform variable of width w, the squared distance from the centre deviates by w^2 / sqrt(180).
    assert_mean((values - (low + high) / 2) ** 2, (high - low) ** 2 / 12, (high - low) ** 2 / math.sqrt(180))
    assert low <= values.min() < low + 0.02 * (high - low)
    assert high - 0.02 * (high - low) < values.max() <= high


@pytest.mark.parametrize("case", ["train_down", "train_up"])
def test_resize_normalise_and_pad_are_bit_identical_to_the_official_code(case):
    golden = load_file(GOLDENS / "zegclip_preprocess.safetensors")
    image, labels = golden[f"test_{case[6:]}.image_rgb_uint8"].numpy(), golden[f"{case}.label_in"].numpy()
    # The box (281, 70), whole.
    augment = dataclasses.replace(STILL, crop_size=128, scale_range=(1.0, 1.0), short_side=70, long_side=281)
    image, labels = augment(image, labels, rng(0))
    assert np.array_equal(image, golden[f"{case}.image_resized_rgb_uint8"].numpy())
    assert np.array_equal(labels, golden[f"{case}.label_resized"].numpy())
    pixel_values, padded = to_tensors(image, labels, crop_size=128, ignore_index=255)
    assert torch.equal(pixel_values, golden[f"{case}.padded_pixel_values"])
    assert torch.equal(padded, golden[f"{case}.padded_label"].long())


@pytest.mark.parametrize(("height", "width"), [(37, 50), (50, 37), (48, 64), (3, 200), (1, 1)])
def test_any_scale_resizes_as_opencv_does(height, width):
    image = rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = rng(1).integers(-1, 3000, (height, width))
    augment = dataclasses.replace(STILL, crop_size=500, scale_range=(0.5, 2.0), short_side=51, long_side=205)
    for seed in range(10):
        resized, resized_labels = augment(image, labels, rng(seed))
        size = resized_labels.shape
        expected = resize_bilinear(torch.from_numpy(image).permute(2, 0, 1), *size).permute(1, 2, 0).numpy()
        assert np.array_equal(resized, expected)
        nearest = cv2.resize(labels.astype(np.int32), size[::-1], interpolation=cv2.INTER_NEAREST)
        assert np.array_equal(resized_labels, nearest)


def slow_distortion(image, rng, steps):
    """The official steps on BGR pixels, in float32, with the same draws; records in `steps` what is applied."""

    def convert(pixels, alpha=1.0, beta=0.0):
        changed = pixels.astype(np.float32) * np.float32(alpha) + np.float32(beta)
        return np.clip(changed, 0, 255).astype(np.uint8)

    def contrast(bgr):
        if rng.random() < 0.5:
            steps["contrast"] = rng.uniform(0.5, 1.5)
            bgr = convert(bgr, alpha=steps["contrast"])
        return bgr

    bgr = np.ascontiguousarray(image[..., ::-1])
    if rng.random() < 0.5:
        steps["brightness"] = rng.uniform(-32, 32)
        bgr = convert(bgr, beta=steps["brightness"])
    if rng.random() < 0.5:
        steps["early"] = True
        bgr = contrast(bgr)
    if rng.random() < 0.5:
        steps["saturation"] = rng.uniform(0.5, 1.5)
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = convert(hsv[..., 1], alpha=steps["saturation"])
        bgr = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if rng.random() < 0.5:
        steps["hue"] = rng.integers(-18, 18)
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + steps["hue"]) % 180
        bgr = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if "early" not in steps:
        bgr = contrast(bgr)
    return bgr[..., ::-1]


def test_colours_are_distorted_as_by_the_official_steps():
    image = rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image[:2] = np.arange(128).reshape(2, 64, 1)  # Greys, which have no hue.
    samples = []
    for seed in range(2000):
        samples.append(steps := {})
        expected = slow_distortion(image, rng(seed), steps)
        assert np.array_equal(distort_colours(image, rng(seed)), expected)
    # The draws themselves, and so those of the code, which are the same.
    names = ("brightness", "contrast", "saturation", "hue")
    for name in (*names, "early"):
        assert_mean([name in steps for steps in samples], 0.5, 0.5)
    counts = [sum(name in steps for name in names) for steps in samples]
    assert_mean(counts, 2, 1)
    assert set(counts) == {0, 1, 2, 3, 4}
    drawn = {name: [steps[name] for steps in samples if name in steps] for name in names}
    assert_uniform(drawn["brightness"], -32, 32)
    assert_uniform(drawn["contrast"], 0.5, 1.5)
    assert_uniform(drawn["saturation"], 0.5, 1.5)
    assert set(drawn["hue"]) == set(range(-18, 18))


def test_without_distortion_the_colours_stay():
    image, labels = numbered(20, 30)
    assert np.array_equal(STILL(image, labels, rng(0))[0], image)
    augment = dataclasses.replace(STILL, photometric_distortion=True)
    changed = [not np.array_equal(augment(image, labels, rng(seed))[0], image) for seed in range(200)]
    # One picture in 16 is left unchanged.
    assert_mean(changed, 15 / 16, math.sqrt(15) / 16)


def test_the_scale_is_uniformly_distributed():
    image, labels = numbered(100, 140)
    augment = dataclasses.replace(STILL, crop_size=5000, scale_range=(0.5, 2.0), short_side=400, long_side=1600)
    # Only the size is looked at, and the short side is int(400 r), exactly.
    shapes = [augment._draw_shape(rng(seed), *labels.shape) for seed in range(4000)]
    assert shapes[:20] == [augment(image, labels, rng(seed))[1].shape for seed in range(20)]
    assert_uniform([height / 400 + 0.5 / 400 for height, _ in shapes], 0.5, 2.0)
    assert all(width == int(140 * (height / 100) + 0.5) for height, width in shapes)


def test_the_box_limits_the_long_side():
    image, labels = numbered(10, 200)
    augment = dataclasses.replace(STILL, scale_range=(1.0, 1.0), short_side=50, long_side=100)
    assert augment(image, labels, rng(0))[1].shape == (5, 100)
    augment = dataclasses.replace(augment, long_side=50, short_side=1)
    # The height 10 * 1 / 10 comes from the short side, the width follows.
    assert augment(image, labels, rng(0))[1].shape == (1, 20)
    augment = dataclasses.replace(augment, short_side=1, long_side=2)
    assert augment(image, labels, rng(0))[0].shape == (1, 2, 3)


def test_crops_and_flips_are_uniform_and_change_picture_and_labels_alike():
    image, labels = numbered(20, 30)
    augment = dataclasses.replace(STILL, crop_size=12, flip_probability=0.5)
    tops, lefts, flips = [], [], []
    for seed in range(4000):
        crop, ids = augment(image, labels, rng(seed))
        assert np.array_equal(read_numbers(crop), ids)
        flips.append(ids[0, 0] > ids[0, 1])
        ids = ids[:, ::-1] if flips[-1] else ids
        tops.append(ids[0, 0] // 30)
        lefts.append(ids[0, 0] % 30)
        assert np.array_equal(ids, labels[tops[-1] :, lefts[-1] :][:12, :12])
    assert set(tops) == set(range(9))
    assert set(lefts) == set(range(19))
    # The standard deviation of n equally likely whole numbers in a row.
    assert_mean(tops, 4, math.sqrt((9**2 - 1) / 12))
    assert_mean(lefts, 9, math.sqrt((19**2 - 1) / 12))
    assert_mean(flips, 0.5, 0.5)
    assert abs(np.corrcoef([tops, lefts, flips]) - np.eye(3)).max() < 4 / math.sqrt(4000)


def test_labels_move_with_an_enlarged_picture():
    # Blocks of one colour, 8 pixels wide, doubled: only the seams of the bilinear picture are mixed.
    ids = rng(0).permutation(35 * 100)[:35].reshape(5, 7).repeat(8, 0).repeat(8, 1)
    image = np.stack([ids % 256, ids // 256, 0 * ids], axis=2).astype(np.uint8)
    augment = TrainingAugmentation(
        crop_size=48, scale_range=(2.0, 2.0), short_side=40, long_side=160, photometric_distortion=False
    )
    for seed in range(50):
        crop, labels = augment(image, ids, rng(seed))
        assert crop.shape == (48, 48, 3)
        shown = labels.astype(np.float32)
        inside = cv2.dilate(shown, np.ones((3, 3))) == cv2.erode(shown, np.ones((3, 3)))
        inside[[0, -1]] = inside[:, [0, -1]] = False  # There a seam may lie right outside.
        assert inside.mean() > 0.6
        assert np.array_equal(read_numbers(crop)[inside], labels[inside])


def fulfils(labels, share=0.75, ignore_index=255):
    counts = np.unique(labels[labels != ignore_index], return_counts=True)[1]
    return len(counts) > 1 and counts.max() / counts.sum() < share


def accepted_share(augment, image, labels, draws):
    return np.mean([fulfils(augment(image, labels, rng(seed))[1]) for seed in range(draws)])


def test_a_rare_crop_is_found_as_often_as_in_eleven_draws():
    labels = np.zeros((8, 18), np.int64)
    labels[:, :3] = 1
    image = np.zeros((8, 18, 3), np.uint8)
    # Of 11 crops only the leftmost has more than a quarter of the second class. The probability for 10 or 12 draws
    # would be eight standard errors away.
    augment = dataclasses.replace(STILL, crop_size=8, max_category_share=0.75)
    expected = 1 - (10 / 11) ** 11
    draws = 10000
    # That crop has 3 columns of the second class; `accepted_share` would take twice as long.
    found = np.mean([augment(image, labels, rng(seed))[1].sum() == 3 * 8 for seed in range(draws)])
    assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / draws)


@pytest.mark.parametrize(
    ("left", "right", "ignore_index"), [(-1, 0, 255), (3, 65534, 65535), (-1, 300, 0), (0, 65535, 255)]
)
def test_the_category_rule_counts_every_value_but_the_ignored_one(left, right, ignore_index):
    labels = np.full((10, 100), ignore_index, np.int32)
    labels[:, 40:50], labels[:, 50:60] = left, right
    image = np.zeros((10, 100, 3), np.uint8)
    # Every second crop touches both classes, so that 11 draws in a row miss them less than once in 1000 samples.
    augment = dataclasses.replace(STILL, crop_size=50, max_category_share=0.75, ignore_index=ignore_index)
    crops = [augment(image, labels, rng(seed))[1] for seed in range(200)]
    assert np.mean([fulfils(crop, ignore_index=ignore_index) for crop in crops]) > 0.99


def test_the_share_must_stay_below_the_limit():
    labels = np.array([[0, 0, 0, 1]]).repeat(4, 0)
    wide = np.concatenate([labels, 9 - labels], axis=1)
    image = np.zeros((4, 8, 3), np.uint8)
    augment = dataclasses.replace(STILL, crop_size=4, max_category_share=0.75)
    # Three of the five crops hold three quarters of one class, exactly, and only 11 of them in a row can remain.
    assert not fulfils(labels)
    assert accepted_share(augment, image, wide, 1000) > 0.98


@pytest.mark.filterwarnings("error")
def test_a_crop_without_labels_is_refused():
    labels = np.full((20, 60), 255)
    labels[:, 30:] = np.arange(30) % 2
    augment = dataclasses.replace(STILL, crop_size=20, max_category_share=0.75)
    # A quarter of all crops lie in the ignored half, and few of the others fail.
    assert accepted_share(augment, np.zeros((20, 60, 3), np.uint8), labels, 500) > 0.99


def test_pictures_of_one_class_or_none_are_cropped_anywhere():
    image, ids = numbered(10, 30)
    augment = dataclasses.replace(STILL, crop_size=10, max_category_share=0.75)
    for labels in (np.zeros_like(ids), np.full_like(ids, 255)):
        lefts = {int(read_numbers(augment(image, labels, rng(seed))[0])[0, 0]) for seed in range(300)}
        assert lefts == set(range(21))


def test_a_sample_depends_on_pixels_and_generator_alone():
    image = rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    labels = rng(1).integers(0, 4, (60, 90))
    image.flags.writeable = labels.flags.writeable = False
    augment = TrainingAugmentation(crop_size=64, short_side=64, long_side=256)
    first = [augment(image[:, ::-1], labels[:, ::-1], rng(5, index)) for index in range(8)]
    np.random.seed(3)
    torch.manual_seed(3)
    again = [augment(image[:, ::-1].copy(), labels[:, ::-1].copy(), rng(5, index)) for index in reversed(range(8))]
    for one, other in zip(first, again[::-1]):
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])
    assert len({crop.tobytes() for crop, _ in first}) == 8
    # A crop is no view of the picture that it was cut from.
    image, labels = numbered(6, 6)
    assert not any(np.shares_memory(*arrays) for arrays in zip((image, labels), STILL(image, labels, rng(0))))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64])
def test_labels_keep_type_and_values(dtype):
    limits, candidates = np.iinfo(dtype), (-1, 0, 1, 127, 171, 255, 256, 847, 32767, 65535)
    values = [value for value in candidates if limits.min <= value <= limits.max]
    labels = rng(0).choice(np.array(values, dtype), (40, 50))
    image = np.zeros((40, 50, 3), np.uint8)
    augment = TrainingAugmentation(crop_size=32, short_side=32, long_side=128, ignore_index=65535)
    seen = set()
    for seed in range(20):
        crop = augment(image, labels, rng(seed))[1]
        assert crop.dtype == dtype
        seen |= set(crop.ravel().tolist())
    assert seen == set(values)
    tensor = to_tensors(np.zeros((*crop.shape, 3), np.uint8), crop, crop_size=32, ignore_index=65535)[1]
    assert tensor.dtype == torch.int64
    assert np.array_equal(tensor[: crop.shape[0], : crop.shape[1]], crop.astype(np.int64))


@pytest.mark.parametrize(("height", "width"), [(5, 9), (9, 5), (1, 1), (16, 16), (16, 3)])
def test_a_small_crop_is_filled_up_at_the_right_and_at_the_bottom(height, width):
    image = rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = rng(1).integers(0, 500, (height, width)).astype(np.uint16)
    pixel_values, padded = to_tensors(image, labels, crop_size=16, ignore_index=65535)
    assert pixel_values.shape == (3, 16, 16)
    assert pixel_values.dtype == torch.float32
    expected = (image / 255 - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD
    np.testing.assert_allclose(pixel_values[:, :height, :width].permute(1, 2, 0), expected, atol=1e-6)
    assert np.array_equal(padded[:height, :width], labels.astype(np.int64))
    added = torch.ones(16, 16, dtype=torch.bool)
    added[:height, :width] = False
    assert (pixel_values[:, added] == 0).all()
    assert (padded[added] == 65535).all()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("crop_size", (0, 512.0)),
        ("short_side", (0,)),
        ("long_side", (511,)),
        ("scale_range", ((0.0, 1.0), (2.0, 0.5), (1.0,), (0.5, math.nan))),
        ("max_category_share", (0.0, 1.5)),
        ("flip_probability", (-0.1, math.nan)),
    ],
)
def test_fields_out_of_range_are_named(field, values):
    for value in values:
        with pytest.raises(InputError, match=field):
            TrainingAugmentation(**{field: value})


@pytest.mark.parametrize(
    ("image", "labels", "reason"),
    [
        (np.zeros((4, 5), np.uint8), np.zeros((4, 5), int), r"\(4, 5\) uint8"),
        (np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), int), "float32"),
        (np.zeros((0, 5, 3), np.uint8), np.zeros((0, 5), int), r"\(0, 5, 3\)"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), int), r"\(5, 4\)"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5)), "float64"),
    ],
)
def test_other_arrays_are_refused(image, labels, reason):
    with pytest.raises(ValueError, match=reason):
        TrainingAugmentation()(image, labels, rng(0))


@pytest.mark.parametrize("value", [-2, 65536])
def test_labels_out_of_range_are_named(value):
    labels = np.zeros((8, 8), np.int64)
    labels[1, 2] = value
    augment = TrainingAugmentation(crop_size=4, scale_range=None)
    with pytest.raises(InputError, match=str(value)):
        augment(np.zeros((8, 8, 3), np.uint8), labels, rng(0))
    ignored = dataclasses.replace(augment, ignore_index=value)
    assert ignored(np.zeros((8, 8, 3), np.uint8), labels, rng(0))[1].shape == (4, 4)


def test_a_crop_larger_than_the_square_is_refused():
    with pytest.raises(ValueError, match="9x4"):
        to_tensors(*numbered(9, 4), crop_size=8, ignore_index=255)


def test_opencv_starts_no_threads_of_its_own():
    assert cv2.getNumThreads() == 1
    assert not cv2.ocl.useOpenCL()
