"""Weights that are numbers: those of a training that has diverged, or of a damaged file, may not be."""

from collections.abc import Iterable

import torch


def find_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Return the name of the first tensor that holds a NaN or an infinity, `None` if there is none."""
    for name, tensor in tensors:
        if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
            continue
        # The extremes, which a NaN would be both of, need no memory beside the tensor's own.
        if not torch.stack(tensor.aminmax()).isfinite().all():
            return name
    return None


__all__ = ["find_not_finite"]
