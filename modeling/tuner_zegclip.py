"""Prompt tuning as a PEFT method: learned tokens in every layer of frozen encoders, and spectral prompts."""

import enum
import json
import math
import os
from dataclasses import dataclass, field
from typing import Any

import peft.mapping
import torch
import torch.nn.functional as F
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import CLIPTextModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)

from .spectral_prompt_zegclip import resize_filter, spectral_prompt

# What decides the shape and the meaning of a decode head's weights: of any head's, and of one kind's.
HEAD_FIELDS = (
    "decode_head_type",
    "descriptor",
    "num_decoder_layers",
    "decoder_attention_heads",
    "decoder_ffn_dim",
)
OWN_HEAD_FIELDS = {
    "spectral": ("decoder_window_size", "decoder_low_frequency_heads"),
    "consensus": ("decoder_window_size", "decoder_top_k", "out_indices"),
}
DOWNLOAD_ARGUMENTS = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}


def head_fields(decode_head_type: str) -> tuple[str, ...]:
    """Return the fields of the configuration in which two decode heads of a kind must agree."""
    return HEAD_FIELDS + OWN_HEAD_FIELDS.get(decode_head_type, ())


class DeepPromptPeftType(str, enum.Enum):
    """PEFT's own enumeration is closed, so the method brings its own member."""

    DEEP_PROMPT = "DEEP_PROMPT"


