"""Sums over the pixels of each mask logit map, of several loss terms at once and with bounded memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F

from .model_error import ModelError

PIXELS_AT_ONCE = 2**22
Chunk = tuple[slice, slice]  # of pictures and of maps
GROUPS_OF_CONVOLUTION = 8  # On CPUs, a convolution of 1 takes 5 times as long as one of 8.


def count_present_masks(
    labels: torch.Tensor, num_classes: int, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Find which classes occur in which picture.

    Args:
        labels: `(batch, height, width)` int64 class ids.
        num_classes: Number of classes.
        ignore_index: Label of pixels without a class.

    Returns:
        `(batch, num_classes)` bool, true where the class occurs, and the number of such pairs, at least 1, int64:
        the normaliser of focal and dice loss in the official code.
    """
    ids = torch.where(labels == ignore_index, num_classes, labels).flatten(1)
    present = torch.zeros(len(labels), num_classes + 1, device=labels.device).scatter_(1, ids, 1.0)[:, :-1] > 0
    return present, present.sum().clamp(min=1)


def count_pixels(labels: torch.Tensor, ignore_index: int, ignored_too: bool) -> torch.Tensor:
    """Count the pixels of `labels` `(batch, height, width)` int64, with or without ignored ones; int64."""
    counted = torch.ones_like(labels, dtype=torch.bool) if ignored_too else labels != ignore_index
    return counted.sum()


