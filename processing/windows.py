"""
Sliding-window prediction, as in the official ZegCLIP test pipeline. Pure tensor functions that know no model.

A picture is cut into windows of one size, the model predicts each of them, and the scores of overlapping windows are
averaged. The windows' logits are kept at the model's own low resolution; they are upsampled only a few classes at a
time, so that `classes x picture` scores need never exist when only the best class of each pixel is asked for.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .input_error import InputError

# Scores at full resolution that exist at the same time while only the best class is asked for: few enough for a
# processor's cache, and never less than those of one class.
SCORES_PER_CHUNK = 2**21
# Pixels whose best class is looked for at once on a CPU, for its cache.
PIXELS_AT_ONCE = 2**17

NO_MEMORY = "There is not enough memory"
"""How our own sentences about a lack of it begin."""

# What PyTorch says of CPUs (Linux and macOS, Windows) and of Apple's GPUs; others have an error of their own. The last
# is oneDNN's, which has no other words for it.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "could not create a primitive")

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class WindowLogits:
    """
    What a model predicted for the windows of one picture.

    Attributes:
        logits: `(windows, names, h, w)`, mask logits at the model's resolution, any floating type.
        boxes: `(top, left, bottom, right)` of each window in the picture, in pixels, end excluded.
        height: Rows of the picture that was cut up.
        width: Columns of it.
    """

    logits: torch.Tensor
    boxes: list[Box]
    height: int
    width: int


@dataclass
class BatchSize:
    """
    How many windows go through a model together: halved where the memory has no room for them, for all that follow.

    Attributes:
        windows: At least 1.
    """

    windows: int


def window_boxes(height: int, width: int, window_size: int | None, stride: int | None) -> list[Box]:
    """
    Where the windows lie: every `stride` pixels, the last ones shifted back so that they end at the border.

    A side shorter than the window gets one window of its own length, so all windows have the same size.

    Args:
        height: Rows of the picture, at least 1.
        width: Columns of it, at least 1.
        window_size: Side of the square windows; `None` for one window that is the whole picture.
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
            f"window_stride must lie between 1 and window_size, or pixels stay uncovered, but window_stride is "
            f"{stride} and window_size {window_size}."
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


def extract_windows(pixel_values: torch.Tensor, boxes: Sequence[Box]) -> torch.Tensor:
    """
    Cuts windows of one size out of a picture.

    Args:
        pixel_values: `(1, channels, height, width)`.
        boxes: From [`window_boxes`].

    Returns:
        `(windows, channels, window height, window width)`.
    """
    return torch.cat([pixel_values[:, :, top:bottom, left:right] for top, left, bottom, right in boxes])


def predict_windows(
    model: Callable[..., Any],
    pixel_values: torch.Tensor,
    class_embeds: torch.Tensor,
    window_size: int | None,
    stride: int | None,
    batch_size: int | BatchSize = 8,
) -> WindowLogits:
    """
    Runs a model over all windows of one picture, several at a time.

    Args:
        model: Called as `model(pixel_values=..., class_embeds=...)`; its result has `.logits (windows, names, h, w)`.
        pixel_values: `(1, channels, height, width)`, the preprocessed picture.
        class_embeds: `(names, dim)`, passed on to the model.
        window_size: Side of the square windows; `None` for the whole picture at once.
        stride: Distance between neighbouring windows.
        batch_size: Windows per call of the model, at least 1; fewer where memory runs out, with a warning. A
            [`BatchSize`] remembers how many for the next picture.

    Returns:
        The windows' logits and places, for [`merge_scores`] and [`merge_masks`].

    Raises:
        InputError: If there is more than one picture, or a size is not positive.
        MemoryError: If there is no room for a single window.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[0] != 1:
        raise InputError(
            f"Windows are cut from one picture (1, channels, height, width), not {tuple(pixel_values.shape)}."
        )
    batch = batch_size if isinstance(batch_size, BatchSize) else BatchSize(batch_size)
    if batch.windows < 1:
        raise InputError(f"window_batch_size must be at least 1, not {batch.windows}.")
    height, width = pixel_values.shape[-2:]
    boxes = window_boxes(height, width, window_size, stride)
    logits: list[torch.Tensor] = []
    done = 0
    while done < len(boxes):
        some = boxes[done : done + batch.windows]
        try:
            logits.append(model(pixel_values=extract_windows(pixel_values, some), class_embeds=class_embeds).logits)
        except (RuntimeError, MemoryError) as error:  # Until it is dropped, it holds on to what was computed.
            if not is_out_of_memory(error):
                raise
            top, left, bottom, right = some[0]
            if len(some) == 1:
                raise MemoryError(
                    f"{NO_MEMORY} for one window of {bottom - top} x {right - left} pixels with {len(class_embeds)} "
                    f"names, of {len(boxes)} that a picture of {height} x {width} is cut into: give a smaller "
                    "window_size."
                ) from error
            batch.windows = (len(some) + 1) // 2
            warnings.warn(
                f"{NO_MEMORY} for {len(some)} windows of {bottom - top} x {right - left} pixels at once: going on "
                f"with {batch.windows}.",
                stacklevel=2,
            )
        else:
            done += len(some)
    return WindowLogits(torch.cat(logits), boxes, height, width)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def merge_scores(
    windows: WindowLogits,
    target_size: tuple[int, int] | None = None,
    seen_ids: Sequence[int] = (),
    seen_offset: float = 0.0,
) -> torch.Tensor:
    """
    Scores of every class for every pixel: per window the sigmoid of the upsampled logits (bilinear), minus
    `seen_offset` for seen classes; averaged where windows overlap; resized (bilinear) to the target size.

    Args:
        windows: From [`predict_windows`].
        target_size: `(height, width)` of the result; `None` for the size of the picture that was cut up.
        seen_ids: Indices of the classes that were seen in training.
        seen_offset: Subtracted from their scores, 0.1 in the papers' inductive evaluation.

    Returns:
        `(names, height, width)` float32 on the logits' device, in [-seen_offset, 1].
    """
    return torch.cat(list(_merged_chunks(windows, target_size, seen_ids, seen_offset)))


def merge_masks(
    windows: WindowLogits,
    target_size: tuple[int, int] | None = None,
    seen_ids: Sequence[int] = (),
    seen_offset: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The best class of every pixel: the arg-max of [`merge_scores`], without ever holding all scores at full resolution.

    Args:
        As [`merge_scores`].

    Returns:
        The class index, `(height, width)` int64, and its score, `(height, width)` float32. Ties go to the first class.
    """
    return running_max(_merged_chunks(windows, target_size, seen_ids, seen_offset))


