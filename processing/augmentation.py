"""
The random changes of the official ZegCLIP training: picture and label map together, drawn from a generator of NumPy.

OpenCV (Apache-2.0) computes them, as in the official code: its bilinear resize and its 8-bit HSV give the same bits,
and a sample takes a few milliseconds. Pillow smooths what it shrinks and has 256 hues instead of 180; kornia works on
floats, has no category rule and takes about eight times as long; torchvision is optional here and its colour changes
follow another law; albumentations is archived, and its successor is under the AGPL.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from .input_error import InputError
from .resizing import nearest_indices

# Data loaders run a process on each core already. It happens here because each of them imports this module or is
# forked from a process that did, and OpenCV's threads, once started, do not survive a fork.
cv2.setNumThreads(0)
cv2.ocl.setUseOpenCL(False)

MAX_CROP_CHECKS = 10
LARGEST_ID = 65535


@dataclass(frozen=True)
class TrainingAugmentation:
    """
    Random resize, crop, flip and colour distortion, equal in law to the official ZegCLIP training.

    1. Resize: `r ~ U[scale_range)`; the picture is fitted, with its aspect ratio, into a box whose long side is
       `long_side * r` and whose short side is `short_side * r` pixels. The picture bilinear without antialiasing, the
       labels nearest.
    2. Crop, at every place with the same probability. Until it has at least two classes, none with
       `max_category_share` of its labelled pixels or more, it is drawn anew, at most 10 times.
    3. Horizontal flip.
    4. [`distort_colours`].

    The category rule looks at the labels as they are, so a label map must come with all its classes, and what training
    does not use (unseen classes) be taken out of the crop afterwards. A data set's background that is no class (VOC)
    is `ignore_index` before.

    Args:
        crop_size: Side of the crop in pixels; a shorter side of the resized picture is kept whole.
        scale_range: Smallest and largest `r`; `None` leaves the picture's size as it is.
        short_side: In pixels, at `r = 1`.
        long_side: In pixels, at `r = 1`, at least `short_side`.
        max_category_share: Above 0, at most 1; 1 accepts every crop.
        flip_probability: In 0..1.
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
                raise InputError(f"{name} must be a whole number of pixels and at least 1, but is {value!r}.")
        if self.short_side > self.long_side:
            raise InputError(f"short_side ({self.short_side}) must not exceed long_side ({self.long_side}).")
        if self.scale_range is not None and not (
            len(self.scale_range) == 2 and 0 < self.scale_range[0] <= self.scale_range[1] < math.inf
        ):
            raise InputError(
                f"scale_range must be two positive numbers, the smaller one first, or None, but is {self.scale_range}."
            )
        if not 0 < self.max_category_share <= 1:
            raise InputError(f"max_category_share must be above 0 and at most 1, but is {self.max_category_share}.")
        if not 0 <= self.flip_probability <= 1:
            raise InputError(f"flip_probability must be in 0..1, but is {self.flip_probability}.")

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
            ValueError: If picture and labels have other types or shapes, or the category rule meets another value.
        """
        _check_pair(image, labels)
        height, width = self._draw_shape(rng, *labels.shape)
        rows, columns = nearest_indices(labels.shape[0], height), nearest_indices(labels.shape[1], width)
        down, across = self._draw_crop(labels, rows, columns, rng)
        # Resized whole: the interpolation weights of a part depend on where it begins, so cutting first, cheaper for
        # enlarged pictures, cannot give the same bits.
        if image.shape[:2] != (height, width):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        image, rows, columns = image[down, across].copy(), rows[down], columns[across]
        if rng.random() < self.flip_probability:
            image, columns = cv2.flip(image, 1), columns[::-1]
        if self.photometric_distortion:
            image = distort_colours(image, rng)
        return image, labels[rows].take(columns, axis=1)

    def _draw_shape(self, rng: np.random.Generator, height: int, width: int) -> tuple[int, int]:
        """Draws the size that a picture is resized to."""
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
        Draws a crop under the category rule.

        Args:
            labels: `(height, width)`, before the resize.
            rows: For each row of the resized map, the row of `labels` that it shows.
            columns: The same for columns.

        Returns:
            Which rows and which columns of the resized map.
        """

        def draw(side: int) -> slice:
            start = int(rng.integers(max(side - self.crop_size, 0) + 1))
            return slice(start, min(start + self.crop_size, side))

        down, across = draw(len(rows)), draw(len(columns))
        if self.max_category_share == 1 or max(len(rows), len(columns)) <= self.crop_size:
            return down, across
        bins = self._count_bins(labels)
        if np.count_nonzero(np.bincount(bins.ravel())[1:]) < 2:
            return down, across  # No crop of such a picture passes, and any crop is as good as the last.
        for _ in range(MAX_CROP_CHECKS):
            counts = np.bincount(bins[rows[down]].take(columns[across], axis=1).ravel())[1:]
            # A class alone has the whole share, so what passes has two.
            if counts.any() and counts.max() / counts.sum() < self.max_category_share:
                break
            down, across = draw(len(rows)), draw(len(columns))
        return down, across

    def _count_bins(self, labels: np.ndarray) -> np.ndarray:
        """Numbers labels from 1 on, the ignored ones 0, in `(height, width)` int64."""
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
    Distorts brightness, contrast, saturation and hue, each with probability 0.5, as the official training does.

    In this order: brightness `+ U(-32, 32)`; contrast `* U(0.5, 1.5)`, here or, as a coin decides, at the end;
    saturation `* U(0.5, 1.5)`; hue `+` a whole number in [-18, 18), of 180 for the full circle. Every step is computed
    in float32, clipped to 0..255 and cut to uint8, and saturation and hue go to HSV and back each on their own.

    Args:
        image: `(height, width, 3)` uint8, RGB.
        rng: The only source of randomness.

    Returns:
        The same shape and type; the same array if no step was drawn.
    """
    # Each step maps one 8-bit value to another, so a table of all 256 is exact, and much faster.
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
    """Passes one channel of the picture's HSV form through a table."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def fill_up(
    pixel_values: torch.Tensor, labels: np.ndarray, *, crop_size: int, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Fill a normalised crop up to a square at the right and at the bottom.

    Args:
        pixel_values: `(3, height, width)` float32, sides at most `crop_size`, from an image processor.
        labels: `(height, width)` of any integer type.
        crop_size: Side of the square in pixels.
        ignore_index: Label of the added pixels, whose normalised colour is 0.

    Returns:
        `(3, crop_size, crop_size)` float32 and `(crop_size, crop_size)` int64.

    Raises:
        InputError: If the crop is larger than the square.
    """
    height, width = labels.shape
    if max(height, width) > crop_size:
        raise InputError(
            f"A crop of {height}x{width} pixels (height x width) does not fit in {crop_size}x{crop_size}."
        )
    ids = torch.from_numpy(labels.astype(np.int64))
    if (height, width) == (crop_size, crop_size):
        return pixel_values, ids
    margins = (0, crop_size - width, 0, crop_size - height)
    return F.pad(pixel_values, margins), F.pad(ids, margins, value=ignore_index)


def _check_pair(image: np.ndarray, labels: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f"A picture is an array (height, width, 3) of uint8 with at least one pixel, but got {image.dtype} of "
            f"shape {image.shape}."
        )
    if labels.dtype.kind not in "iu" or labels.shape != image.shape[:2]:
        raise InputError(
            f"The label map of a picture of {image.shape[0]}x{image.shape[1]} pixels (height x width) is an array of "
            f"integers of the same size, but got {labels.dtype} of shape {labels.shape}."
        )


__all__ = ["TrainingAugmentation", "distort_colours", "fill_up"]
