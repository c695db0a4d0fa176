"""The base class of the decode heads."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig


class DecodeHead(nn.Module):
    """
    A decode head turns the embeddings of a picture and of class names into mask logits.

    A subclass implements `forward`, and overrides what differs of the rest. Parts of a head may also have a method
    `init_weights`. The table of all heads is in `heads.py`.

    Args:
        config: The model's [`ZegClipConfig`]. Its class is not imported, because it imports the heads.

    Attributes:
        score_function: What turns logits into scores: `"sigmoid"` for each name by itself, or `"softmax"` over all
            names.
        config_fields: Fields of the configuration that determine the shape or the meaning of the weights. An adapter
            fits a model if they are equal.
        out_indices: Layers of the vision tower, counted from 0, whose hidden states `forward` gets.
    """

    score_function: ClassVar[Literal["sigmoid", "softmax"]] = "sigmoid"
    config_fields: tuple[str, ...] = ("decode_head_type",)
    out_indices: Sequence[int] = ()
    # Names of the module classes that `device_map` must not split between devices, such as those with a residual
    # connection; `post_init` of the model collects them.
    _no_split_modules: tuple[str, ...] = ()

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the weights, to which the inputs of `forward` are cast; `None` for a head without weights."""
        return next((parameter.dtype for parameter in self.parameters()), None)

    @classmethod
    def validate(cls, config: PreTrainedConfig) -> None:
        """
        Check the fields that this head reads, `decode_head_init` included.

        Raises:
            ModelError: One sentence that names the field.
        """

    def init_weights(self) -> None:
        """
        Set initial values that differ from PyTorch's defaults for linear layers and norms, which are set before.

        Use the functions of `transformers.initialization` (or `torch.nn.init`): they leave tensors that were loaded
        from a file unchanged, whereas `tensor.fill_(...)` would overwrite trained weights.
        """

    def forward(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor,
        class_embeds: torch.Tensor,
        hidden_states: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """
        Compute one mask logit map per class.

        Args:
            image_embeds: `(batch, dim)` global embedding, L2-normalised.
            patch_embeds: `(batch, height, width, dim)`, *not* normalised.
            class_embeds: `(classes, dim)`, L2-normalised.
            hidden_states: `(batch, height, width, vision width)` of each of `out_indices`.

        Returns:
            `(batch, classes, height, width)` mask logits.
        """
        raise NotImplementedError


__all__ = ["DecodeHead"]
