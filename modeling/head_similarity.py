"""The head of training-free models: a class is where patches look like its name."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .head_base import DecodeHead


class SimilarityDecodeHead(DecodeHead):
    """
    Scaled cosine of patch and class embedding; no parameters.

    It is the last step of MaskCLIP, SCLIP, ClearCLIP and NACLIP and, on CLIP's own patches, the "text-patch matching"
    baseline of ZegCLIP (section 3.2).
    """

    score_function = "softmax"

    def forward(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor,
        class_embeds: torch.Tensor,
        hidden_states: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """As [`DecodeHead.forward`]; the logits are cosines times `similarity_scale`."""
        cosines = torch.einsum("bhwd,nd->bnhw", F.normalize(patch_embeds, dim=-1), class_embeds)
        return self.config.similarity_scale * cosines


__all__ = ["SimilarityDecodeHead"]
