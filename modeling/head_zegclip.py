"""ZegCLIP's decode head: relationship descriptor and text-to-pixel cross-attention (paper sections 3.3 and 3.4)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward

from .head_base import DecodeHead
from .model_error import ModelError

DESCRIPTOR_TERMS = {"product", "text", "difference"}
# The identity start's logit is 14 (cosine - 0.4): for CLIPs whose patches have a cosine of about 0.7 with their own
# name and of 0.0 to 0.25 with others, as one had whose pretraining tied names to patches.
IDENTITY_SLOPE = 14.0
IDENTITY_THRESHOLD = 0.4


def multi_head_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """
    Multi-head attention with the implementation set in the configuration.

    Args:
        module: Has the `config` and, as `head_dim`, the width of a head.
        query: `(batch, queries, dim)`.
        key: `(batch, keys, dim)`.
        value: `(batch, keys, dim)`.
        attention_mask: Boolean `(batch, 1, queries, keys)`, true where a query may attend.
        dropout: Of the attention weights, in training.

    Returns:
        `(batch, queries, dim)`.
    """
    implementation = module.config._attn_implementation
    dropout = dropout if module.training else 0.0
    if implementation == "flex_attention" and dropout:
        implementation = "sdpa"  # flex_attention has none
    if attention_mask is not None and implementation != "eager":
        implementation = "sdpa"  # the others take no such mask
    elif attention_mask is not None:  # is added to the scores
        attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, -torch.inf)
    attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
    heads = [states.unflatten(-1, (-1, module.head_dim)).transpose(1, 2) for states in (query, key, value)]
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

    def __init__(self, config: PreTrainedConfig):
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
    Post-norm layer that updates each query with what it attended to; the attention is left to the subclass.

    There is no attention between queries: where classes are the queries, the mask of one is independent of the others.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        dim = config.clip_config.projection_dim
        self.config = config
        self.out_proj = nn.Linear(dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, config.decoder_ffn_dim)
        self.fc2 = nn.Linear(config.decoder_ffn_dim, dim)
        self.norm2 = nn.LayerNorm(dim)

    def update(self, queries: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Both `(batch, classes, dim)`; returns updated queries."""
        dropout = self.config.decoder_dropout
        queries = self.norm1(queries + F.dropout(self.out_proj(attended), dropout, self.training))
        hidden = F.dropout(F.relu(self.fc1(queries)), dropout, self.training)
        return self.norm2(queries + F.dropout(self.fc2(hidden), dropout, self.training))


class ZegClipDecoderLayer(QueryUpdate):
    """Multi-head cross-attention from the queries to the memory."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        dim = config.clip_config.projection_dim
        self.head_dim = dim // config.decoder_attention_heads
        self.is_causal = False
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """`queries` `(batch, queries, dim)`, `memory` `(batch, ..., dim)`; returns updated queries."""
        memory = memory.flatten(1, -2)
        dropout = self.config.decoder_dropout
        attended = multi_head_attention(
            self, self.q_proj(queries), self.k_proj(memory), self.v_proj(memory), dropout=dropout
        )
        return self.update(queries, attended)


class DescriptorHead(DecodeHead):
    """Base of heads with class queries that depend on the picture (relationship descriptor, section 3.3)."""

    config_fields = (
        *DecodeHead.config_fields,
        "descriptor",
        "num_decoder_layers",
        "decoder_attention_heads",
        "decoder_ffn_dim",
    )
    initialisations: tuple[str, ...] = ("default",)
    """Supported values of `decode_head_init`."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        dim = config.clip_config.projection_dim
        self.descriptor = config.descriptor
        self.query_proj = nn.Linear(len(config.descriptor) * dim, dim)

    @classmethod
    def validate(cls, config: PreTrainedConfig) -> None:
        """Check the number of attention heads, the descriptor and the initialisation."""
        width, heads = config.clip_config.projection_dim, config.decoder_attention_heads
        if width % heads:
            raise ModelError(f"decoder_attention_heads={heads} does not divide the CLIP's projection_dim={width}.")
        terms = config.descriptor
        if not terms or len(set(terms)) != len(terms) or not set(terms) <= DESCRIPTOR_TERMS:
            raise ModelError(f'descriptor must list "product", "text", "difference" or some of them, not {terms}.')
        if config.decode_head_init not in cls.initialisations:
            raise ModelError(
                f'decode_head_type="{config.decode_head_type}" has no decode_head_init="{config.decode_head_init}".'
            )

    def describe(self, image_embeds: torch.Tensor, class_embeds: torch.Tensor) -> torch.Tensor:
        """`image_embeds` `(batch, dim)`, `class_embeds` `(classes, dim)`: queries `(batch, classes, dim)`."""
        pictures = image_embeds[:, None]
        terms: dict[str, Callable[[], torch.Tensor]] = {
            "product": lambda: pictures * class_embeds,
            "text": lambda: class_embeds.expand(pictures.shape[0], -1, -1),  # `len` would fix it in a graph
            "difference": lambda: (pictures - class_embeds).abs(),
        }
        return self.query_proj(torch.cat([terms[name]() for name in self.descriptor], dim=-1))


