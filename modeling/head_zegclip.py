"""ZegCLIP's decode head: relationship descriptor and text-to-pixel cross-attention (paper sections 3.3 and 3.4)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_zegclip import ZegClipConfig


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Attend over `(batch, heads, tokens, head_dim)`; returns `(batch, tokens, heads, head_dim)` and the weights.

    `attention_mask` is boolean, true where a query may look, and broadcasts to `(batch, heads, queries, keys)`.
    """
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


def multi_head_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """
    Attend with the implementation that the configuration names.

    Args:
        module: Has the `config` and, as `head_dim`, the width of a head.
        query: `(batch, queries, dim)`.
        key: `(batch, keys, dim)`.
        value: `(batch, keys, dim)`.
        attention_mask: Boolean `(batch, 1, queries, keys)`, true where a query may look.
        dropout: Of the attention weights, in training.

    Returns:
        `(batch, queries, dim)`.
    """
    implementation = module.config._attn_implementation
    if attention_mask is not None and implementation != "eager":
        implementation = "sdpa"  # the others take no such mask
    attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
    heads = [states.unflatten(-1, (-1, module.head_dim)).transpose(1, 2) for states in (query, key, value)]
    dropout = dropout if module.training else 0.0
    attended, _ = attend(
        module, *heads, attention_mask, scaling=module.head_dim**-0.5, dropout=dropout, is_causal=False
    )
    return attended.flatten(2)


class ZegClipMaskScores(nn.Module):
    """
    Last layer: the scaled query-key products before softmax, averaged over heads, are the mask logits.

    The sum over heads of per-head products is the product over the whole width, so no per-head map is needed. The
    official layer also has values, an output projection, a feed-forward part and norms; nothing reads them.
    """

    def __init__(self, config: ZegClipConfig):
        super().__init__()
        dim = config.clip_config.projection_dim
        self.num_heads = config.decoder_attention_heads
        self.scaling = (dim // self.num_heads) ** -0.5
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """`queries` `(batch, classes, dim)`, `memory` `(batch, height, width, dim)`: `(batch, classes, patches)`."""
        scores = self.q_proj(queries) @ self.k_proj(memory.flatten(1, 2)).transpose(1, 2)
        return scores * (self.scaling / self.num_heads)


class QueryUpdate(nn.Module):
    """
    Post-norm layer in which each query takes in what it has seen; queries never look at each other.

    So where classes are the queries, the masks of one do not depend on which others are asked for. How a query looks
    is left to the subclass.
    """

    def __init__(self, config: ZegClipConfig):
        super().__init__()
        dim = config.clip_config.projection_dim
        self.dropout = config.decoder_dropout
        self.out_proj = nn.Linear(dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, config.decoder_ffn_dim)
        self.fc2 = nn.Linear(config.decoder_ffn_dim, dim)
        self.norm2 = nn.LayerNorm(dim)

    def update(self, queries: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Both `(batch, classes, dim)`; returns updated queries."""
        queries = self.norm1(queries + F.dropout(self.out_proj(attended), self.dropout, self.training))
        hidden = F.dropout(F.relu(self.fc1(queries)), self.dropout, self.training)
        return self.norm2(queries + F.dropout(self.fc2(hidden), self.dropout, self.training))


class ZegClipDecoderLayer(QueryUpdate):
    """Queries look at the memory by multi-head cross-attention."""

    def __init__(self, config: ZegClipConfig):
        super().__init__(config)
        dim = config.clip_config.projection_dim
        self.config = config
        self.head_dim = dim // config.decoder_attention_heads
        self.is_causal = False
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """`queries` `(batch, queries, dim)`, `memory` `(batch, ..., dim)`; returns updated queries."""
        memory = memory.flatten(1, -2)
        attended = multi_head_attention(
            self, self.q_proj(queries), self.k_proj(memory), self.v_proj(memory), dropout=self.dropout
        )
        return self.update(queries, attended)


class DescriptorHead(nn.Module):
    """What a decode head starts from: class queries that know the picture (relationship descriptor, section 3.3)."""

    def __init__(self, config: ZegClipConfig):
        super().__init__()
        dim = config.clip_config.projection_dim
        self.descriptor = config.descriptor
        self.query_proj = nn.Linear(len(config.descriptor) * dim, dim)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of what the head takes."""
        return self.query_proj.weight.dtype

    def describe(self, image_embeds: torch.Tensor, class_embeds: torch.Tensor) -> torch.Tensor:
        """`image_embeds` `(batch, dim)`, `class_embeds` `(classes, dim)`: queries `(batch, classes, dim)`."""
        product = image_embeds[:, None] * class_embeds
        terms = {
            "product": product,
            "text": class_embeds.expand_as(product),
            "difference": (image_embeds[:, None] - class_embeds).abs(),
        }
        return self.query_proj(torch.cat([terms[name] for name in self.descriptor], dim=-1))


class ZegClipDecodeHead(DescriptorHead):
    """Class queries from the relationship descriptor, refined against the patches, scored against them as masks."""

    layer_class: type[nn.Module] = ZegClipDecoderLayer
    mask_scores_class: type[nn.Module] = ZegClipMaskScores

    def __init__(self, config: ZegClipConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(self.layer_class(config) for _ in range(config.num_decoder_layers - 1))
        self.mask_scores: Any = self.mask_scores_class(config)

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
            patch_embeds: `(batch, height, width, dim)`; the head normalises them.
            class_embeds: `(classes, dim)`, L2-normalised.
            hidden_states: Unused here.

        Returns:
            `(batch, classes, height, width)` mask logits.
        """
        patch_embeds = F.normalize(patch_embeds, dim=-1)
        queries = self.describe(image_embeds, class_embeds)
        for layer in self.layers:
            queries = layer(queries, patch_embeds)
        return self.mask_scores(queries, patch_embeds).unflatten(-1, patch_embeds.shape[1:3])


__all__ = ["ZegClipDecodeHead"]
