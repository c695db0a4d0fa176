"""Resizing that is bit-identical to OpenCV, which the official ZegCLIP pipeline uses."""

from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers.image_utils import SizeDict

from .input_error import InputError

try:  # Several times faster. Code that came with a model may have to do without.
    import cv2
except ImportError:
    cv2 = cast(Any, None)

# OpenCV interpolates 8-bit pictures in integers, with weights of 11 bits.
WEIGHT_BITS = 11


def resized_shape(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """
    The size that a picture is resized to.

    With `height` and `width`, that size. Otherwise the aspect ratio is kept: the short side becomes `shortest_edge`,
    `longest_edge` (if given) limits the long one, and both are rounded half up, as in the official ZegCLIP pipeline.

    Args:
        height: Height of the picture, at least 1.
        width: Width of the picture, at least 1.
        size: With `height` and `width`, or with `shortest_edge` and optionally `longest_edge`.

    Returns:
        `(height, width)`, each at least 1.

    Raises:
        InputError: If the picture has no pixels, `size` has other keys, or the result exceeds
            `PIL.Image.MAX_IMAGE_PIXELS` (a very long and thin picture, without a limit for its long side).
    """
    if height < 1 or width < 1:
        raise InputError(f"A picture of {height}x{width} pixels is empty.")
    if size.height and size.width:
        return size.height, size.width
    if not size.shortest_edge:
        raise InputError(f"size needs 'height' and 'width', or 'shortest_edge', but got {dict(size)}.")
    scale = size.shortest_edge / min(height, width)
    if size.longest_edge:
        scale = min(scale, size.longest_edge / max(height, width))
    new_height, new_width = max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
    if Image.MAX_IMAGE_PIXELS is not None and new_height * new_width > Image.MAX_IMAGE_PIXELS:
        raise InputError(
            f"A picture of {height}x{width} pixels would be resized to {new_height}x{new_width}; limit the long side "
            'with size={"shortest_edge": ..., "longest_edge": ...}.'
        )
    return new_height, new_width


def resize_bilinear(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """
    Bilinear resize with half-pixel centres and **without antialiasing**: `cv2.resize(..., cv2.INTER_LINEAR)`.

    For 8-bit pictures on accelerators, and where OpenCV is not installed, its integer arithmetic is repeated step by
    step, with the same bits. (The bilinear filters of Pillow and torch differ from it by up to one grey level, with
    antialiasing by more.)

    Args:
        image: `(channels, height, width)`, uint8, or any other type for a plain float32 interpolation.

    Returns:
        `(channels, height, width)` at the new size, uint8 for uint8 and float32 otherwise.
    """
    if image.dtype != torch.uint8:
        return nn.functional.interpolate(image[None].float(), (height, width), mode="bilinear", align_corners=False)[0]
    if cv2 is not None and image.device.type == "cpu":
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        return torch.from_numpy(resized.reshape(height, width, -1)).permute(2, 0, 1)
    top, bottom, top_weight, bottom_weight = _interpolation(image.shape[-2], height, image.device)
    left, right, left_weight, right_weight = _interpolation(image.shape[-1], width, image.device)

    def interpolate_columns(rows: torch.Tensor) -> torch.Tensor:
        pixels = image.index_select(-2, rows)
        columns = (
            pixels.index_select(-1, left).int() * left_weight + pixels.index_select(-1, right).int() * right_weight
        )
        return columns >> 4

    # OpenCV drops 4 bits after the columns and 16 after each row, and rounds only the last 2.
    upper = (interpolate_columns(top) * top_weight[:, None]) >> 16
    lower = (interpolate_columns(bottom) * bottom_weight[:, None]) >> 16
    return ((upper + lower + 2) >> 2).clamp(0, 255).to(torch.uint8)


def resize_matrix(old_side: int, new_side: int, device: torch.device | None = None) -> torch.Tensor:
    """
    Matrix `(new_side, old_side)` float32 of a bilinear resize of float32 maps along one side.

    `resize_matrix(height, new_height) @ map @ resize_matrix(width, new_width).T` is the resized map, and some of the
    rows of the matrices give a part of it.
    """
    columns = torch.eye(old_side, device=device)[None]
    return nn.functional.interpolate(columns, new_side, mode="linear", align_corners=False)[0].T


def _interpolation(
    old_side: int, new_side: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Indices of the two source pixels of every target pixel along one side, int64, and their weights, int32."""
    # On the CPU: not every device supports float64.
    centres = (torch.arange(new_side, dtype=torch.float64) + 0.5) * (old_side / new_side) - 0.5
    centres = centres.float()
    first = centres.floor()
    fraction = centres - first
    one = 1 << WEIGHT_BITS
    return (
        first.long().clamp(0, old_side - 1).to(device),
        (first.long() + 1).clamp(0, old_side - 1).to(device),
        ((1 - fraction) * one).round().int().to(device),
        (fraction * one).round().int().to(device),
    )


def resize_nearest(class_ids: np.ndarray, height: int, width: int) -> np.ndarray:
    """
    Nearest-neighbour resize of a label map to source pixel `floor(target * old / new)`: `cv2.INTER_NEAREST`.

    Pillow and torch's `nearest-exact` use the pixel at the centre instead, which shifts labels by up to half a pixel.

    Args:
        class_ids: `(height, width)`, any type.

    Returns:
        `(height, width)` at the new size, same type.
    """
    rows = nearest_indices(class_ids.shape[0], height)
    columns = nearest_indices(class_ids.shape[1], width)
    return class_ids[rows[:, None], columns]


def nearest_indices(old_side: int, new_side: int) -> np.ndarray:
    """
    Index of the source pixel of each pixel along a resized side, as in OpenCV: `(new_side,)` int64.

    This is `floor(target * old / new)`, or one less if OpenCV's division is rounded to just below a whole number.
    """
    return np.minimum((np.arange(new_side) * (1 / (new_side / old_side))).astype(np.int64), old_side - 1)


__all__ = ["nearest_indices", "resize_bilinear", "resize_matrix", "resize_nearest", "resized_shape"]
