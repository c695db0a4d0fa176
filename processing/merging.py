"""
Scores and masks of a picture from the logits of its windows.

What overlapping windows say is averaged. Logits are upsampled a few classes at a time, so that finding the best class
of each pixel never needs `classes x height x width` scores in memory.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from .refinement import refined_tiles
from .resizing import resize_matrix
from .windows import WindowLogits

# Scores at full resolution per chunk of classes; a chunk has at least one class. They fit into the cache of a CPU;
# accelerators, where each operator costs a launch, get few chunks (not measured yet).
SCORES_PER_CHUNK = 2**21
SCORES_PER_CHUNK_ELSEWHERE = 2**24
# Pixels per step of the arg-max on a CPU, again for its cache.
PIXELS_AT_ONCE = 2**17

Blend = tuple[WindowLogits, float]


def merge_scores(
    windows: WindowLogits,
    target_size: tuple[int, int] | None = None,
    seen_ids: Sequence[int] = (),
    seen_offset: float = 0.0,
    blend: Blend | None = None,
    picture: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Scores of every name for every pixel.

    Sigmoid: the sigmoid of each window's upsampled logits (bilinear), averaged over overlapping windows, resized
    (bilinear) to the target size. Softmax: the upsampled logits, averaged and resized in the same way, then the
    softmax over the names (NACLIP).

    Args:
        windows: From [`predict_windows`].
        target_size: `(height, width)` of the result; `None` for the size of the picture.
        seen_ids: Indices of the names of classes seen in training.
        seen_offset: Subtracted from their scores, before a blend; 0.1 in the papers' inductive evaluation.
        blend: Other predictions for the same names and their weight, in [0, 1]; the weight of `windows` is the rest.
        picture: `(3, height, width)`, the preprocessed picture of any size, along whose colours the scores are refined
            (see [`refine`]), or logits before their softmax as in NACLIP.

    Returns:
        `(names, height, width)` float32 on the logits' device, in [-seen_offset, 1].
    """
    if picture is None:
        return _collect(_score_chunks(windows, target_size, seen_ids, seen_offset, blend), windows, target_size)
    chunks, as_logits = _comparable_chunks(windows, target_size, seen_ids, seen_offset, blend)
    maps = _collect(chunks, windows, target_size)
    scores = torch.empty_like(maps)
    for tile, refined in refined_tiles(maps, picture):
        for index, values in enumerate(refined):
            scores[index][tile] = values
    return scores.softmax(dim=0) if as_logits else scores


