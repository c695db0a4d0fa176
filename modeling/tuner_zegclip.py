"""Deep visual prompt tuning as a PEFT method: learned tokens that join every layer of a frozen encoder."""

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
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)

# What decides the shape and the meaning of a decode head's weights.
HEAD_FIELDS = (
    "decode_head_type",
    "descriptor",
    "num_decoder_layers",
    "decoder_attention_heads",
    "decoder_ffn_dim",
)
DOWNLOAD_ARGUMENTS = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}


class DeepPromptPeftType(str, enum.Enum):
    """PEFT's own enumeration is closed, so the method brings its own member."""

    DEEP_PROMPT = "DEEP_PROMPT"


@dataclass
class DeepPromptConfig(PeftConfig):
    """
    Configuration of deep prompts (ZegCLIP section 3.2; VPT-deep).

    Args:
        num_tokens: Prompt tokens per layer; the papers use 10 for VOC and 100 for COCO-Stuff.
        num_deep_layers: How many layers after the first get prompts of their own, where each layer's prompt outputs
            are discarded and replaced. `None`: all. `n > 0`: the first `n`; later layers see no prompts. `0`: the
            first layer's prompts are carried through all layers ("shallow"; no final norm). `-n`: only the last `n`
            layers have prompts.
        dropout: Dropout on the projected tokens, drawn for each picture.
        target_modules: The vision encoder to wrap, by name or regular expression. Found by default.
        modules_to_save: Trained and saved beside the prompts. Defaults to the decode head.
        model_config: Filled in: the decode head's configuration, so that the adapter also loads onto a plain CLIP.
    """

    num_tokens: int = field(default=10, metadata={"help": "Prompt tokens per layer."})
    num_deep_layers: int | None = field(
        default=None,
        metadata={"help": "Layers after the first with prompts of their own; None: all, 0: shallow, -n: the last n."},
    )
    dropout: float = field(default=0.1, metadata={"help": "Dropout on the projected tokens."})
    target_modules: str | list[str] | None = field(default=None, metadata={"help": "The encoder to wrap."})
    modules_to_save: list[str] | None = field(
        default_factory=lambda: ["decode_head"], metadata={"help": "Trained and saved beside the prompts."}
    )
    model_config: dict[str, Any] | None = field(
        default=None, metadata={"help": "Configuration of the model without its CLIP; filled in."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = DeepPromptPeftType.DEEP_PROMPT
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, not {self.num_tokens}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}.")

    def prompted_layers(self, num_layers: int) -> range:
        """Return the indices of the layers that get prompts of their own, of an encoder with `num_layers`."""
        deep = num_layers - 1 if self.num_deep_layers is None else self.num_deep_layers
        if not -num_layers <= deep < num_layers:
            raise ValueError(f"num_deep_layers={deep} does not fit an encoder of {num_layers} layers.")
        return range(num_layers + deep, num_layers) if deep < 0 else range(deep + 1)


class DeepPromptLayer(nn.Module, BaseTunerLayer):
    """
    Wraps an encoder and owns everything trainable there, one entry per adapter.

    Tokens stand between the class token and the patches, so `states[:, 0]` and the patches keep their places.
    """

    # Each piece is its own container of plain modules: `load_adapter` renames keys of nested ones wrongly.
    adapter_layer_names = ("deep_prompt_tokens", "deep_prompt_proj", "deep_prompt_norm")
    other_param_names = ("prompt_configs",)
    # Inherited; said here because a Module's attributes are typed "Tensor | Module".
    active_adapters: list[str]
    base_layer: Any
    set_adapter: Any
    _move_adapter_to_device_of_base_layer: Any

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: DeepPromptConfig):
        super().__init__()
        self.base_layer = base_layer
        self.deep_prompt_tokens = nn.ParameterDict()
        self.deep_prompt_proj = nn.ModuleDict()
        self.deep_prompt_norm = nn.ModuleDict()
        self.prompt_configs: dict[str, DeepPromptConfig] = {}
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: DeepPromptConfig) -> None:
        """Add an adapter, initialised as the official code does."""
        vision_config = self.base_layer.config
        width = vision_config.hidden_size
        num_prompted = len(config.prompted_layers(len(self.base_layer.layers)))
        bound = math.sqrt(6 / (3 * vision_config.patch_size**2 + width))
        tokens = torch.empty(num_prompted, config.num_tokens, width).uniform_(-bound, bound)
        projection = nn.Linear(width, width)
        nn.init.kaiming_normal_(projection.weight, mode="fan_out")
        self.prompt_configs[adapter_name] = config
        self.deep_prompt_tokens[adapter_name] = nn.Parameter(tokens)
        self.deep_prompt_proj[adapter_name] = projection
        if config.num_deep_layers != 0:
            self.deep_prompt_norm[adapter_name] = nn.LayerNorm(width, eps=1e-6)
        devices = [parameter.device for parameter in self.base_layer.parameters() if parameter.device.type != "meta"]
        if devices:  # none where all weights are still to be loaded, or lie on the disk
            self._move_adapter_to_device_of_base_layer(adapter_name, devices[0])
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs):
        """
        Run the encoder with the active adapter's prompts.

        Args:
            inputs_embeds: `(batch, 1 + patches, width)`.
            attention_mask: Passed on to the layers; `None` for a vision tower.

        Returns:
            `BaseModelOutput` whose `last_hidden_state` has the shape of `inputs_embeds`, after the prompt norm.
        """
        if self.disable_adapters or not self.active_adapters:
            return self.base_layer(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
        if len(self.active_adapters) > 1:
            raise ValueError(f"Deep prompts cannot be mixed: activate one adapter, not {self.active_adapters}.")
        name = self.active_adapters[0]
        config = self.prompt_configs[name]
        layers = self.base_layer.layers
        prompted = config.prompted_layers(len(layers))
        carried = config.num_deep_layers == 0
        tokens = self.deep_prompt_proj[name](self.deep_prompt_tokens[name])

        states, count = inputs_embeds, 0
        for index, layer in enumerate(layers):
            if index in prompted:
                prompt = tokens[index - prompted.start].expand(len(states), -1, -1).to(states)
                prompt = F.dropout(prompt, config.dropout, self.training)
                states = torch.cat([states[:, :1], prompt, states[:, 1 + count :]], dim=1)
                count = config.num_tokens
            elif count and not carried:
                states, count = torch.cat([states[:, :1], states[:, 1 + count :]], dim=1), 0
            states = layer(states, attention_mask, **kwargs)
        states = torch.cat([states[:, :1], states[:, 1 + count :]], dim=1)
        if name in self.deep_prompt_norm:
            norm: Any = self.deep_prompt_norm[name]
            states = norm(states.to(norm.weight)).to(states)
        return BaseModelOutput(last_hidden_state=states)


class DeepPromptModel(BaseTuner):
    """Adds [`DeepPromptLayer`] to a model, see [`DeepPromptConfig`]."""

    prefix = "deep_prompt_"
    tuner_layer_cls = DeepPromptLayer
    target_module_mapping = {"zegclip": r".*\.vision_model\.encoder", "clip": r"vision_model\.encoder"}

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
        if isinstance(target, DeepPromptLayer):
            target.update_layer(adapter_name, peft_config)
            return
        self._replace_module(parent, target_name, DeepPromptLayer(target, adapter_name, peft_config), target)

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        model_config = getattr(model, "config", None)
        if getattr(model_config, "model_type", None) != "zegclip":
            return
        described = model_config.describe_head()
        stored = config.model_config
        for name in HEAD_FIELDS if stored is not None else ():
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

__all__ = ["DeepPromptConfig", "DeepPromptLayer", "DeepPromptModel"]
