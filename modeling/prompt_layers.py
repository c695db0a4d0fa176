"""Wrappers of the encoders: visual prompts, spectral prompts and text prompts."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import CLIPTextModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput

from .model_error import ModelError
from .prompt_config import DeepPromptConfig
from .spectral_prompt import resize_filter, spectral_prompt


class PromptLayer(nn.Module, BaseTunerLayer):
    """Wraps an encoder and contains all that is trained there, one entry per adapter."""

    # One container of plain modules for each piece: `load_adapter` renames the keys of nested ones wrongly.
    adapter_layer_names: tuple[str, ...] = ("deep_prompt_tokens",)
    other_param_names = ("prompt_configs",)
    # Inherited; declared here because a Module's attributes are typed "Tensor | Module".
    active_adapters: list[str]
    base_layer: Any
    set_adapter: Any
    _move_adapter_to_device_of_base_layer: Any
    # Of the subclasses, with different arguments.
    update_layer: Any

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.deep_prompt_tokens = nn.ParameterDict()
        self.prompt_configs: dict[str, DeepPromptConfig] = {}

    @property
    def doubles_class_embedding(self) -> bool:
        """Whether the active adapter adds the class embedding to the class token twice, see [`DeepPromptConfig`]."""
        name = self.active_name()
        return name is not None and self.prompt_configs[name].double_class_embedding

    def active_name(self) -> str | None:
        """Return the name of the adapter that `forward` uses; `None` without one, or if adapters are disabled."""
        if self.disable_adapters or not self.active_adapters:
            return None
        if len(self.active_adapters) > 1:
            raise ModelError(f"Deep prompts cannot be mixed: activate one adapter, not {self.active_adapters}.")
        name = self.active_adapters[0]
        return name if name in self.prompt_configs else None

    def place(self, adapter_name: str, config: DeepPromptConfig) -> None:
        """Finish adding an adapter: store its configuration, move it to the encoder's device, and activate it."""
        self.prompt_configs[adapter_name] = config
        devices = [parameter.device for parameter in self.base_layer.parameters() if parameter.device.type != "meta"]
        if devices:  # none if all weights are still to be loaded, or are offloaded to disk
            self._move_adapter_to_device_of_base_layer(adapter_name, devices[0])
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)