@dataclass
class DeepPromptConfig(PeftConfig):
    """
    Configuration of deep prompts (ZegCLIP section 3.2; VPT-deep), spectral prompts (SPT-SEG) and text prompts (LDVC).

    Args:
        num_tokens: Visual prompt tokens per layer; ZegCLIP uses 10 for VOC and 100 for COCO-Stuff. 0: none.
        num_deep_layers: How many layers after the first get prompts of their own, where each layer's prompt outputs
            are discarded and replaced. `None`: all. `n > 0`: the first `n`; later layers see no prompts. `0`: the
            first layer's prompts are carried through all layers ("shallow"; no final norm). `-n`: only the last `n`
            layers have prompts.
        dropout: Dropout on the projected tokens, drawn for each picture.
        spectral_prompt: Whether patches also get a spectral prompt, one filter shared by all `spectral_layers`.
        spectral_layers: Indices of the layers whose incoming patches get it.
        spectral_grid_size: Rows and columns of patches that the filter is made for, those of the training crops; it
            is resized for others. `None`: `image_size // patch_size` of the first encoder it is used for, filled in.
        text_prompts: What the text tower's prompts, one table per layer, stand for. `None`: the text tower is frozen.
            `"whole"`: all tokens of the template, start and end included, with the name behind them (LDVC's six tokens
            for "a photo of a"). `"words"`: the template's words alone, between the frozen start token and the name;
            from the template's own states this starts exactly at the frozen embeddings.
        text_prompt_ids: Token ids of the template, start and end included, as `ZegClipProcessor.text_prompt_ids` gives
            them. The number of prompts follows from it.
        text_prompt_init: `"template"`: prompts start as the states with which `text_prompt_ids` enter each layer of
            the frozen text tower. `"random"`: from a normal distribution of deviation 0.02.
        target_modules: The encoders to wrap, by name or regular expression. Found by default.
        modules_to_save: Trained and saved beside the prompts. Defaults to the decode head.
        model_config: Filled in: the decode head's configuration, so that the adapter also loads onto a plain CLIP.
    """

    num_tokens: int = field(default=10, metadata={"help": "Prompt tokens per layer."})
    num_deep_layers: int | None = field(
        default=None,
        metadata={"help": "Layers after the first with prompts of their own; None: all, 0: shallow, -n: the last n."},
    )
    dropout: float = field(default=0.1, metadata={"help": "Dropout on the projected tokens."})
    spectral_prompt: bool = field(default=False, metadata={"help": "Whether patches get a spectral prompt."})
    spectral_layers: list[int] = field(
        default_factory=lambda: [0, 1], metadata={"help": "Layers whose incoming patches get the spectral prompt."}
    )
    spectral_grid_size: int | None = field(
        default=None, metadata={"help": "Side of the patch grid that the filter is made for; None: the encoder's."}
    )
    text_prompts: str | None = field(
        default=None, metadata={"help": "whole or words: what of the template has prompts; None: no text prompts."}
    )
    text_prompt_ids: list[int] | None = field(
        default=None, metadata={"help": "Token ids of the template that the text prompts stand for."}
    )
    text_prompt_init: str = field(
        default="template", metadata={"help": "template or random: what the text prompts start from."}
    )
    target_modules: str | list[str] | None = field(default=None, metadata={"help": "The encoders to wrap."})
    modules_to_save: list[str] | None = field(
        default_factory=lambda: ["decode_head"], metadata={"help": "Trained and saved beside the prompts."}
    )
    model_config: dict[str, Any] | None = field(
        default=None, metadata={"help": "Configuration of the model without its CLIP; filled in."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = DeepPromptPeftType.DEEP_PROMPT
        if self.num_tokens < 0:
            raise ValueError(f"num_tokens must be at least 0, not {self.num_tokens}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}.")
        if self.spectral_grid_size is not None and self.spectral_grid_size < 1:
            raise ValueError(f"spectral_grid_size must be at least 1, not {self.spectral_grid_size}.")
        layers = self.spectral_layers
        if not isinstance(layers, (list, tuple)) or not all(type(index) is int for index in layers):
            raise ValueError(f"spectral_layers must be a list of layer numbers, not {layers!r}.")
        self.spectral_layers = list(layers)
        if self.spectral_prompt and not layers:
            raise ValueError("spectral_layers is empty: name a layer, or leave spectral_prompt off.")
        if self.text_prompts not in (None, "whole", "words"):
            raise ValueError(f'text_prompts must be "whole", "words" or None, not {self.text_prompts!r}.')
        if self.text_prompt_init not in ("template", "random"):
            raise ValueError(f'text_prompt_init must be "template" or "random", not {self.text_prompt_init!r}.')
        ids = self.text_prompt_ids
        if self.text_prompts is not None and not (
            isinstance(ids, (list, tuple)) and len(ids) > 2 and all(type(item) is int and item >= 0 for item in ids)
        ):
            raise ValueError(
                "text_prompts need text_prompt_ids, a list of the template's token ids with start and end and a word "
                f"or more between them, not {ids!r}: take it from ZegClipProcessor.text_prompt_ids()."
            )

    def prompted_layers(self, num_layers: int) -> range:
        """Return the indices of the layers that get visual prompts of their own, of an encoder with `num_layers`."""
        if self.num_tokens == 0:
            return range(0)
        deep = num_layers - 1 if self.num_deep_layers is None else self.num_deep_layers
        if not -num_layers <= deep < num_layers:
            raise ValueError(f"num_deep_layers={deep} does not fit an encoder of {num_layers} layers.")
        return range(num_layers + deep, num_layers) if deep < 0 else range(deep + 1)

    def filtered_layers(self, num_layers: int) -> set[int]:
        """Return the indices of the layers whose patches get the spectral prompt, of an encoder with `num_layers`."""
        if not self.spectral_prompt:
            return set()
        for index in self.spectral_layers:
            if not 0 <= index < num_layers:
                raise ValueError(f"spectral_layers names layer {index}, but the encoder has 0 to {num_layers - 1}.")
        return set(self.spectral_layers)


class PromptLayer(nn.Module, BaseTunerLayer):
    """Wraps an encoder and owns everything trainable there, one entry per adapter."""

    # Each piece is its own container of plain modules: `load_adapter` renames keys of nested ones wrongly.
    adapter_layer_names: tuple[str, ...] = ("deep_prompt_tokens",)
    other_param_names = ("prompt_configs",)
    # Inherited; said here because a Module's attributes are typed "Tensor | Module".
    active_adapters: list[str]
    base_layer: Any
    set_adapter: Any
    _move_adapter_to_device_of_base_layer: Any
    # Of the subclasses, which differ in what they take.
    update_layer: Any

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.deep_prompt_tokens = nn.ParameterDict()
        self.prompt_configs: dict[str, DeepPromptConfig] = {}

    def active_name(self) -> str | None:
        """Return the name of the adapter to run with, if any."""
        if self.disable_adapters or not self.active_adapters:
            return None
        if len(self.active_adapters) > 1:
            raise ValueError(f"Deep prompts cannot be mixed: activate one adapter, not {self.active_adapters}.")
        name = self.active_adapters[0]
        return name if name in self.prompt_configs else None

    def place(self, adapter_name: str, config: DeepPromptConfig) -> None:
        """Finish adding an adapter: keep its configuration, move it to where the encoder is, and activate."""
        self.prompt_configs[adapter_name] = config
        devices = [parameter.device for parameter in self.base_layer.parameters() if parameter.device.type != "meta"]
        if devices:  # none where all weights are still to be loaded, or lie on the disk
            self._move_adapter_to_device_of_base_layer(adapter_name, devices[0])
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)


class DeepPromptLayer(PromptLayer):
    """
    Visual and spectral prompts.

    Tokens stand between the class token and the patches, so `states[:, 0]` and the patches keep their places.
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
            # Kept, so that the adapter also fits an encoder that is configured for another size.
            side = config.spectral_grid_size = (
                config.spectral_grid_size or vision_config.image_size // vision_config.patch_size
            )
            # Real and imaginary part apart: optimisers, half precision and safetensors all know real numbers.
            # Trained, as in the paper; the official helper freezes what has no "prompt" in its name.
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
                    prompt = tokens[index - prompted.start].expand(len(states), -1, -1).to(states)
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
            raise ValueError(
                f"A spectral prompt has to know how {num_patches} patches lie, which are not the {side}x{side} of the "
                "configured image_size: pass patch_grid=(rows, columns)."
            )
        return side, side


class TextPromptLayer(PromptLayer):
    """
    Text prompts (LDVC section 3.2): at every layer they take the place of a template that stands before each name.

    Because the template is part of the input, positions, causal mask and padding are CLIP's own.
    """

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: DeepPromptConfig, template_states: torch.Tensor
    ):
        super().__init__(base_layer)
        self.update_layer(adapter_name, config, template_states)

    def update_layer(self, adapter_name: str, config: DeepPromptConfig, template_states: torch.Tensor) -> None:
        """Add an adapter; `template_states` `(layers, tokens, width)` are those that enter each frozen layer."""
        tokens = template_states if config.text_prompts == "whole" else template_states[:, 1:-1]
        if config.text_prompt_init == "random":
            tokens = 0.02 * torch.randn_like(tokens)
        self.deep_prompt_tokens[adapter_name] = nn.Parameter(tokens.clone())
        self.place(adapter_name, config)

    def make_room(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Check that names stand behind the template, and make room where the prompts are more than its tokens.

        Args:
            input_ids: `(names, length)`, the template, the name, the end token and padding.
            attention_mask: Same shape.

        Returns:
            Both, with one place more before the names if the prompts stand for the template's end token too. Without
            an active adapter they stay as they are.

        Raises:
            ValueError: If a row begins with something else, or the place is one too many for the text tower.
        """
        name = self.active_name()
        if name is None:
            return input_ids, attention_mask
        config = self.prompt_configs[name]
        ids = torch.tensor(config.text_prompt_ids, device=input_ids.device)
        words = len(ids) - 1  # with the start token
        too_short = input_ids.shape[1] <= words
        if not torch.compiler.is_compiling() and (too_short or (input_ids[:, :words] != ids[:words]).any()):
            raise ValueError(
                "This adapter's text prompts stand for one template, with which every row of input_ids must begin: "
                "use the processor that is saved with the adapter, or the prompt_templates that it was trained with."
            )
        if config.text_prompts == "words":
            return input_ids, attention_mask
        # What is repeated does not matter, only its place: a prompt covers it.
        input_ids = torch.cat([input_ids[:, :words], input_ids[:, words - 1 :]], dim=1)
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask[:, :words], attention_mask[:, words - 1 :]], dim=1)
        limit = self.base_layer.config.max_position_embeddings
        if input_ids.shape[1] > limit:
            longest = int((input_ids == ids[-1]).int().argmax(dim=1).max()) + 1
            if longest > limit:
                row = int((input_ids == ids[-1]).int().argmax(dim=1).argmax()) + 1
                raise ValueError(
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
        **kwargs: Any,
    ) -> BaseModelOutput:
        """
        Run the encoder with the active adapter's prompts.

        Args:
            inputs_embeds: `(names, length, width)`.
            attention_mask: Passed on to the layers.
            room_made: Whether the template has been looked for, see `make_room`.

        Returns:
            `BaseModelOutput` whose `last_hidden_state` has the shape of `inputs_embeds`.
        """
        name = self.active_name()
        if name is None:
            return self.base_layer(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
        if not room_made:
            raise ValueError("Encode class names with get_class_embeds, which makes room for the text prompts.")
        tokens = self.deep_prompt_tokens[name]
        start = 0 if self.prompt_configs[name].text_prompts == "whole" else 1
        states = inputs_embeds
        for layer, prompt in zip(self.base_layer.layers, tokens, strict=True):
            prompt = prompt.expand(len(states), -1, -1).to(states)
            states = torch.cat([states[:, :start], prompt, states[:, start + prompt.shape[1] :]], dim=1)
            states = layer(states, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=states)


class DeepPromptModel(BaseTuner):
    """Adds [`DeepPromptLayer`] and [`TextPromptLayer`] to a model, see [`DeepPromptConfig`]."""

    prefix = "deep_prompt_"
    tuner_layer_cls = PromptLayer
    target_module_mapping = {"zegclip": r".*\.vision_model\.encoder", "clip": r"vision_model\.encoder"}

    def _prepare_adapter_config(self, peft_config: DeepPromptConfig, model_config: dict) -> PeftConfig:
        text_prompts = peft_config.text_prompts
        found = peft_config.target_modules is None
        peft_config = super()._prepare_adapter_config(peft_config, model_config)
        if found and text_prompts is not None:
            peft_config.target_modules = str(peft_config.target_modules).replace("vision", "(vision|text)")
        wraps_text = bool(check_target_module_exists(peft_config, "clip.text_model.encoder"))
        if wraps_text != (text_prompts is not None):
            raise ValueError(
                f"target_modules={peft_config.target_modules!r} does not fit text_prompts={text_prompts!r}: "
                "text prompts wrap the text encoder, and nothing else does. Leave target_modules out."
            )
        return peft_config

    def _create_and_replace(
        self,
        peft_config: DeepPromptConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        layer_class: Any = DeepPromptLayer
        arguments: list[Any] = [adapter_name, peft_config]
        if isinstance(parent, CLIPTextModel):
            layer_class = TextPromptLayer
            arguments.append(_template_states(parent, peft_config))
        if isinstance(target, PromptLayer):
            target.update_layer(*arguments)
        else:
            self._replace_module(parent, target_name, layer_class(target, *arguments), target)

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        model_config = getattr(model, "config", None)
        if getattr(model_config, "model_type", None) != "zegclip":
            if config.text_prompts is not None:
                raise ValueError("text_prompts need a ZegClipForSemanticSegmentation, which makes room for them.")
            return
        described = model_config.describe_head()
        stored = config.model_config
        for name in head_fields(described["decode_head_type"]) if stored is not None else ():
            if stored.get(name) != described[name]:
                raise ValueError(
                    f"The adapter was trained with {name}={stored.get(name)!r}, but this model has "
                    f"{described[name]!r}: load it with ZegClipForSemanticSegmentation.from_pretrained(ADAPTER)."
                )
        config.model_config = stored or described

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # The parent's version copies `.weight`, which an encoder does not have.
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        raise ValueError("Deep prompts are tokens, not weights, and cannot be merged; `unload` removes them.")


@torch.no_grad()
def _template_states(text_model: CLIPTextModel, config: DeepPromptConfig) -> torch.Tensor:
    """Return the states `(layers, tokens, width)` with which the template enters each layer of the frozen tower."""
    encoder: Any = text_model.encoder
    frozen = encoder.base_layer if isinstance(encoder, PromptLayer) else encoder
    embeddings: Any = text_model.embeddings
    table = embeddings.token_embedding.weight
    if max(config.text_prompt_ids or ()) >= len(table):
        raise ValueError(
            f"text_prompt_ids={config.text_prompt_ids} are not of this CLIP, which has {len(table)} tokens."
        )
    # Where weights lie on the disk, accelerate fetches them and moves what meets them.
    fetched = table.is_meta and hasattr(embeddings, "_hf_hook")
    states = embeddings(input_ids=torch.tensor([config.text_prompt_ids], device="cpu" if fetched else table.device))
    implementation = frozen.config._attn_implementation
    # Others may need a GPU or half precision, and this also happens before a model is moved there.
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


def register_tuner() -> None:
    """Make the method known to PEFT, whose own registration is closed to third parties."""
    kind = DeepPromptPeftType.DEEP_PROMPT
    peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind] = DeepPromptConfig
    peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind] = DeepPromptModel
    peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind] = DeepPromptModel.prefix


