"""The model's output, whose class says what the logits mean."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from transformers.modeling_outputs import ModelOutput


@dataclass
class ZegClipSemanticSegmenterOutput(ModelOutput):
    """
    Output of [`ZegClipForSemanticSegmentation`].

    Attributes:
        score_function (`str`): What turns upsampled logits into scores: `"sigmoid"`, or `"softmax"` over all names.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*): Weighted sum of the loss terms, with `labels`.
        logits (`torch.Tensor` of shape `(batch, classes, height, width)`):
            Mask logits on the patch grid, one map per name.
        loss_dict (`dict[str, torch.Tensor]`, *optional*):
            Each loss term that has a weight, weighted, with `labels`: `loss_focal`, `loss_dice`, `loss_ssim`,
            `loss_cross_entropy`.
        loss_counts (`dict[str, torch.Tensor]`, *optional*):
            The number of masks or pixels that each term is divided by, if it is at least 1. With them, a step of
            several passes or processes is averaged as one batch.
        image_embeds (`torch.Tensor` of shape `(batch, dim)`): Global image embedding, L2-normalised.
        patch_embeds (`torch.Tensor` of shape `(batch, height, width, dim)`): Patch embeddings, L2-normalised.
        class_embeds (`torch.Tensor` of shape `(classes, dim)`): Class embeddings, L2-normalised.
        hidden_states (`tuple[torch.Tensor]`, *optional*): Of the vision tower, prompt tokens included.
        attentions (`tuple[torch.Tensor]`, *optional*): Of the vision tower.
        orientations (`torch.Tensor` of shape `(batch, 3)`, *optional*): As given, for post-processing.
        class_of_name (`torch.Tensor` of shape `(names,)`, *optional*): As given, for post-processing.
    """

    score_function: ClassVar[Literal["sigmoid", "softmax"]] = "sigmoid"

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    loss_counts: dict[str, torch.Tensor] | None = None
    image_embeds: torch.Tensor | None = None
    patch_embeds: torch.Tensor | None = None
    class_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    orientations: torch.Tensor | None = None
    class_of_name: torch.Tensor | None = None


@dataclass
class TrainingFreeSegmenterOutput(ZegClipSemanticSegmenterOutput):
    """Output of a model without a trained head, see [`ZegClipSemanticSegmenterOutput`]."""

    score_function = "softmax"


OUTPUTS: dict[str, type[ZegClipSemanticSegmenterOutput]] = {
    output.score_function: output for output in (ZegClipSemanticSegmenterOutput, TrainingFreeSegmenterOutput)
}

__all__ = ["OUTPUTS", "TrainingFreeSegmenterOutput", "ZegClipSemanticSegmenterOutput"]
