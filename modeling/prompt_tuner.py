"""Prompt tuning as a PEFT method: learned tokens in every layer of frozen encoders, and spectral prompts."""

import copy
import warnings
from typing import Any

import peft.mapping
import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from torch import nn
from transformers import CLIPTextModel

from .base_fingerprint import OtherBaseWarning, are_same, take_fingerprint, warning_of_other_base
from .configuration_zegclip import ZegClipConfig
from .heads import DECODE_HEADS
from .prompt_config import DeepPromptConfig, DeepPromptPeftType
from .prompt_layers import DeepPromptLayer, PromptLayer, TextPromptLayer, template_states


def head_fields(decode_head_type: str) -> tuple[str, ...]:
    """Return the fields of the configuration in which two decode heads of a kind must agree."""
    return DECODE_HEADS[decode_head_type].config_fields


class DeepPromptModel(BaseTuner):
    """Adds [`DeepPromptLayer`] and [`TextPromptLayer`] to a model, see [`DeepPromptConfig`]."""

    prefix = "deep_prompt_"
    tuner_layer_cls = PromptLayer
    target_module_mapping = {"zegclip": r".*\.vision_model\.encoder", "clip": r"vision_model\.encoder"}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            # Several adapters on one model are what they are made for.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            super().__init__(*args, **kwargs)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """
        As the parent's: every way of adding or loading an adapter comes through here.

        What the adapter trains is in float32, whatever the base is in; PEFT sees to that for the prompts alone. An
        adapter that was made for another base is a warning.
        """
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        for name, parameter in model.named_parameters():
            own = (".deep_prompt_" in name or ".modules_to_save." in name) and adapter_name in name.split(".")
            if own and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        config = self.peft_config[adapter_name]
        fingerprint = take_fingerprint(model)
        if config.made_for is None and not config.inference_mode:
            config.base_fingerprint = fingerprint
        if not are_same(config.made_for, fingerprint):
            base = config.clip_model_name_or_path or config.base_model_name_or_path
            here = getattr(getattr(model, "config", None), "_name_or_path", None)
            warnings.warn(warning_of_other_base(adapter_name, base, here), OtherBaseWarning, stacklevel=2)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """As the parent's; the configuration's class names and templates follow, see `follow`."""
        before, after = self.active_adapters, [adapter_name] if isinstance(adapter_name, str) else adapter_name
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        if before != after and len(before) == len(after) == 1 and _is_zegclip(self.model):
            if before[0] in self.peft_config:
                remember(self.model.config, self.peft_config[before[0]])
            follow(self.model.config, self.peft_config[after[0]])

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
            arguments.append(template_states(parent, peft_config))
        if isinstance(target, PromptLayer):
            target.update_layer(*arguments)
        else:
            self._replace_module(parent, target_name, layer_class(target, *arguments), target)

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        if not _is_zegclip(model):
            for name in ("text_prompts", "double_class_embedding"):
                if getattr(config, name):
                    raise ValueError(f"{name} needs a ZegClipForSemanticSegmentation, which takes part in it.")
            return
        model_config: Any = model.config
        if config.double_class_embedding and getattr(model_config.clip_config, "class_embedding_doubled", False):
            raise ValueError(
                "double_class_embedding would add the class embedding a third time: the position table of this "
                "converted CLIP holds it already, so leave the field out."
            )
        described = model_config.describe_head()
        stored = config.model_config
        for name in head_fields(described["decode_head_type"]) if stored is not None else ():
            if stored.get(name) != described[name]:
                raise ValueError(
                    f"The adapter was trained with {name}={stored.get(name)!r}, but this model has "
                    f"{described[name]!r}: load it with ZegClipForSemanticSegmentation.from_pretrained(ADAPTER)."
                )
        # A field that the adapter's version did not have is at its default.
        config.model_config = type(model_config)().describe_head() | stored if stored else described

    def _post_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        if _is_zegclip(model):
            model_config: Any = model.config
            follow(model_config, config)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # The parent's version copies `.weight`, which an encoder does not have.
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        raise ValueError("Deep prompts are tokens, not weights, and cannot be merged; `unload` removes them.")


def _is_zegclip(model: nn.Module) -> bool:
    return getattr(getattr(model, "config", None), "model_type", None) == "zegclip"


def register_tuner() -> None:
    """Make the method known to PEFT, whose own registration is closed to third parties."""
    kind = DeepPromptPeftType.DEEP_PROMPT
    peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind] = DeepPromptConfig
    peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind] = DeepPromptModel
    peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind] = DeepPromptModel.prefix


def remember(config: ZegClipConfig, peft_config: PeftConfig) -> None:
    """Let an adapter's configuration keep what the model's says now, class names and templates included."""
    if isinstance(peft_config, DeepPromptConfig):
        peft_config.model_config = copy.deepcopy(config.describe_head())


def follow(config: ZegClipConfig, peft_config: PeftConfig) -> None:
    """Let the model's configuration say what an adapter's keeps."""
    described = copy.deepcopy(getattr(peft_config, "model_config", None) or {})
    names = described.pop("id2label", None)
    if names is not None:
        config.id2label = {int(index): name for index, name in names.items()}
        config.label2id = {name: index for index, name in config.id2label.items()}
    for field, value in described.items():
        setattr(config, field, value)


register_tuner()

__all__ = ["DeepPromptModel", "follow", "head_fields", "remember"]