@dataclass
class StoredAdapter:
    """
    An adapter folder or Hub repository, before it is loaded.

    Attributes:
        path: What `from_pretrained` was given.
        base: Where the weights of its base are: the same place, or where it was trained.
        model_config: The decode head's configuration and the class names it was trained with, if it says so.
    """

    path: str
    base: str
    model_config: dict[str, Any]

    @classmethod
    def find(cls, path: str | os.PathLike, **kwargs: Any) -> "StoredAdapter | None":
        """
        Look for an adapter.

        Args:
            path: A folder or a Hub id.
            **kwargs: `from_pretrained`'s own; those that say where to find files are used.

        Raises:
            ValueError: If there is one, but its base is nowhere.
        """
        download = {key: kwargs[key] for key in DOWNLOAD_ARGUMENTS & kwargs.keys()}
        file_name = find_adapter_config_file(str(path), **download)
        if file_name is None:
            return None
        with open(file_name, encoding="utf-8") as file:
            described = json.load(file)
        base = described.get("base_model_name_or_path")
        quietly = {"_raise_exceptions_for_missing_entries": False, **download}
        if any(cached_file(str(path), name, **quietly) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
            base = str(path)
        elif not base:
            raise ValueError(f"{path}: this adapter neither holds its base model nor names it.")
        elif os.path.isdir(path) and not os.path.isdir(base):
            beside = os.path.join(path, base)
            if os.path.isdir(beside):
                base = beside
            elif os.path.isabs(base) or base.count("/") != 1 or os.path.isdir(os.path.dirname(base)):
                raise ValueError(f"{path}: the base model of this adapter, {base}, is not there.")
        return cls(path=str(path), base=base, model_config=described.get("model_config") or {})


def enable_saved_modules(model: nn.Module) -> None:
    """Switch `modules_to_save` back on: transformers' `enable_adapters` only does so for the prompts."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.enable_adapters(True)


register_tuner()

__all__ = ["DeepPromptConfig", "DeepPromptLayer", "DeepPromptModel", "TextPromptLayer"]
