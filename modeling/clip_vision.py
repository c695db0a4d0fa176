"""What differs from CLIP's own vision tower: how the position table is resized."""

import torch
import torch.nn.functional as F
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings, CLIPVisionModel
from transformers.utils import is_torchdynamo_exporting


class ZegClipVisionEmbeddings(CLIPVisionEmbeddings):
    """
    CLIP's embeddings, with the position table resized bilinearly as ZegCLIP does (CLIP's own way is bicubic).

    Where the active adapter says so (`double_class_embedding`), the class token's position holds the class embedding
    a second time.

    Args:
        vision_model: The tower that they belong to, whose encoder holds the adapters.
    """

    def __init__(self, vision_model: CLIPVisionModel):
        super().__init__(vision_model.config)
        self._vision_model = (vision_model,)  # in a tuple, so that it is no module of this one

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return `(1, 1 + patches, dim)` positions for a picture of `height` x `width` pixels."""
        grid = (height // self.patch_size, width // self.patch_size)
        side = self.image_size // self.patch_size
        table = self.position_embedding.weight
        if getattr(self._vision_model[0].encoder, "doubles_class_embedding", False):
            table = torch.cat([table[:1] + self.class_embedding, table[1:]])
        # A graph for all sizes has one way, which leaves the table's own size as it is.
        if not is_torchdynamo_exporting() and grid == (side, side):
            return table.unsqueeze(0)
        patches = table[1:].T.reshape(1, -1, side, side)
        patches = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)
        return torch.cat([table[:1], patches.flatten(2)[0].T]).unsqueeze(0)


__all__ = ["ZegClipVisionEmbeddings"]
