"""The training-free baseline: a class is where patches look like its name."""

import torch
from torch import nn

from .configuration_zegclip import ZegClipConfig


class SimilarityDecodeHead(nn.Module):
    """Cosine of patch and class embedding; no parameters (the "text-patch matching" baseline, ZegCLIP section 3.2)."""

    def __init__(self, config: ZegClipConfig):
        super().__init__()

    def forward(
        self, image_embeds: torch.Tensor, patch_embeds: torch.Tensor, class_embeds: torch.Tensor
    ) -> torch.Tensor:
        """
        Score every patch against every class.

        Args:
            image_embeds: `(batch, dim)`, unused here.
            patch_embeds: `(batch, height, width, dim)`, L2-normalised.
            class_embeds: `(classes, dim)`, L2-normalised.

        Returns:
            `(batch, classes, height, width)` cosines in [-1, 1].
        """
        return torch.einsum("bhwd,nd->bnhw", patch_embeds, class_embeds)


__all__ = ["SimilarityDecodeHead"]
