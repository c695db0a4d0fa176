"""Finding weights that are not finite, as a diverged training or a damaged file leaves them."""

from collections.abc import Iterable

import torch


def find_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Return the name of the first tensor with a NaN or an infinity; `None` if there is none."""
    for name, tensor in tensors:
        if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
            continue
        # Minimum and maximum, which are both NaN if a value is, need no copy of the tensor.
        if not torch.stack(tensor.aminmax()).isfinite().all():
            return name
    return None


__all__ = ["find_not_finite"]
