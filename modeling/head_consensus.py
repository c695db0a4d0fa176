"""LDVC's local-consensus decode head: patches attend to similar windows and to class queries (section 3.3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .head_zegclip import DescriptorHead, ZegClipDecoderLayer, multi_head_attention
from .model_error import ModelError


def routed_mask(patches: torch.Tensor, window_size: int, top_k: int) -> torch.Tensor:
    """
    Return which patches attend to each other: those of a window to those of the most similar windows (eqs. 8 and 10).

    The similarity of two windows is the product of their means. Windows at the right and lower edge may be smaller:
    nothing is padded.

    Args:
        patches: `(batch, height, width, dim)`.
        window_size: Side of a window in patches.
        top_k: Windows to attend to, all if there are fewer; usually one of them is the window itself.

    Returns:
        Boolean `(batch, 1, patches, patches)`, queries first.
    """
    height, width = patches.shape[1:3]
    # No gradient flows through the choice; half precision would choose other windows.
    maps = patches.detach().permute(0, 3, 1, 2).float()
    means = F.avg_pool2d(maps, window_size, ceil_mode=True, count_include_pad=False)
    columns = means.shape[-1]
    means = means.flatten(2)
    with torch.autocast("cpu" if patches.is_meta else patches.device.type, enabled=False):
        similarity = means.mT @ means
    allowed = most_similar(similarity, top_k)
    rows = torch.arange(height, device=patches.device) // window_size
    window = (rows[:, None] * columns + torch.arange(width, device=patches.device) // window_size).flatten()
    return allowed[:, window][:, None, :, window]


def most_similar(similarity: torch.Tensor, top_k: int) -> torch.Tensor:
    """From `(batch, windows, windows)`, mark the `top_k` largest of each row, or all if there are fewer: bool."""
    nearest = similarity.topk(min(top_k, similarity.shape[-1]), dim=-1).indices
    return torch.zeros_like(similarity, dtype=torch.bool).scatter(-1, nearest, True)


class LocalConsensusAttention(nn.Module):
    """Multi-head self-attention among the patches of similar windows (eqs. 8 to 12; routing as BiFormer's)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        dim = config.clip_config.projection_dim
        self.config = config
        self.head_dim = dim // config.decoder_attention_heads
        self.window_size = config.decoder_window_size
        self.top_k = config.decoder_top_k
        self.is_causal = False
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """`(batch, height, width, dim)` to the same shape."""
        mask = routed_mask(patches, self.window_size, self.top_k)
        query, key, value = self.qkv(patches.flatten(1, 2)).chunk(3, dim=-1)
        attended = multi_head_attention(self, query, key, value, mask, dropout=self.config.decoder_dropout)
        return self.out_proj(attended).unflatten(1, patches.shape[1:3])


class ConsensusDecoderLayer(nn.Module):
    """
    Patches take in features of the vision tower (eq. 4), each other (eq. 5), and the class queries (eqs. 6 and 7).

    The last part is ZegCLIP's layer with the roles exchanged: patches are the queries, classes the memory.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        dim = config.clip_config.projection_dim
        self.config = config
        self.fuse = nn.Linear(config.clip_config.vision_config.hidden_size, dim)  # the paper's 1x1 convolution
        self.self_attention = LocalConsensusAttention(config) if config.decoder_top_k else None
        self.self_norm = nn.LayerNorm(dim) if config.decoder_top_k else nn.Identity()
        self.text_layer = ZegClipDecoderLayer(config)

    def forward(self, patches: torch.Tensor, hidden_state: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """
        Update the patches.

        Args:
            patches: `(batch, height, width, dim)`.
            hidden_state: `(batch, height, width, vision width)` of the vision tower.
            queries: `(batch, classes, dim)`.
        """
        patches = patches + self.fuse(hidden_state)
        if self.self_attention is not None:
            consensus = F.dropout(self.self_attention(patches), self.config.decoder_dropout, self.training)
            patches = self.self_norm(patches + consensus)
        return self.text_layer(patches.flatten(1, 2), queries).unflatten(1, patches.shape[1:3])


class ConsensusDecodeHead(DescriptorHead):
    """
    Patches, refined layer by layer, are matched with the class queries by a plain product (eqs. 3 to 13).

    Patches attend to all class queries at once: the mask of a class depends on which other classes are given.
    """

    config_fields = (*DescriptorHead.config_fields, "decoder_window_size", "decoder_top_k", "out_indices")
    # As a whole: each layer uses the queries and another hidden state.
    _no_split_modules = ("ConsensusDecodeHead",)

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.out_indices = config.out_indices
        self.layers = nn.ModuleList(ConsensusDecoderLayer(config) for _ in range(config.num_decoder_layers))

    @classmethod
    def validate(cls, config: PreTrainedConfig) -> None:
        """As the parent's, and that each layer has a layer of the vision tower in `out_indices`."""
        super().validate(config)
        depth = config.clip_config.vision_config.num_hidden_layers
        if len(config.out_indices) != config.num_decoder_layers:
            raise ModelError(
                f"out_indices={config.out_indices} must name one layer of the vision tower for each of the "
                f"num_decoder_layers={config.num_decoder_layers}."
            )
        for index in config.out_indices:
            if not 0 <= index < depth:
                raise ModelError(f"out_indices names layer {index}, but the vision tower has 0 to {depth - 1}.")

    def init_weights(self) -> None:
        """Draw all weights from a narrow normal distribution, without biases (the usual start of transformers)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.trunc_normal_(module.weight, std=0.02)
                init.zeros_(module.bias)

    def forward(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor,
        class_embeds: torch.Tensor,
        hidden_states: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """As [`DecodeHead.forward`]; patches stay as they are: normalised, the hidden states would drown them."""
        queries = self.describe(image_embeds, class_embeds)
        patches = patch_embeds
        for layer, hidden_state in zip(self.layers, hidden_states, strict=True):
            patches = layer(patches, hidden_state, queries)
        return torch.einsum("bhwd,bnd->bnhw", patches, queries)


__all__ = ["ConsensusDecodeHead"]
