"""Detecting that an adapter is used with another CLIP than the one that it was trained on."""

import base64
from typing import Any

import numpy as np
import torch
from torch import nn

PLACES = (0, 9973)
"""Indices into a flattened tensor, modulo its size; rows that are added to a long enough one change neither."""
# The same weights in float16 and in bfloat16 differ by less.
RELATIVE_TOLERANCE = 2**-8
ABSOLUTE_TOLERANCE = 2**-24
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of the same size as a weight, by bytes."""


class OtherBaseWarning(UserWarning):
    """An adapter is used with a CLIP whose weights are not those that it was trained on."""


def take_fingerprint(model: nn.Module) -> str | None:
    """
    Return two weights of each tensor of a model's CLIP, without adapters and decode head.

    Weights rounded to half precision are still recognised; any hash of them would change.

    Args:
        model: A model around a CLIP, with or without adapters.

    Returns:
        Base64 of float32 values; `None` if weights are not in memory, or quantised.
    """
    values = {}
    for name, parameter in model.named_parameters():
        own = name.replace(".base_layer.", ".")
        if not parameter.ndim or any(part in own for part in (".deep_prompt_", "lora_", "decode_head.")):
            continue
        if parameter.is_meta or not parameter.numel() or not parameter.is_floating_point():
            return None
        places = [place % parameter.numel() for place in PLACES]
        values[own] = parameter.detach().reshape(-1)[places].float().cpu().numpy()
    if not values:
        return None
    return base64.b64encode(np.concatenate([values[name] for name in sorted(values)]).astype("<f4").tobytes()).decode()


def take_checksums(model: nn.Module) -> dict[str, tuple[torch.dtype, int]]:
    """
    Return the dtype and the sum of the bits of each tensor of a model without its adapters, by name.

    Unlike a fingerprint, it shows a change of any weight, as training makes it, but only while the dtype is the same.
    """
    sums = {}
    for name, parameter in model.named_parameters():
        if any(part in name for part in (".deep_prompt_", "lora_", ".modules_to_save.")):
            continue
        # Not those that are offloaded, quantised or distributed.
        if type(parameter) is nn.Parameter and not parameter.is_meta and parameter.is_floating_point():
            bits = parameter.detach().view(INTEGERS[parameter.element_size()])
            own = name.replace(".base_layer.", ".").replace(".original_module.", ".")
            sums[own] = parameter.dtype, int(bits.sum(dtype=torch.promote_types(bits.dtype, torch.int32)))
    return sums


def is_fingerprint(text: Any) -> bool:
    """Return whether this has the format that [`take_fingerprint`] returns."""
    try:
        return len(base64.b64decode(text, validate=True)) % 4 == 0
    except (TypeError, ValueError):
        return False


def are_same(fingerprint: str | None, other: str | None) -> bool:
    """Return whether two fingerprints are of the same weights, in any precision; also true if one is missing."""
    if fingerprint is None or other is None:
        return True
    values, others = (np.frombuffer(base64.b64decode(text), "<f4") for text in (fingerprint, other))
    return len(values) == len(others) and np.allclose(values, others, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)


def warning_of_other_base(adapter: Any, of_adapter: str | None, here: str | None) -> str:
    """Return the text of an [`OtherBaseWarning`], which names the adapter's base and the one in use."""
    return (
        f"The adapter {adapter or 'that is loaded'} was trained on the base {of_adapter or '(unnamed)'}, but the "
        f"weights of the base model here, {here or '(unnamed)'}, are different, so its masks may be wrong. Load the "
        "adapter alone, which finds its base, or pass this one as base_model_name_or_path if that is intended."
    )


__all__ = [
    "OtherBaseWarning",
    "are_same",
    "is_fingerprint",
    "take_checksums",
    "take_fingerprint",
    "warning_of_other_base",
]