class DeepPromptLayer(PromptLayer):
    """
    Visual and spectral prompts.

    Tokens are inserted between the class token and the patches, so both keep their places at the two ends.
    """

    adapter_layer_names = ("deep_prompt_tokens", "deep_prompt_proj", "deep_prompt_norm", "deep_prompt_filter")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: DeepPromptConfig):
        super().__init__(base_layer)
        self.deep_prompt_proj = nn.ModuleDict()
        self.deep_prompt_norm = nn.ModuleDict()
        self.deep_prompt_filter = nn.ParameterDict()
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: DeepPromptConfig) -> None:
        """Add an adapter, initialised as the official code does."""
        vision_config = self.base_layer.config
        width = vision_config.hidden_size
        num_prompted = len(config.prompted_layers(len(self.base_layer.layers)))
        filtered = config.filtered_layers(len(self.base_layer.layers))
        if num_prompted:
            bound = math.sqrt(6 / (3 * vision_config.patch_size**2 + width))
            tokens = torch.empty(num_prompted, config.num_tokens, width).uniform_(-bound, bound)
            projection = nn.Linear(width, width)
            nn.init.kaiming_normal_(projection.weight, mode="fan_out")
            self.deep_prompt_tokens[adapter_name] = nn.Parameter(tokens)
            self.deep_prompt_proj[adapter_name] = projection
            if config.num_deep_layers != 0:
                self.deep_prompt_norm[adapter_name] = nn.LayerNorm(width, eps=1e-6)
        if filtered:
            # Stored, so that the adapter also fits an encoder that is configured for another size.
            side = config.spectral_grid_size = (
                config.spectral_grid_size or vision_config.image_size // vision_config.patch_size
            )
            # Real and imaginary part are separate: optimisers, half precision and safetensors support real numbers.
            # Trained, as in the paper; the official helper freezes parameters without "prompt" in their names.
            self.deep_prompt_filter[adapter_name] = nn.Parameter(0.02 * torch.randn(side, side // 2 + 1, width, 2))
        self.place(adapter_name, config)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        patch_grid: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """
        Run the encoder with the active adapter's prompts.

        Args:
            inputs_embeds: `(batch, 1 + patches, width)`.
            attention_mask: Passed on to the layers; `None` for a vision tower.
            patch_grid: Rows and columns of patches, for the spectral prompt; `None`: those of `image_size`.

        Returns:
            `BaseModelOutput` whose `last_hidden_state` has the shape of `inputs_embeds`, after the prompt norm.
        """
        name = self.active_name()
        if name is None:
            if patch_grid is not None:  # none comes from a plain CLIP, whose encoder takes none
                kwargs["patch_grid"] = patch_grid
            return self.base_layer(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
        config = self.prompt_configs[name]
        layers = self.base_layer.layers
        prompted = config.prompted_layers(len(layers))
        carried = config.num_deep_layers == 0
        if prompted:
            tokens = self.deep_prompt_proj[name](self.deep_prompt_tokens[name])
        filtered = config.filtered_layers(len(layers))
        if filtered:
            grid = patch_grid or self._configured_grid(inputs_embeds.shape[1] - 1)
            weight = resize_filter(self.deep_prompt_filter[name], grid)

        states, count = inputs_embeds, 0
        for index, layer in enumerate(layers):
            if index in filtered or index in prompted or (count and not carried):
                class_token, prompt, patches = states.split([1, count, states.shape[1] - 1 - count], dim=1)
                if index in filtered:
                    patches = patches + spectral_prompt(class_token, patches, weight, grid).to(patches)
                if index in prompted:
                    # `len` would fix the batch where a graph is exported.
                    prompt = tokens[index - prompted.start].expand(states.shape[0], -1, -1).to(states)
                    prompt = F.dropout(prompt, config.dropout, self.training)
                elif not carried:
                    prompt = prompt[:, :0]
                states, count = torch.cat([class_token, prompt, patches], dim=1), prompt.shape[1]
            states = layer(states, attention_mask, **kwargs)
        states = torch.cat([states[:, :1], states[:, 1 + count :]], dim=1)
        if name in self.deep_prompt_norm:
            norm: Any = self.deep_prompt_norm[name]
            states = norm(states.to(norm.weight)).to(states)
        return BaseModelOutput(last_hidden_state=states)

    def _configured_grid(self, num_patches: int) -> tuple[int, int]:
        side = self.base_layer.config.image_size // self.base_layer.config.patch_size
        if num_patches != side * side:
            raise ModelError(
                f"A spectral prompt needs the grid of the {num_patches} patches, which is not {side}x{side} as the "
                "configured image_size says: pass patch_grid=(rows, columns)."
            )
        return side, side


class TextPromptLayer(PromptLayer):
    """
    Text prompts (LDVC section 3.2): in every layer they replace the hidden states of a template before each name.

    Because the template is part of the input, positions, causal mask and padding are CLIP's own.
    """

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: DeepPromptConfig, template_states: torch.Tensor
    ):
        super().__init__(base_layer)
        self.update_layer(adapter_name, config, template_states)

    def update_layer(self, adapter_name: str, config: DeepPromptConfig, template_states: torch.Tensor) -> None:
        """Add an adapter; `template_states` `(layers, tokens, width)` are the inputs of each frozen layer."""
        tokens = template_states if config.text_prompts == "whole" else template_states[:, 1:-1]
        if config.text_prompt_init == "random":
            tokens = 0.02 * torch.randn_like(tokens)
        self.deep_prompt_tokens[adapter_name] = nn.Parameter(tokens.clone())
        self.place(adapter_name, config)

    def make_room(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Check that each name follows the template, and insert a token if there are more prompts than tokens before it.

        Args:
            input_ids: `(names, length)`: the template, the name, the end token and padding.
            attention_mask: Same shape.

        Returns:
            Both, with one more token before the names if the prompts also replace the template's end token. Without an
            active adapter they are unchanged.

        Raises:
            ModelError: If a row does not begin with the template, or becomes too long for the text tower.
        """
        name = self.active_name()
        if name is None:
            return input_ids, attention_mask
        config = self.prompt_configs[name]
        ids = torch.tensor(config.text_prompt_ids, device=input_ids.device)
        words = len(ids) - 1  # with the start token
        too_short = input_ids.shape[1] <= words
        if not torch.compiler.is_compiling() and (too_short or (input_ids[:, :words] != ids[:words]).any()):
            raise ModelError(
                "This adapter's text prompts replace one template, with which every row of input_ids must begin: "
                "use the processor that is saved with the adapter, or the prompt_templates that it was trained with."
            )
        if config.text_prompts == "words":
            return input_ids, attention_mask
        # Which token is repeated does not matter: a prompt replaces it.
        input_ids = torch.cat([input_ids[:, :words], input_ids[:, words - 1 :]], dim=1)
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask[:, :words], attention_mask[:, words - 1 :]], dim=1)
        limit = self.base_layer.config.max_position_embeddings
        if input_ids.shape[1] > limit:
            longest = int((input_ids == ids[-1]).int().argmax(dim=1).max()) + 1
            if longest > limit:
                row = int((input_ids == ids[-1]).int().argmax(dim=1).argmax()) + 1
                raise ModelError(
                    f"Row {row} of input_ids is too long: with its text prompts it has {longest} tokens, but at most "
                    f"{limit} are allowed."
                )
            # The last column is padding in every row.
            input_ids = input_ids[:, :limit]
            attention_mask = None if attention_mask is None else attention_mask[:, :limit]
        return input_ids, attention_mask

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        room_made: bool = False,
        with_prompts: bool = True,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """
        Run the encoder with the active adapter's prompts.

        Args:
            inputs_embeds: `(names, length, width)`.
            attention_mask: Passed on to the layers.
            room_made: Whether `make_room` has checked the input.
            with_prompts: Whether to use them.

        Returns:
            `BaseModelOutput` whose `last_hidden_state` has the shape of `inputs_embeds`.
        """
        name = self.active_name() if with_prompts else None
        if name is None:
            return self.base_layer(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
        if not room_made:
            raise ModelError("Encode class names with get_class_embeds, which makes room for the text prompts.")
        tokens = self.deep_prompt_tokens[name]
        start = 0 if self.prompt_configs[name].text_prompts == "whole" else 1
        states = inputs_embeds
        for layer, prompt in zip(self.base_layer.layers, tokens, strict=True):
            prompt = prompt.expand(states.shape[0], -1, -1).to(states)
            states = torch.cat([states[:, :start], prompt, states[:, start + prompt.shape[1] :]], dim=1)
            states = layer(states, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=states)


@torch.no_grad()
def template_states(text_model: CLIPTextModel, config: DeepPromptConfig) -> torch.Tensor:
    """Return the template's hidden states `(layers, tokens, width)` that enter each layer of the frozen text tower."""
    encoder: Any = text_model.encoder
    frozen = encoder.base_layer if isinstance(encoder, PromptLayer) else encoder
    embeddings: Any = text_model.embeddings
    table = embeddings.token_embedding.weight
    if max(config.text_prompt_ids or ()) >= len(table):
        raise ModelError(
            f"text_prompt_ids={config.text_prompt_ids} are not of this CLIP, which has {len(table)} tokens."
        )
    # If weights are offloaded to disk, accelerate loads them and moves the inputs to their device.
    fetched = table.is_meta and hasattr(embeddings, "_hf_hook")
    states = embeddings(input_ids=torch.tensor([config.text_prompt_ids], device="cpu" if fetched else table.device))
    implementation = frozen.config._attn_implementation
    # Other implementations may need a GPU or half precision, and the model may still be moved there.
    frozen.config._attn_implementation = "eager"
    try:
        mask = create_causal_mask(frozen.config, inputs_embeds=states, attention_mask=None, past_key_values=None)
        entering = []
        for layer in frozen.layers:
            entering.append(states[0].float())
            states = layer(states, mask, is_causal=True)
    finally:
        frozen.config._attn_implementation = implementation
    return torch.stack([states.to(entering[0].device) for states in entering])


__all__ = ["DeepPromptLayer", "PromptLayer", "TextPromptLayer", "template_states"]
