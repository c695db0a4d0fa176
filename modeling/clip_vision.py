"""What differs from CLIP's own vision tower: how pictures and the position table are resized."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings, CLIPVisionModel


def resize(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize `(batch, channels, height, width)` bilinearly to `size`, height and width."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


class ZegClipVisionEmbeddings(CLIPVisionEmbeddings):
    """
    CLIP's embeddings for pictures of any size.

    Sides that the patch size does not divide are stretched to the next multiple, so that the patch grid covers the
    whole picture. The position table is resized bilinearly as ZegCLIP does (CLIP's own way is bicubic). Where the
    active adapter has `double_class_embedding`, the class token's position holds the class embedding a second time.

    Args:
        vision_model: The tower that they belong to, whose encoder holds the adapters.
    """

    def __init__(self, vision_model: CLIPVisionModel):
        super().__init__(vision_model.config)
        self._vision_model = (vision_model,)  # in a tuple, so that it does not become a submodule

    def patch_grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches that cover pictures `(batch, 3, height, width)`."""
        height, width = ((side + self.patch_size - 1) // self.patch_size for side in pixel_values.shape[-2:])
        return height, width

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, with_adapter: bool = True
    ) -> torch.Tensor:
        """`(batch, 3, height, width)` to `(batch, 1 + patches, dim)`, as with the active adapter or without any."""
        size = [side * self.patch_size for side in self.patch_grid(pixel_values)]
        # Always: the class token's position depends on the adapter.
        states = super().forward(resize(pixel_values, size), interpolate_pos_encoding=True)
        if with_adapter:
            return states
        first = self.class_embedding + self._first_position(self.position_embedding(self.position_ids)[0], False)
        return torch.cat([first.expand(states.shape[0], -1, -1), states[:, 1:]], dim=1)

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return `(1, 1 + patches, dim)` positions for a picture of `height` x `width` pixels."""
        side = self.image_size // self.patch_size
        table = self.position_embedding(self.position_ids)[0]  # its weight alone may be offloaded
        patches = resize(table[1:].T.reshape(1, -1, side, side), (height // self.patch_size, width // self.patch_size))
        return torch.cat([self._first_position(table), patches.flatten(2)[0].T]).unsqueeze(0)

    def _first_position(self, table: torch.Tensor, with_adapter: bool = True) -> torch.Tensor:
        """`(1, dim)` position of the class token."""
        encoder: Any = self._vision_model[0].encoder
        if with_adapter and getattr(encoder, "active_name", lambda: None)() is not None:
            return table[:1] + self.class_embedding if encoder.doubles_class_embedding else table[:1]
        # The table of a converted checkpoint has the class embedding in it, for its adapter.
        config = getattr(encoder, "base_layer", encoder).model_config.clip_config
        return table[:1] - self.class_embedding if getattr(config, "class_embedding_doubled", False) else table[:1]


__all__ = ["ZegClipVisionEmbeddings"]
