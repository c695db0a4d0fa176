"""The training-free baseline: a class is where patches look like its name."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_zegclip import ZegClipConfig


class SimilarityDecodeHead(nn.Module):
    """Cosine of patch and class embedding; no parameters (the "text-patch matching" baseline, ZegCLIP section 3.2)."""

    def __init__(self, config: ZegClipConfig):
        super().__init__()

    def forward(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor,
        class_embeds: torch.Tensor,
        hidden_states: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """
        Score every patch against every class.

        Args:
            image_embeds: `(batch, dim)`, unused here.
            patch_embeds: `(batch, height, width, dim)`; the head normalises them.
            class_embeds: `(classes, dim)`, L2-normalised.
            hidden_states: Unused here.

        Returns:
            `(batch, classes, height, width)` cosines in [-1, 1].
        """
        return torch.einsum("bhwd,nd->bnhw", F.normalize(patch_embeds, dim=-1), class_embeds)


__all__ = ["SimilarityDecodeHead"]
