"""Noticing that an adapter lies on another CLIP than the one it was made for."""

import base64
from typing import Any

import numpy as np
from torch import nn

PLACES = (0, 9973)
"""Of the weights of a tensor, counted on from its start where it is shorter; rows that are added change none."""
# The same weights in float16 and in bfloat16 differ by less.
RELATIVE_TOLERANCE = 2**-8
ABSOLUTE_TOLERANCE = 2**-24


class OtherBaseWarning(UserWarning):
    """An adapter is put on a CLIP whose weights are not those that it was made for."""


def take_fingerprint(model: nn.Module) -> str | None:
    """
    Return two weights of each tensor of a model's CLIP, adapters and decode head left out.

    Rounding to half precision leaves a weight recognisable, where any hash of it changes.

    Args:
        model: A model around a CLIP, with or without adapters.

    Returns:
        float32 values, base64; `None` where weights are not in memory, or quantised.
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


def is_fingerprint(text: Any) -> bool:
    """Tell whether this can be what [`take_fingerprint`] has returned."""
    try:
        return len(base64.b64decode(text, validate=True)) % 4 == 0
    except (TypeError, ValueError):
        return False


def are_same(fingerprint: str | None, other: str | None) -> bool:
    """Tell whether two fingerprints are of the same weights, in whatever precision; also true if one is missing."""
    if fingerprint is None or other is None:
        return True
    values, others = (np.frombuffer(base64.b64decode(text), "<f4") for text in (fingerprint, other))
    return len(values) == len(others) and np.allclose(values, others, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)


def warning_of_other_base(adapter: Any, of_adapter: str | None, here: str | None) -> str:
    """Say it in one sentence that names both: the adapter's base and the one that it lies on."""
    return (
        f"The adapter {adapter or 'that is loaded'} was made for the base model {of_adapter or '(unnamed)'}, but the "
        f"weights of the base model here, {here or '(unnamed)'}, are others, so its masks may be wrong. Load the "
        "adapter by itself, which finds its base, or name this one as base_model_name_or_path if it is meant."
    )


__all__ = ["OtherBaseWarning", "are_same", "is_fingerprint", "take_fingerprint", "warning_of_other_base"]
