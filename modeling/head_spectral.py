"""SPT-SEG's spectral guided decode head: patches split into high and low frequencies before queries see them."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .head_zegclip import QueryUpdate, ZegClipDecodeHead, multi_head_attention
from .model_error import ModelError

# In standard deviations of a normal draw; with 2, none of 400 gates was shut, with 1.5, one was.
GATE_OPENING = 2.0


def crop(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Cut `(batch, rows, columns, dim)` to the first `height` rows and `width` columns."""
    return maps[:, :height, :width]


class SpectralMixing(nn.Module):
    """
    Mixes patches within windows (high frequencies) and with window means (low frequencies), then gates them.

    The mixing is LITv2's HiLo attention (arXiv 2205.13213); the gate is the cosine of a patch with a learned vector.
    The official high path also has an output projection, which is never applied.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        dim = config.clip_config.projection_dim
        self.config = config
        self.window_size = config.decoder_window_size
        self.head_dim = dim // config.decoder_attention_heads
        self.low_dim = config.decoder_low_frequency_heads * self.head_dim
        self.high_dim = dim - self.low_dim
        self.is_causal = False
        self.high_qkv = nn.Linear(dim, 3 * self.high_dim, bias=False)
        self.low_q = nn.Linear(dim, self.low_dim, bias=False)
        self.low_kv = nn.Linear(dim, 2 * self.low_dim, bias=False)
        self.low_proj = nn.Linear(self.low_dim, self.low_dim)
        self.gate = nn.Parameter(torch.empty(dim))
        self.transform = nn.Linear(dim, dim, bias=False)

    def init_weights(self) -> None:
        """
        Draw the gate from a normal distribution, but fix its component along what all mixed patches share.

        In the official code the sign of this component is random, and half of all gates shut out every patch: what
        patches have in common (first of all the bias of the low frequencies) outweighs their differences. Then all
        logits and gradients are exactly zero, and training never leaves this state.
        """
        gate = torch.randn_like(self.gate)
        common = torch.zeros_like(gate)
        common[self.high_dim :] = F.normalize(self.low_proj.bias, dim=0)
        init.copy_(self.gate, gate + (GATE_OPENING - gate @ common) * common)
        init.copy_(self.transform.weight, torch.eye(len(gate)))

    def _mix_windows(self, patches: torch.Tensor) -> torch.Tensor:
        """Self-attention within each window: `(batch, height, width, dim)` to `(batch, height, width, high_dim)`."""
        size = self.window_size
        rows, columns = (side // size for side in patches.shape[1:3])
        # (batch, rows, size, columns, size, dim) -> (batch * rows * columns, size * size, dim)
        windows = patches.unflatten(2, (columns, size)).unflatten(1, (rows, size)).transpose(2, 3)
        mixed = multi_head_attention(self, *self.high_qkv(windows.flatten(0, 2).flatten(1, 2)).chunk(3, dim=-1))
        mixed = mixed.unflatten(1, (size, size)).unflatten(0, (patches.shape[0], rows, columns))
        return mixed.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def forward(self, patch_embeds: torch.Tensor) -> torch.Tensor:
        """`(batch, height, width, dim)` to `(batch, height * width, dim)`."""
        height, width = patch_embeds.shape[1:3]
        size = self.window_size
        rows, columns = (height + size - 1) // size, (width + size - 1) // size
        # The last windows are padded with zeros, which are not masked: they take part as keys and in the means.
        padded = F.pad(patch_embeds, (0, 0, 0, columns * size - width, 0, rows * size - height))
        high = self._mix_windows(padded)
        high = crop(high, height, width).flatten(1, 2)
        means = F.avg_pool2d(padded.permute(0, 3, 1, 2), size).flatten(2).transpose(1, 2)
        low = multi_head_attention(self, self.low_q(patch_embeds.flatten(1, 2)), *self.low_kv(means).chunk(2, dim=-1))
        mixed = torch.cat([high, self.low_proj(low)], dim=-1)
        cosine = F.normalize(mixed, dim=-1) @ F.normalize(self.gate, dim=0).to(mixed.dtype)
        # Patches that point away from the gate become exactly zero.
        return self.transform(cosine.clamp(0, 1).unsqueeze(-1) * mixed)


class SpectralMaskScores(nn.Module):
    """
    Last layer: the products of queries and mixed patches are the mask logits.

    The official layer goes on to update its queries; nothing reads them.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.mixing = SpectralMixing(config)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """`queries` `(batch, classes, dim)`, `memory` `(batch, height, width, dim)`: `(batch, classes, patches)`."""
        return queries @ self.mixing(memory).transpose(1, 2)


class SpectralDecoderLayer(QueryUpdate):
    """Cross-attention from the queries to the mixed patches, with a single head and without scaling."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.mixing = SpectralMixing(config)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """`queries` `(batch, classes, dim)`, `memory` `(batch, height, width, dim)`; returns updated queries."""
        mixed = self.mixing(memory)
        weights = (queries @ mixed.transpose(1, 2)).softmax(dim=-1, dtype=torch.float32).to(mixed.dtype)
        return self.update(queries, F.dropout(weights, self.config.decoder_dropout, self.training) @ mixed)


class SpectralDecodeHead(ZegClipDecodeHead):
    """ZegCLIP's decode head with spectral guided layers (SPT-SEG's SGD)."""

    config_fields = (*ZegClipDecodeHead.config_fields, "decoder_window_size", "decoder_low_frequency_heads")
    initialisations = ("default",)
    layer_class = SpectralDecoderLayer
    mask_scores_class = SpectralMaskScores
    _no_split_modules = ("SpectralDecoderLayer", "SpectralMaskScores")

    @classmethod
    def validate(cls, config: PreTrainedConfig) -> None:
        """As the parent's, and that both kinds of frequencies have attention heads."""
        super().validate(config)
        heads, low_heads = config.decoder_attention_heads, config.decoder_low_frequency_heads
        if not 0 < low_heads < heads:
            raise ModelError(
                f"decoder_low_frequency_heads={low_heads} must be at least 1 and less than "
                f"decoder_attention_heads={heads}."
            )


__all__ = ["SpectralDecodeHead"]