class ZegClipDecodeHead(DescriptorHead):
    """Class queries from the relationship descriptor, refined against the patches, scored against them as masks."""

    initialisations: tuple[str, ...] = ("default", "identity")
    layer_class: type[nn.Module] = ZegClipDecoderLayer
    mask_scores_class: type[nn.Module] = ZegClipMaskScores
    _no_split_modules: tuple[str, ...] = ("ZegClipDecoderLayer",)

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(self.layer_class(config) for _ in range(config.num_decoder_layers - 1))
        self.mask_scores: Any = self.mask_scores_class(config)

    @classmethod
    def validate(cls, config: PreTrainedConfig) -> None:
        """As the parent's, and that the identity start has class embeddings to start from."""
        super().validate(config)
        if config.decode_head_init == "identity" and "text" not in config.descriptor:
            raise ModelError('decode_head_init="identity" starts from the class embeddings: descriptor needs "text".')

    def init_weights(self) -> None:
        """Start as `decode_head_init` says."""
        if self.config.decode_head_init == "identity":
            self._init_as_cosine_classifier()
        else:
            self._init_layers_alike()

    def _init_layers_alike(self) -> None:
        """Give every layer the values of the first: the official layers are deep copies of one."""
        if not len(self.layers):
            return
        first = dict(self.layers[0].named_parameters())
        for layer in (*self.layers[1:], self.mask_scores):
            for name, parameter in layer.named_parameters():
                init.copy_(parameter, first[name])

    def _init_as_cosine_classifier(self) -> None:
        """Start as a classifier by the cosine of patch and class embedding, with residual branches closed."""
        dim = self.query_proj.out_features
        weight = torch.zeros_like(self.query_proj.weight)
        text = self.descriptor.index("text")
        weight[:, text * dim : (text + 1) * dim] = torch.eye(dim)
        init.copy_(self.query_proj.weight, weight)
        init.zeros_(self.query_proj.bias)
        for layer in self.layers:
            for branch in (layer.out_proj, layer.fc2):
                init.zeros_(branch.weight)
                init.zeros_(branch.bias)
        scores = self.mask_scores
        unit = scores.num_heads / scores.scaling  # product of query and key that makes a logit of 1
        # The layers' norms bring queries to length sqrt(dim) and mean 0. So the constant direction is free to carry
        # the threshold: both biases point along it, and both weights leave it out.
        constant = torch.full((dim,), dim**-0.5)
        query_norm = math.sqrt(dim) if len(self.layers) else 1.0
        projection = torch.eye(dim) - torch.outer(constant, constant)
        gain = math.sqrt(IDENTITY_SLOPE * unit / query_norm)
        offset = math.sqrt(IDENTITY_SLOPE * IDENTITY_THRESHOLD * unit)
        for linear, sign in ((scores.q_proj, 1.0), (scores.k_proj, -1.0)):
            init.copy_(linear.weight, gain * projection)
            init.copy_(linear.bias, sign * offset * constant)

    def forward(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor,
        class_embeds: torch.Tensor,
        hidden_states: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """As [`DecodeHead.forward`]; patches are normalised."""
        patch_embeds = F.normalize(patch_embeds, dim=-1)
        queries = self.describe(image_embeds, class_embeds)
        for layer in self.layers:
            queries = layer(queries, patch_embeds)
        return self.mask_scores(queries, patch_embeds).unflatten(-1, patch_embeds.shape[1:3])


__all__ = ["DescriptorHead", "QueryUpdate", "ZegClipDecodeHead", "ZegClipDecoderLayer", "multi_head_attention"]