@torch.no_grad()
def merge_masks(
    windows: WindowLogits,
    target_size: tuple[int, int] | None = None,
    seen_ids: Sequence[int] = (),
    seen_offset: float = 0.0,
    blend: Blend | None = None,
    picture: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The best name of every pixel: the arg-max of [`merge_scores`], computed without all scores in memory.

    Args:
        As [`merge_scores`]. With a picture, all scores are in memory once.

    Returns:
        The name's index, `(height, width)` int64, and its score, `(height, width)` float32. Ties go to the first name.
    """
    chunks, as_logits = _comparable_chunks(windows, target_size, seen_ids, seen_offset, blend)
    if picture is None:
        return _best(chunks, as_logits)
    maps = _collect(chunks, windows, target_size)
    ids = torch.empty(maps.shape[1:], dtype=torch.int64, device=maps.device)
    best = torch.empty(maps.shape[1:], device=maps.device)
    for tile, refined in refined_tiles(maps, picture):
        ids[tile], best[tile] = _best((chunk[None] for chunk in refined), as_logits)
    return ids, best


def _comparable_chunks(
    windows: WindowLogits,
    target_size: tuple[int, int] | None,
    seen_ids: Sequence[int],
    seen_offset: float,
    blend: Blend | None,
) -> tuple[Iterator[torch.Tensor], bool]:
    """Return chunks of scores or, where the largest logit is also the best score, of logits; and whether they are."""
    if windows.score_function == "softmax" and blend is None and not seen_offset:
        return _logit_chunks(windows, target_size), True
    return _score_chunks(windows, target_size, seen_ids, seen_offset, blend), False


def _collect(
    chunks: Iterable[torch.Tensor], windows: WindowLogits, target_size: tuple[int, int] | None
) -> torch.Tensor:
    """Put chunks together, which `torch.cat` would hold twice."""
    size = target_size or (windows.height, windows.width)
    maps = torch.empty(windows.logits.shape[1], *size, device=windows.logits.device)
    start = 0
    for chunk in chunks:
        maps[start : start + len(chunk)] = chunk
        start += len(chunk)
    return maps


def _best(chunks: Iterable[torch.Tensor], as_logits: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The result of [`running_max`]; of logits, the softmax of the largest."""
    if not as_logits:
        return running_max(chunks)
    total = _LogSumExp()
    ids, best = running_max(total.add_all(chunks))
    return ids, (best - total.value).exp_()


class _LogSumExp:
    """Logarithm of the sum of the exponentials of all names' maps, given in chunks."""

    def __init__(self) -> None:
        self.value = torch.tensor(-torch.inf)

    def add_all(self, chunks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Pass chunks on, each once it is added."""
        for chunk in chunks:
            total = chunk.logsumexp(dim=0) if len(chunk) > 1 else chunk[0]  # the same, and free
            self.value = torch.logaddexp(self.value.to(total), total)
            yield chunk


def _score_chunks(
    windows: WindowLogits,
    target_size: tuple[int, int] | None,
    seen_ids: Sequence[int] = (),
    seen_offset: float = 0.0,
    blend: Blend | None = None,
) -> Iterator[torch.Tensor]:
    """Chunks of the result of [`merge_scores`], `(names, height, width)` float32 each."""
    offsets = None
    if seen_offset:
        offsets = torch.zeros(windows.logits.shape[1], 1, 1, device=windows.logits.device)
        offsets[list(seen_ids)] = seen_offset
    if windows.score_function == "sigmoid":
        chunks = _sigmoid_chunks(windows, target_size, offsets)
    else:
        chunks = _softmax_chunks(windows, target_size, offsets)
    if blend is None:
        return chunks
    others, weight = blend
    pairs = zip(chunks, _score_chunks(others, target_size), strict=True)
    return (torch.lerp(own, other, weight) for own, other in pairs)


def _softmax_chunks(
    windows: WindowLogits, target_size: tuple[int, int] | None, offsets: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    # Twice over all names: the sum comes first, and keeping all maps would need too much memory.
    total = _LogSumExp()
    for _ in total.add_all(_logit_chunks(windows, target_size)):
        pass
    start = 0
    for chunk in _logit_chunks(windows, target_size):
        scores = chunk.sub_(total.value).exp_()
        yield scores if offsets is None else scores.sub_(offsets[start : start + len(chunk)])
        start += len(chunk)


def _sigmoid_chunks(
    windows: WindowLogits, target_size: tuple[int, int] | None, offsets: torch.Tensor | None = None
) -> Iterator[torch.Tensor]:
    """
    Chunks of sigmoids, averaged over the windows, less the offsets `(names, 1, 1)`, and resized.

    Yields:
        `(names, height, width)` float32.
    """
    size = (windows.height, windows.width)
    several = len(windows.boxes) > 1
    if several:
        coverage = torch.zeros(size, device=windows.logits.device)
        for top, left, bottom, right in windows.boxes:
            coverage[top:bottom, left:right] += 1

    for names in _name_chunks(windows, target_size):
        if several:
            scores = torch.zeros(names.stop - names.start, *size, device=windows.logits.device)
            for window, (top, left, bottom, right) in zip(windows.logits, windows.boxes):
                probabilities = resize_maps(window[names], bottom - top, right - left).sigmoid_()
                scores[:, top:bottom, left:right] += probabilities
            scores /= coverage
        else:
            scores = resize_maps(windows.logits[0, names], *size).sigmoid_()
        if offsets is not None:
            scores -= offsets[names]
        yield scores if target_size in (None, size) else resize_maps(scores, *target_size)


def _logit_chunks(windows: WindowLogits, target_size: tuple[int, int] | None) -> Iterator[torch.Tensor]:
    """
    Chunks of logits, averaged over the windows and resized.

    Upsampling, average and resizing are linear, and each works on rows and on columns alone: together they are one
    matrix on each side of a map, which is faster than one step after the other.

    Yields:
        `(names, height, width)` float32.
    """
    size = target_size or (windows.height, windows.width)
    tops = list(dict.fromkeys((top, bottom) for top, _, bottom, _ in windows.boxes))
    lefts = list(dict.fromkeys((left, right) for _, left, _, right in windows.boxes))
    # (names, all rows of patches, all columns of patches)
    maps = windows.logits.float().unflatten(0, (len(tops), len(lefts))).permute(2, 0, 3, 1, 4)
    maps = maps.flatten(3, 4).flatten(1, 2)
    down = _merging(tops, windows.logits.shape[-2], windows.height, size[0], maps)
    across = _merging(lefts, windows.logits.shape[-1], windows.width, size[1], maps)
    with torch.autocast(maps.device.type, enabled=False):  # which would round the logits
        for names in _name_chunks(windows, target_size):
            yield down @ maps[names] @ across.T


def _merging(
    intervals: Sequence[tuple[int, int]], cells: int, length: int, target: int, like: torch.Tensor
) -> torch.Tensor:
    """Matrix `(target, intervals * cells)` from the patches of all windows along one side to the resized picture."""
    weights = torch.zeros(len(intervals), cells, length, device=like.device)
    coverage = torch.zeros(length, device=like.device)
    for row, (start, end) in zip(weights, intervals, strict=True):
        row[:, start:end] = resize_matrix(cells, end - start, like.device).T
        coverage[start:end] += 1
    merged = (weights / coverage).flatten(0, 1)
    return merged.T if target == length else resize_matrix(length, target, like.device) @ merged.T


def _name_chunks(windows: WindowLogits, target_size: tuple[int, int] | None) -> Iterator[slice]:
    """Chunks of names, the same for logits and for sigmoids: a blend takes them in pairs."""
    size = (windows.height, windows.width)
    height, width = max(size, target_size or size, key=math.prod)
    return class_chunks(windows.logits.shape[1], height, width, windows.logits.device)


def class_chunks(num_names: int, height: int, width: int, device: torch.device) -> Iterator[slice]:
    """Chunks of classes, in order, with at most as many scores of that size each as suit the device, or one class."""
    scores = SCORES_PER_CHUNK if device.type == "cpu" else SCORES_PER_CHUNK_ELSEWHERE
    count = max(scores // (height * width), 1)
    for start in range(0, num_names, count):
        yield slice(start, min(start + count, num_names))


@torch.no_grad()
def running_max(chunks: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Arg-max and maximum over classes given in chunks.

    Args:
        chunks: `(classes, height, width)` each, in class order; at least one chunk with at least one class.

    Returns:
        The index, `(height, width)` int64, counted over all chunks, and the value. Ties go to the first class.
    """
    iterator = iter(chunks)
    first = next(iterator)
    best = first[0].flatten().clone()
    ids = torch.zeros_like(best, dtype=torch.int32)
    fold = _fold_by_class if best.device.type == "cpu" else _fold_at_once
    index = 0
    for chunk in itertools.chain([first], iterator):
        fold(best, ids, chunk.flatten(1), index)
        index += len(chunk)
    size = first.shape[1:]
    return ids.view(size).long(), best.view(size)


def _fold_by_class(best: torch.Tensor, ids: torch.Tensor, chunk: torch.Tensor, first_id: int) -> None:
    """
    Update the best scores `(pixels,)` and their classes with `(classes, pixels)` more.

    On CPUs, `max(dim=0)` tracks indices element by element and takes several times as long.
    """
    for start in range(0, len(best), PIXELS_AT_ONCE):
        part = slice(start, start + PIXELS_AT_ONCE)
        best_part, ids_part = best[part], ids[part]
        for class_id, scores in enumerate(chunk[:, part], first_id):
            torch.maximum(ids_part, (scores > best_part).int().mul_(class_id), out=ids_part)
            torch.maximum(best_part, scores, out=best_part)


def _fold_at_once(best: torch.Tensor, ids: torch.Tensor, chunk: torch.Tensor, first_id: int) -> None:
    """As [`_fold_by_class`], in a few operators for all classes of the chunk."""
    scores, places = chunk.max(dim=0)
    torch.where(scores > best, places.int().add_(first_id), ids, out=ids)
    torch.maximum(best, scores, out=best)


def best_of_names(scores: torch.Tensor, class_of_name: torch.Tensor) -> torch.Tensor:
    """
    Maximum over the names of each class.

    Args:
        scores: `(names, height, width)`.
        class_of_name: `(names,)` class of each name, -1 for background; every class from 0 on has one.

    Returns:
        `(classes, height, width)`.
    """
    return torch.stack([scores[class_of_name == index].amax(dim=0) for index in range(int(class_of_name.max()) + 1)])


def resize_maps(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear resize (half-pixel centres, no antialiasing) of `(classes, h, w)` to the given size, in float32."""
    return nn.functional.interpolate(maps[None].float(), (height, width), mode="bilinear", align_corners=False)[0]


__all__ = [
    "SCORES_PER_CHUNK",
    "best_of_names",
    "class_chunks",
    "merge_masks",
    "merge_scores",
    "resize_maps",
    "running_max",
]
