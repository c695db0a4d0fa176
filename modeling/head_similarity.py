"""The training-free baseline: a class is where patches look like its name."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .head_base import DecodeHead


class SimilarityDecodeHead(DecodeHead):
    """Cosine of patch and class embedding; no parameters (the "text-patch matching" baseline, ZegCLIP section 3.2)."""

    def forward(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor,
        class_embeds: torch.Tensor,
        hidden_states: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """As [`DecodeHead.forward`]; the logits are cosines in [-1, 1]."""
        return torch.einsum("bhwd,nd->bnhw", F.normalize(patch_embeds, dim=-1), class_embeds)


__all__ = ["SimilarityDecodeHead"]
