"""
The data augmentation of the official ZegCLIP training, for a picture and its label map together.

It uses OpenCV (Apache-2.0), like the official code: bilinear resize and 8-bit HSV are bit-identical, and a sample
takes a few milliseconds. Pillow applies antialiasing and has 256 hues instead of 180; kornia works on floats, lacks
the category rule and takes about eight times as long; torchvision is optional here, and its colour jitter has other
distributions; albumentations is archived, and its successor is under the AGPL.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from .input_error import InputError
from .resizing import nearest_indices

# Data loaders already run one process per core. Set at import, because each of them imports this module or is forked
# from a process that did, and OpenCV's threads, once started, do not survive a fork.
cv2.setNumThreads(0)
cv2.ocl.setUseOpenCL(False)

MAX_CROP_CHECKS = 10
LARGEST_ID = 65535


@dataclass(frozen=True)
class TrainingAugmentation:
    """
    Random resize, crop, flip and colour distortion, identically distributed to the official ZegCLIP training.

    1. Resize: `r ~ U[scale_range)`; keeping its aspect ratio, the picture is fitted into a box of `long_side * r` by
       `short_side * r` pixels. Pictures are interpolated bilinearly without antialiasing, labels to the nearest pixel.
    2. Crop at a uniformly distributed position. It is drawn again, at most 10 times, until it has at least two classes
       and none covers `max_category_share` of its labelled pixels or more (the category rule).
    3. Horizontal flip.
    4. [`distort_colours`].

    The category rule counts all classes, so pass label maps with unseen classes and remove those from the crop
    afterwards. A background that is not a class (VOC) must be `ignore_index` before.

    Args:
        crop_size: Side of the crop in pixels; a shorter side of the resized picture is not cropped.
        scale_range: Smallest and largest `r`; `None` to keep the picture's size.
        short_side: Short side of the box in pixels, for `r = 1`.
        long_side: Long side of the box in pixels, for `r = 1`; at least `short_side`.
        max_category_share: In (0, 1]; 1 accepts every crop.
        flip_probability: Probability of a horizontal flip, in [0, 1].
        photometric_distortion: Whether colours are distorted.
        ignore_index: Label of pixels without a class.

    Raises:
        InputError: If a field is outside its range.
    """

    crop_size: int = 512
    scale_range: tuple[float, float] | None = (0.5, 2.0)
    short_side: int = 512
    long_side: int = 2048
    max_category_share: float = 0.75
    flip_probability: float = 0.5
    photometric_distortion: bool = True
    ignore_index: int = 255

    def __post_init__(self) -> None:
        for name in ("crop_size", "short_side", "long_side"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be an integer of at least 1 (pixels), got {value!r}.")
        if self.short_side > self.long_side:
            raise InputError(f"short_side ({self.short_side}) must not exceed long_side ({self.long_side}).")
        if self.scale_range is not None and not (
            len(self.scale_range) == 2 and 0 < self.scale_range[0] <= self.scale_range[1] < math.inf
        ):
            raise InputError(
                f"scale_range must be two positive numbers, the smaller one first, or None, got {self.scale_range}."
            )
        if not 0 < self.max_category_share <= 1:
            raise InputError(f"max_category_share must be in (0, 1], got {self.max_category_share}.")
        if not 0 <= self.flip_probability <= 1:
            raise InputError(f"flip_probability must be in [0, 1], got {self.flip_probability}.")

    def __call__(
        self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Draw one training sample.

        Args:
            image: `(height, width, 3)` uint8, RGB.
            labels: `(height, width)` of any integer type: ids in 0..65535, -1, `ignore_index`.
            rng: The only source of randomness.

        Returns:
            New arrays: picture `(h, w, 3)` uint8 and labels `(h, w)` of the given type, `h` and `w` at most
            `crop_size`. Not padded.

        Raises:
            InputError: If a label has another value.
            ValueError: If picture and labels have other types or shapes.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"The picture must be (height, width, 3) uint8, got {image.shape} {image.dtype}.")
        if labels.dtype.kind not in "iu" or labels.shape != image.shape[:2]:
            raise ValueError(f"Labels must be {image.shape[:2]} integers, got {labels.shape} {labels.dtype}.")
        height, width = self._draw_shape(rng, *labels.shape)
        rows, columns = nearest_indices(labels.shape[0], height), nearest_indices(labels.shape[1], width)
        down, across = self._draw_crop(labels, rows, columns, rng)
        # The whole picture is resized: the interpolation weights of a part depend on where it begins, so cropping
        # first, although cheaper for enlarged pictures, cannot be bit-identical.
        if image.shape[:2] != (height, width):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        image, rows, columns = image[down, across].copy(), rows[down], columns[across]
        if rng.random() < self.flip_probability:
            image, columns = cv2.flip(image, 1), columns[::-1]
        if self.photometric_distortion:
            image = distort_colours(image, rng)
        return image, labels[rows].take(columns, axis=1)

    def _draw_shape(self, rng: np.random.Generator, height: int, width: int) -> tuple[int, int]:
        """Draw the size that a picture is resized to."""
        if self.scale_range is None:
            return height, width
        ratio = rng.uniform(*self.scale_range)
        scale = min(
            int(self.long_side * ratio) / max(height, width), int(self.short_side * ratio) / min(height, width)
        )
        return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)

    def _draw_crop(
        self, labels: np.ndarray, rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator
    ) -> tuple[slice, slice]:
        """
        Draw a crop under the category rule.

        Args:
            labels: `(height, width)`, before the resize.
            rows: Row of `labels` for each row of the resized map.
            columns: Column of `labels` for each column of the resized map.

        Returns:
            Rows and columns of the resized map.
        """

        def draw(side: int) -> slice:
            start = int(rng.integers(max(side - self.crop_size, 0) + 1))
            return slice(start, min(start + self.crop_size, side))

        down, across = draw(len(rows)), draw(len(columns))
        if self.max_category_share == 1 or max(len(rows), len(columns)) <= self.crop_size:
            return down, across
        bins = self._count_bins(labels)
        if np.count_nonzero(np.bincount(bins.ravel())[1:]) < 2:
            return down, across  # No crop of this picture can pass, and all are identically distributed.
        for _ in range(MAX_CROP_CHECKS):
            counts = np.bincount(bins[rows[down]].take(columns[across], axis=1).ravel())[1:]
            # A single class has a share of 1, so a crop that passes has two.
            if counts.any() and counts.max() / counts.sum() < self.max_category_share:
                break
            down, across = draw(len(rows)), draw(len(columns))
        return down, across

    def _count_bins(self, labels: np.ndarray) -> np.ndarray:
        """Bins for `numpy.bincount`, `(height, width)` int64: 0 for ignored labels, from 1 on for the others."""
        ignored = labels == self.ignore_index
        bins = np.where(ignored, 0, labels.astype(np.int64))
        if bins.min() < -1 or bins.max() > LARGEST_ID:
            wrong = int(bins.min() if bins.min() < -1 else bins.max())
            raise InputError(
                f"Labels are class ids in 0..{LARGEST_ID}, -1 or the ignore index {self.ignore_index}, but one is "
                f"{wrong}."
            )
        return np.where(ignored, 0, bins + 2)


def distort_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Distort brightness, contrast, saturation and hue, each with probability 0.5, as in the official training.

    In this order: brightness `+ U(-32, 32)`; contrast `* U(0.5, 1.5)`, here or at the end with equal probability;
    saturation `* U(0.5, 1.5)`; hue `+` an integer in [-18, 18), of 180 for the full circle. Every step is computed in
    float32, clipped to 0..255 and truncated to uint8; saturation and hue each convert to HSV and back.

    Args:
        image: `(height, width, 3)` uint8, RGB.
        rng: The only source of randomness.

    Returns:
        The same shape and type; the given array if no step was drawn.
    """
    # Each step maps an 8-bit value to another, so a table of all 256 is exact, and much faster.
    values = np.arange(256, dtype=np.float32)

    def happens() -> bool:
        return rng.random() < 0.5

    def contrast(image: np.ndarray) -> np.ndarray:
        return cv2.LUT(image, _to_uint8(values * rng.uniform(0.5, 1.5))) if happens() else image

    if happens():
        image = cv2.LUT(image, _to_uint8(values + rng.uniform(-32, 32)))
    contrast_first = happens()
    if contrast_first:
        image = contrast(image)
    if happens():
        image = _change_hsv(image, 1, _to_uint8(values * rng.uniform(0.5, 1.5)))
    if happens():
        image = _change_hsv(image, 0, ((np.arange(256) + rng.integers(-18, 18)) % 180).astype(np.uint8))
    return image if contrast_first else contrast(image)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)


def _change_hsv(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Apply a table to one channel of the picture in HSV."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def fill_up(
    pixel_values: torch.Tensor, labels: np.ndarray, *, crop_size: int, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Pad a normalised crop to a square, on the right and at the bottom.

    Args:
        pixel_values: `(3, height, width)` float32, from an image processor; padded with 0.
        labels: `(height, width)` of any integer type; padded with `ignore_index`.
        crop_size: Side of the square in pixels.
        ignore_index: Label of the added pixels.

    Returns:
        `(3, crop_size, crop_size)` float32 and `(crop_size, crop_size)` int64.

    Raises:
        ValueError: If the crop is larger than the square.
    """
    height, width = labels.shape
    if max(height, width) > crop_size:
        raise ValueError(f"A crop of {height}x{width} pixels does not fit in {crop_size}x{crop_size}.")
    ids = torch.from_numpy(labels.astype(np.int64))
    if (height, width) == (crop_size, crop_size):
        return pixel_values, ids
    margins = (0, crop_size - width, 0, crop_size - height)
    return F.pad(pixel_values, margins), F.pad(ids, margins, value=ignore_index)


__all__ = ["TrainingAugmentation", "distort_colours", "fill_up"]
