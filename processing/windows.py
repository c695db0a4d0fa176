"""
Sliding-window prediction, as in the official ZegCLIP test pipeline. Tensor functions for any model.

Pictures are cut into windows of one size, and the model predicts several windows at a time. Their logits stay at the
model's low resolution until `merging.py` makes scores or masks of them.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .input_error import InputError

NO_MEMORY = "There is not enough memory"
"""How the messages of out-of-memory errors raised here begin."""

# Messages of a plain RuntimeError: PyTorch's for CPUs (Linux and macOS, Windows) and Apple's GPUs, and oneDNN's, which
# is not more specific. Other devices raise torch.OutOfMemoryError.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "could not create a primitive")

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class WindowLogits:
    """
    A model's predictions for the windows of one picture.

    Attributes:
        logits: `(windows, names, h, w)`, mask logits at the model's resolution, any floating type.
        boxes: `(top, left, bottom, right)` of each window in the picture, in pixels, end excluded.
        height: Height of the picture, in pixels.
        width: Width of the picture, in pixels.
        score_function: What turns the logits into scores: `"sigmoid"`, or `"softmax"` over all names.

    Raises:
        InputError: If a logit is not finite.
    """

    logits: torch.Tensor
    boxes: list[Box]
    height: int
    width: int
    score_function: str = "sigmoid"

    def __post_init__(self) -> None:
        check_finite(self.logits)


def check_finite(logits: torch.Tensor) -> None:
    """Raise [`InputError`] if a logit is not finite: comparisons with NaN are false, so the first name would win."""
    if not logits.isfinite().all():
        raise InputError(
            "The model's scores are NaN or infinite: its weights are damaged or overflow in this precision."
        )


@dataclass
class BatchSize:
    """
    Number of windows per forward pass, halved when memory runs out. Share one object to keep it for later pictures.

    Attributes:
        windows: At least 1.
    """

    windows: int


def window_boxes(height: int, width: int, window_size: int | None, stride: int | None) -> list[Box]:
    """
    Positions of the windows: every `stride` pixels, the last ones shifted back to end at the border.

    All windows have the same size: along a side shorter than `window_size` there is one window of that length.

    Args:
        height: Height of the picture, at least 1.
        width: Width of the picture, at least 1.
        window_size: Side of the square windows; `None` for one window over the whole picture.
        stride: Distance between neighbouring windows, at most `window_size`; `None` for `window_size` (no overlap).

    Returns:
        `(top, left, bottom, right)` of each window, end excluded, row by row.

    Raises:
        InputError: If a size is not positive, or the stride would leave gaps.
    """
    if window_size is None:
        return [(0, 0, height, width)]
    if stride is None:
        stride = window_size
    if not 0 < stride <= window_size:
        raise InputError(
            f"window_stride must lie between 1 and window_size to cover every pixel, but it is {stride} and "
            f"window_size is {window_size}."
        )
    return [
        (top, left, bottom, right)
        for top, bottom in _intervals(height, window_size, stride)
        for left, right in _intervals(width, window_size, stride)
    ]


def _intervals(length: int, window_size: int, stride: int) -> list[tuple[int, int]]:
    count = max(length - window_size + stride - 1, 0) // stride + 1
    ends = [min(index * stride + window_size, length) for index in range(count)]
    return [(max(end - window_size, 0), end) for end in ends]


def predict_windows(
    model: Callable[..., Any],
    pixel_values: torch.Tensor,
    class_embeds: torch.Tensor,
    window_size: int | None,
    stride: int | None,
    batch_size: int | BatchSize = 8,
) -> WindowLogits:
    """
    Run a model over all windows of one picture, several at a time.

    Args:
        model: Called as `model(pixel_values=..., class_embeds=...)`; its result has `.logits (windows, names, h, w)`
            and, unless their sigmoid is the score, `.score_function`.
        pixel_values: `(1, channels, height, width)`, the preprocessed picture.
        class_embeds: `(names, dim)`, passed on to the model.
        window_size: Side of the square windows; `None` for the whole picture at once.
        stride: Distance between neighbouring windows.
        batch_size: Windows per forward pass, at least 1, halved with a warning when memory runs out. With a
            [`BatchSize`], the caller can keep the reduced number for the next picture.

    Returns:
        The windows' logits and positions, for [`merge_scores`] and [`merge_masks`].

    Raises:
        InputError: If a size is not positive.
        MemoryError: If there is not enough memory for a single window.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[0] != 1:
        raise ValueError(f"Expected one picture (1, channels, height, width), got {tuple(pixel_values.shape)}.")
    return predict_pictures(model, [pixel_values], class_embeds, window_size, stride, batch_size)[0]


def predict_pictures(
    model: Callable[..., Any],
    pictures: Sequence[torch.Tensor],
    class_embeds: torch.Tensor,
    window_size: int | None,
    stride: int | None,
    batch_size: int | BatchSize = 8,
) -> list[WindowLogits]:
    """
    As [`predict_windows`] for several pictures of any sizes, `(1, channels, height, width)` each.

    Windows of one size share forward passes, whichever picture they are of.
    """
    batch = batch_size if isinstance(batch_size, BatchSize) else BatchSize(batch_size)
    if batch.windows < 1:
        raise InputError(f"batch_size must be at least 1, got {batch.windows}.")
    sizes = [(picture.shape[-2], picture.shape[-1]) for picture in pictures]
    boxes = [window_boxes(*size, window_size, stride) for size in sizes]
    alike: dict[tuple[int, int], list[tuple[int, Box]]] = {}  # Pictures and boxes by height and width of the windows.
    for index, own in enumerate(boxes):
        top, left, bottom, right = own[0]
        alike.setdefault((bottom - top, right - left), []).extend((index, box) for box in own)
    logits: list[list[torch.Tensor]] = [[] for _ in pictures]
    outputs = None
    for (height, width), windows in alike.items():
        side, done = f"{height} x {width}", 0
        while done < len(windows):
            some = windows[done : done + batch.windows]
            try:
                cuts = (pictures[index][..., top:bottom, left:right] for index, (top, left, bottom, right) in some)
                outputs = model(pixel_values=torch.cat([*cuts]), class_embeds=class_embeds)
            # The next pass runs after this block, which frees the tensors.
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(some) == 1:
                    index = some[0][0]
                    raise MemoryError(
                        f"{NO_MEMORY} for one window of {side} pixels with {len(class_embeds)} names, of "
                        f"{len(boxes[index])} in a picture of {sizes[index][0]} x {sizes[index][1]}: give a smaller "
                        f"window_size."
                    ) from error
                batch.windows = (len(some) + 1) // 2
                warnings.warn(
                    f"{NO_MEMORY} for {len(some)} windows of {side} pixels at once: going on with {batch.windows}.",
                    stacklevel=3,
                )
                continue
            for (index, _), values in zip(some, outputs.logits, strict=True):
                logits[index].append(values)
            done += len(some)
    score_function = getattr(outputs, "score_function", "sigmoid")
    return [
        WindowLogits(torch.stack(values), own, *size, score_function)
        for values, own, size in zip(logits, boxes, sizes, strict=True)
    ]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory has run out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


__all__ = [
    "NO_MEMORY",
    "BatchSize",
    "WindowLogits",
    "is_out_of_memory",
    "predict_pictures",
    "predict_windows",
    "window_boxes",
]