def resize(maps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Resize `(pictures, classes, height, width)` to the labels' resolution, bilinear with half-pixel centres."""
    size = labels.shape[-2:]
    if maps.shape[-2:] == size:
        return maps
    if is_traced() or maps.device.type != "cpu":
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    # On CPUs, the gradient of the interpolation takes 9 times as long as that of two products, which are the same.
    rows, columns = (
        F.interpolate(torch.eye(cells, dtype=maps.dtype)[None], length, mode="linear", align_corners=False)[0]
        for cells, length in zip(maps.shape[-2:], size, strict=True)
    )
    with torch.autocast("cpu", enabled=False):
        return rows.mT @ maps @ columns


def is_traced() -> bool:
    """Whether operators are recorded, for a graph whose shapes cannot depend on values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@dataclass
class Maps:
    """
    Mask logits of some classes of some pictures at the labels' resolution, and what several terms need of them.

    Attributes:
        logits: `(pictures, classes, height, width)`.
        inside: 1 where a pixel is of the map's class, otherwise 0, same shape; `None` for classes that do not occur.
        valid: False where a pixel is ignored, bool `(pictures, 1, height, width)`.
        wrong: Logits of being wrong. With the sign of its logit flipped, the labelled class is as any other.
        errors: Probabilities of being wrong.
    """

    logits: torch.Tensor
    inside: torch.Tensor | None
    valid: torch.Tensor
    wrong: torch.Tensor
    errors: torch.Tensor

    def sum(self, values: torch.Tensor, ignored_as_negatives: bool) -> torch.Tensor:
        """Sum over the pixels of each map, `(pictures, classes)`."""
        return (values if ignored_as_negatives else values * self.valid).sum((-2, -1))


def sum_each_map(
    terms: Sequence[Callable[[Maps], torch.Tensor]], logits: torch.Tensor, labels: torch.Tensor, ignore_index: int
) -> tuple[torch.Tensor, ...]:
    """
    Sum loss terms over the pixels of each map.

    Args:
        terms: Functions that return sums `(sums, pictures, classes)`, each of one map.
        logits: `(batch, classes, rows, columns)` mask logits.
        labels: `(batch, height, width)` int64 class ids.
        ignore_index: Label of pixels without a class.

    Returns:
        `(sums, batch, classes)` for each term.
    """
    if not terms:
        return ()
    num_classes = logits.shape[1]
    at_once = is_traced() or num_classes * labels.numel() <= PIXELS_AT_ONCE
    if is_traced() or logits.device.type != "cpu":
        class_ids = torch.arange(num_classes, device=labels.device).expand(len(labels), -1)
        return _sum_chunks(terms, logits, labels, class_ids, ignore_index, at_once=at_once)
    # Most classes do not occur in a picture, and their maps take fewer operations. Reading how many occur would
    # synchronise an accelerator, and the shapes of a graph cannot depend on it.
    present, _ = count_present_masks(labels, num_classes, ignore_index)
    order = present.long().argsort(dim=1, descending=True, stable=True)
    occurring = max(present.sum(1).tolist(), default=num_classes)
    # At least some maps, as a term may be a constant for the others: then it has gradients, if only of 0.
    first = max(-(-occurring // GROUPS_OF_CONVOLUTION), 1) * GROUPS_OF_CONVOLUTION
    if num_classes - first < GROUPS_OF_CONVOLUTION:
        first = num_classes
    ordered = logits.gather(1, order[..., None, None].expand_as(logits))
    parts = [
        _sum_chunks(terms, ordered[:, :first], labels, order[:, :first], ignore_index, at_once=at_once),
        _sum_chunks(terms, ordered[:, first:], labels, order[:, first:], ignore_index, at_once=at_once, occur=False),
    ]
    sums = [torch.cat(values, dim=-1) for values in zip(*(part for part in parts if part), strict=True)]
    back = order.argsort(dim=1)
    return tuple(values.gather(-1, back.expand_as(values)) for values in sums)


def _sum_chunks(
    terms: Sequence[Callable[[Maps], torch.Tensor]],
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_ids: torch.Tensor,
    ignore_index: int,
    *,
    at_once: bool,
    occur: bool = True,
) -> tuple[torch.Tensor, ...]:
    """
    Sum loss terms over the pixels of each map; many large maps are processed in chunks, to bound the memory.

    Args:
        terms: As [`sum_each_map`]'s.
        logits: `(batch, maps, rows, columns)`.
        labels: `(batch, height, width)`.
        class_ids: `(batch, maps)` int64, the class of each map.
        ignore_index: Label of pixels without a class.
        at_once: Not in chunks.
        occur: False if none of the classes occurs in its picture.

    Returns:
        `(sums, batch, maps)` for each term; nothing without maps.
    """
    num_maps, pixels = logits.shape[1], labels.shape[-2:].numel()
    if num_maps == 0:
        return ()
    if at_once:
        return _of_maps(terms, logits, labels, class_ids, ignore_index, occur)
    pictures_at_once = max(PIXELS_AT_ONCE // (num_maps * pixels), 1)
    maps_at_once = min(max(PIXELS_AT_ONCE // pixels, 1), num_maps)
    pictures, maps = (
        [slice(start, start + step) for start in range(0, total, step)]
        for total, step in ((len(logits), pictures_at_once), (num_maps, maps_at_once))
    )

    def sum_chunk(some: torch.Tensor, chunk: Chunk) -> tuple[torch.Tensor, ...]:
        return _of_maps(terms, some, labels[chunk[0]], class_ids[chunk], ignore_index, occur)

    if not torch.is_grad_enabled():
        logits = logits.detach()
    return _SumsWithGradients.apply(logits, sum_chunk, list(product(pictures, maps)))


def _of_maps(
    terms: Sequence[Callable[[Maps], torch.Tensor]],
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_ids: torch.Tensor,
    ignore_index: int,
    occur: bool,
) -> tuple[torch.Tensor, ...]:
    valid = (labels != ignore_index).unsqueeze(1)
    wrong = logits = resize(logits, labels)
    inside = None
    if occur:
        inside = (valid & (labels.unsqueeze(1) == class_ids[..., None, None])).to(logits)
        wrong = (1 - 2 * inside) * logits
    maps = Maps(logits, inside, valid, wrong, errors=stable_sigmoid(wrong))
    return tuple(term(maps) for term in terms)


class _SumsWithGradients(torch.autograd.Function):
    """
    Sums of each map, chunk by chunk, whose gradients are computed with them.

    No map of the labels' resolution is kept for the backward pass or computed again in it. What is kept is the
    gradient of each sum, which has the size of the logits.
    """

    @staticmethod
    def forward(
        context: Any,
        logits: torch.Tensor,
        sum_chunk: Callable[[torch.Tensor, Chunk], tuple[torch.Tensor, ...]],
        chunks: Sequence[Chunk],
    ) -> tuple[torch.Tensor, ...]:
        sums: list[torch.Tensor] = []
        gradients: list[torch.Tensor | None] = []

        def add(chunk: Chunk) -> None:
            maps = logits[chunk].detach().requires_grad_(torch.is_grad_enabled())
            values = sum_chunk(maps, chunk)
            # A map's sums depend on no other map, so the gradient of their total has that of each.
            totals = [value.sum((1, 2)).unbind() for value in values]
            if not sums:  # Allocated once: if each chunk left some small tensors, they would fragment the memory.
                sums.extend(value.new_empty(len(value), *logits.shape[:2]) for value in values)
                gradients.extend(
                    logits.new_empty(len(value), *logits.shape) if value.requires_grad else None for value in values
                )
            left = sum(len(value) for value in values if value.requires_grad)
            for value, of_value, all_sums, all_gradients in zip(values, totals, sums, gradients, strict=True):
                all_sums[(slice(None), *chunk)] = value.detach()
                if all_gradients is not None:
                    for total, of_total in zip(of_value, all_gradients, strict=True):
                        left -= 1
                        [of_total[chunk]] = torch.autograd.grad(total, maps, retain_graph=left > 0)

        # Autocast must not reach the gradients: a backward pass runs outside of it.
        with torch.set_grad_enabled(context.needs_input_grad[0]), torch.autocast(logits.device.type, enabled=False):
            for chunk in chunks:
                add(chunk)
        context.save_for_backward(*gradients)
        return tuple(sums)

    @staticmethod
    def backward(context: Any, *of_sums: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        if torch.is_grad_enabled():
            raise ModelError("The losses of large maps have no second derivatives, which create_graph=True asks for.")
        parts = [
            (of_sum[..., None, None] * gradients).sum(0)
            for of_sum, gradients in zip(of_sums, context.saved_tensors, strict=True)
            if gradients is not None
        ]
        return (sum(parts[1:], start=parts[0]) if parts else None), None, None


class _Sigmoid(torch.autograd.Function):
    """As `torch.sigmoid`, whose gradient is rounded off where its value is close to 1."""

    @staticmethod
    def forward(context: Any, logits: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(logits)
        return logits.sigmoid()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        (logits,) = context.saved_tensors
        return gradient * logits.sigmoid() * (-logits).sigmoid()


def stable_sigmoid(logits: torch.Tensor) -> torch.Tensor:
    """The sigmoid of logits, with a gradient that is exact where it is close to 1."""
    return _Sigmoid.apply(logits)


__all__ = [
    "PIXELS_AT_ONCE",
    "Maps",
    "count_pixels",
    "count_present_masks",
    "resize",
    "stable_sigmoid",
    "sum_each_map",
]
