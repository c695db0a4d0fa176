"""Training-free dense CLIP: other attention in the last layer of the vision tower, with CLIP's own weights."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoder,
    CLIPEncoderLayer,
    eager_attention_forward,
)

# Methods whose last layer has neither residual connection nor MLP.
ATTENTION_ALONE = ("clearclip", "naclip")


def neighbourhood(grid: tuple[int, int], sigma: float, like: torch.Tensor) -> torch.Tensor:
    """
    NACLIP's term of the attention: `exp(-d^2 / (2 sigma^2))` for two patches at distance `d`, 0 for the class token.

    Args:
        grid: Rows and columns of patches.
        sigma: Standard deviation, in patches.
        like: Tensor whose device and dtype it gets.

    Returns:
        `(1, 1, 1 + patches, 1 + patches)`.
    """
    # The Gaussian of a distance is the product of those along rows and columns.
    steps = [torch.arange(side, device=like.device, dtype=torch.float32) for side in grid]
    rows, columns = (torch.exp(-((step[:, None] - step) ** 2) / (2 * sigma**2)) for step in steps)
    patches = (rows[:, None, :, None] * columns[None, :, None, :]).flatten(2).flatten(0, 1)
    return F.pad(patches, (1, 0, 1, 0)).to(like.dtype)[None, None]


class DenseAttention(CLIPAttention):
    """CLIP's attention, also in the ways of MaskCLIP, SCLIP, ClearCLIP and NACLIP."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        method: str = "plain",
        neighbours: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Attend by one of the methods.

        Args:
            hidden_states: `(batch, 1 + patches, width)`.
            attention_mask: For CLIP's own attention; a vision tower has none.
            method: As `dense_attention` of [`ZegClipConfig`].
            neighbours: For `"naclip"`: [`neighbourhood`].
            **kwargs: Those of the attention function.

        Returns:
            `(batch, 1 + patches, width)`, and the attention's weights if the implementation gives them.
        """
        if method == "plain":
            return super().forward(hidden_states, attention_mask, **kwargs)
        values = self.v_proj(hidden_states)
        if method == "maskclip":  # each token attends to itself alone
            return self.out_proj(values), None
        compared = [self.q_proj(hidden_states)] if method in ("sclip", "clearclip") else []
        compared += [self.k_proj(hidden_states)] if method in ("sclip", "naclip") else []
        implementation = self.config._attn_implementation
        if neighbours is not None and implementation != "eager":
            implementation = "sdpa"  # Others take no mask of numbers.
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        values = self._heads(values)
        outputs = [
            attend(self, heads, heads, values, neighbours, scaling=self.scale, dropout=0.0, **kwargs)
            for heads in map(self._heads, compared)
        ]
        states = torch.stack([states for states, _ in outputs]).sum(dim=0)
        return self.out_proj(states.flatten(2)), outputs[-1][1]

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class DenseEncoderLayer(CLIPEncoderLayer):
    """The last layer of CLIP's vision tower, with [`DenseAttention`]."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        method: str = "plain",
        neighbours: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """`(batch, 1 + patches, width)` to the same shape, see [`DenseAttention`]."""
        if method == "plain":
            return super().forward(hidden_states, attention_mask, **kwargs)
        normed = self.layer_norm1(hidden_states)
        attended, _ = self.self_attn(hidden_states=normed, method=method, neighbours=neighbours, **kwargs)
        if method in ATTENTION_ALONE:
            return attended
        states = hidden_states + attended
        return states + self.mlp(self.layer_norm2(states))


class DenseEncoder(CLIPEncoder):
    """
    CLIP's vision encoder, whose last layer attends as the configuration says at the time.

    Prompts take its layers one by one, and the last one then as CLIP has it.

    Args:
        encoder: The tower's own, whose layers it takes over.
        config: The model's [`ZegClipConfig`].
    """

    def __init__(self, encoder: CLIPEncoder, config: PreTrainedConfig):
        nn.Module.__init__(self)  # the parent's would draw new layers
        self.config = encoder.config
        self.layers = encoder.layers
        # Nothing but the methods differ: names, initialisation and random numbers stay CLIP's.
        last: Any = self.layers[-1]
        last.__class__ = DenseEncoderLayer
        last.self_attn.__class__ = DenseAttention
        self.gradient_checkpointing = False
        self.model_config = config

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        patch_grid: tuple[int, int] | None = None,
        dense_attention: str | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """
        As the parent's; without `patch_grid`, the rows and columns of patches, the last layer attends as CLIP's.

        So CLIP's own methods, which do not give it, stay CLIP's. `dense_attention` replaces the configuration's.
        """
        states = inputs_embeds
        for layer in self.layers[:-1]:
            states = layer(states, attention_mask, **kwargs)
        if patch_grid is not None:
            kwargs["method"] = dense_attention or self.model_config.dense_attention
            if kwargs["method"] == "naclip":
                kwargs["neighbours"] = neighbourhood(patch_grid, self.model_config.naclip_sigma, states)
        return BaseModelOutput(last_hidden_state=self.layers[-1](states, attention_mask, **kwargs))


__all__ = ["DenseEncoder"]