def _merged_chunks(
    windows: WindowLogits, target_size: tuple[int, int] | None, seen_ids: Sequence[int], seen_offset: float
) -> Iterator[torch.Tensor]:
    """[`merge_scores`], a few classes at a time: `(classes, height, width)` float32 each."""
    num_names = windows.logits.shape[1]
    size = (windows.height, windows.width)
    several = len(windows.boxes) > 1
    if several:
        coverage = torch.zeros(size, device=windows.logits.device)
        for top, left, bottom, right in windows.boxes:
            coverage[top:bottom, left:right] += 1
    if seen_offset:
        offsets = torch.zeros(num_names, 1, 1, device=windows.logits.device)
        offsets[list(seen_ids)] = seen_offset

    for classes in class_chunks(num_names, *max(size, target_size or size, key=math.prod)):
        if several:
            scores = torch.zeros(classes.stop - classes.start, *size, device=windows.logits.device)
            for window, (top, left, bottom, right) in zip(windows.logits, windows.boxes):
                probabilities = resize_maps(window[classes], bottom - top, right - left).sigmoid_()
                scores[:, top:bottom, left:right] += probabilities
            scores /= coverage
        else:
            scores = resize_maps(windows.logits[0, classes], *size).sigmoid_()
        if seen_offset:
            scores -= offsets[classes]
        yield scores if target_size in (None, size) else resize_maps(scores, *target_size)


def class_chunks(num_names: int, height: int, width: int) -> Iterator[slice]:
    """Which classes' maps of that size may exist at the same time, in order: at least one."""
    count = max(SCORES_PER_CHUNK // (height * width), 1)
    for start in range(0, num_names, count):
        yield slice(start, min(start + count, num_names))


@torch.no_grad()
def running_max(chunks: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Arg-max and maximum over classes that arrive in chunks.

    Args:
        chunks: `(classes, height, width)` each, in class order; at least one chunk with at least one class.

    Returns:
        The index, `(height, width)` int64, counted over all chunks, and the value. Ties go to the first class.
    """
    iterator = iter(chunks)
    first = next(iterator)
    best = first[0].flatten().clone()
    ids = torch.zeros_like(best, dtype=torch.int32)
    at_once = PIXELS_AT_ONCE if best.device.type == "cpu" else len(best)
    index = 0
    for chunk in itertools.chain([first], iterator):
        flat = chunk.flatten(1)
        for start in range(0, len(best), at_once):
            part = slice(start, start + at_once)
            best_part, ids_part = best[part], ids[part]
            for place, scores in enumerate(flat[:, part], index):
                # On CPUs `max(dim=0)` follows the index one element at a time, for several times as long.
                torch.maximum(ids_part, (scores > best_part).int().mul_(place), out=ids_part)
                torch.maximum(best_part, scores, out=best_part)
        index += len(chunk)
    size = first.shape[1:]
    return ids.view(size).long(), best.view(size)


def resize_maps(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear resize (half-pixel centres, no antialiasing) of `(classes, h, w)` to the given size, in float32."""
    return nn.functional.interpolate(maps[None].float(), (height, width), mode="bilinear", align_corners=False)[0]


__all__ = [
    "NO_MEMORY",
    "SCORES_PER_CHUNK",
    "BatchSize",
    "WindowLogits",
    "class_chunks",
    "extract_windows",
    "is_out_of_memory",
    "merge_masks",
    "merge_scores",
    "predict_windows",
    "resize_maps",
    "running_max",
    "window_boxes",
]
