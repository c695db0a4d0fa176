"""The vision tower in int8, on CPUs."""

import torch

from zegclip.errors import UsageError


def quantize_vision_tower(model: torch.nn.Module) -> None:
    """
    Let the linear layers of a model's vision tower multiply in int8, by torchao's dynamic quantization; in place.

    Weights are rounded per output, activations per token. The rest of the model is left as it is.

    Args:
        model: A [`ZegClipForSemanticSegmentation`] in float32, on a CPU.

    Raises:
        UsageError: If torchao is not installed.
    """
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise UsageError("int8 needs torchao, not installed here: pip install 'zegclip[int8]'.") from error
    quantize_(
        model,
        Int8DynamicActivationInt8WeightConfig(),
        lambda module, name: isinstance(module, torch.nn.Linear) and ".vision_model." in f".{name}",
    )
