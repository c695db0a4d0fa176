"""Prompt tuning as a PEFT method: learned tokens in every layer of frozen encoders, and spectral prompts."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft.mapping
import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import CLIPTextModel

from .base_fingerprint import OtherBaseWarning, are_same, take_fingerprint, warning_of_other_base
from .heads import DECODE_HEADS
from .model_error import ModelError
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
        As the parent's; every way of adding or loading an adapter comes through here.

        All that the adapter trains is in float32, whatever the dtype of the base; PEFT casts the prompts alone. An
        adapter that was trained on another base is a warning.

        Raises:
            ModelError: If the adapter's decode head or one of its prompts does not fit the model.
        """
        # A copy: one object that is given for several adapters must not hold the class names of the last one.
        config = self.peft_config[adapter_name] = copy.copy(self.peft_config[adapter_name])
        config.active_in = None
        check_methods(model, self.peft_config)
        _check_fit(model, config)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        for name, parameter in model.named_parameters():
            own = (".deep_prompt_" in name or ".modules_to_save." in name) and adapter_name in name.split(".")
            if own and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        config.injected_into = fingerprint = take_fingerprint(model)
        if config.made_for is None and not config.inference_mode:
            config.base_fingerprint = fingerprint
        if not are_same(config.made_for, fingerprint):
            base = config.clip_model_name_or_path or config.base_model_name_or_path
            here = getattr(getattr(model, "config", None), "_name_or_path", None)
            warnings.warn(warning_of_other_base(adapter_name, base, here), OtherBaseWarning, stacklevel=2)
            if not config.inference_mode:  # What is trained on from here belongs to this base.
                config.base_fingerprint = fingerprint
                config.base_model_name_or_path, config.clip_model_name_or_path = here or None, None
        _share_config(model, adapter_name)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """As the parent's; the model's configuration becomes the adapter's, see [`switch_head_config`]."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        switch_head_config(self.model, self.peft_config, adapter_name)

    def delete_adapter(self, adapter_name: str) -> None:
        """As the parent's, which may activate another adapter."""
        super().delete_adapter(adapter_name)
        switch_head_config(self.model, self.peft_config, self.active_adapters)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse `adapter_names`, an adapter for each picture of a batch, which PEFT would not even pass on."""
        if kwargs.get("adapter_names") is not None:
            raise ModelError("Deep prompts cannot be mixed: set_adapter chooses one for a batch, not adapter_names.")
        yield

    def _prepare_adapter_config(self, peft_config: DeepPromptConfig, model_config: dict) -> PeftConfig:
        text_prompts = peft_config.text_prompts
        found = peft_config.target_modules is None
        peft_config = super()._prepare_adapter_config(peft_config, model_config)
        if found and text_prompts is not None:
            peft_config.target_modules = str(peft_config.target_modules).replace("vision", "(vision|text)")
        wraps_text = bool(check_target_module_exists(peft_config, "clip.text_model.encoder"))
        if wraps_text != (text_prompts is not None):
            raise ModelError(
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

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # The parent's version copies `.weight`, which an encoder does not have.
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        raise ModelError("Deep prompts are tokens, not weights, and cannot be merged; `unload` removes them.")


def _is_zegclip(model: nn.Module) -> bool:
    return getattr(getattr(model, "config", None), "model_type", None) == "zegclip"


def check_methods(model: nn.Module, peft_configs: dict[str, Any]) -> None:
    """Refuse deep prompts beside adapters of another PEFT method, in whatever order they are added."""
    layers = [isinstance(module, PromptLayer) for module in model.modules() if isinstance(module, BaseTunerLayer)]
    methods = [isinstance(config, DeepPromptConfig) for config in peft_configs.values()]
    if {*layers, *methods} == {True, False}:
        raise ModelError(
            "Deep prompts and adapters of another method, such as LoRA, cannot be in one model: merge those into the "
            "CLIP first (PeftModel.merge_and_unload), save it, and add the prompts to what you have saved."
        )


def _check_fit(model: nn.Module, peft_config: DeepPromptConfig) -> None:
    """Check that an adapter fits a model, and fill in a new adapter's `model_config` or what a stored one lacks."""
    if not _is_zegclip(model):
        for name in ("text_prompts", "double_class_embedding"):
            if getattr(peft_config, name):
                raise ModelError(f"{name} needs a ZegClipForSemanticSegmentation, which takes part in it.")
        return
    config: Any = model.config
    if peft_config.double_class_embedding and getattr(config.clip_config, "class_embedding_doubled", False):
        raise ModelError(
            "double_class_embedding would add the class embedding a third time: the position table of this converted "
            "CLIP contains it already, so leave the field out."
        )
    described, stored = config.describe_head(), peft_config.model_config
    if any(isinstance(module, PromptLayer) for module in model.modules()):
        described["training_free_weight"] = 0.0  # It was chosen for another adapter, which keeps it.
    for name in head_fields(described["decode_head_type"]) if stored is not None else ():
        if stored.get(name) != described[name]:
            raise ModelError(
                f"The adapter was trained with {name}={stored.get(name)!r}, but this model has {described[name]!r}: "
                "load it with ZegClipForSemanticSegmentation.from_pretrained(ADAPTER)."
            )
    # A field that the adapter's version did not have is at its default.
    peft_config.model_config = type(config)().describe_head() | stored if stored else described


def switch_head_config(model: nn.Module, peft_configs: dict[str, Any], active: str | list[str]) -> None:
    """
    Set the adapter's part of the model's configuration to that of the active adapter.

    The adapter that was active before keeps its part. Each is stored once: the active adapter's in the model's
    configuration, the others' in their own.

    Args:
        model: The model around the adapters; only a ZegCLIP's configuration has such a part.
        peft_configs: The configurations of all adapters, by name.
        active: Name of the active adapter; nothing is switched for none or several.
    """
    names = [active] if isinstance(active, str) else active
    incoming = peft_configs.get(names[0]) if len(names) == 1 else None
    config: Any = getattr(model, "config", None)
    if not _is_zegclip(model) or not hasattr(incoming, "active_in"):
        return
    if incoming.active_in is not config:
        for other in peft_configs.values():
            if getattr(other, "active_in", None) is config:
                other.store_head_config()
        incoming.apply_head_config(config)


def _share_config(model: nn.Module, adapter_name: str) -> None:
    """
    Let an adapter's decode head use the model's configuration.

    PEFT's copy of the base's decode head has a copy of it, which neither `set_attn_implementation` nor a change of the
    dropout would reach.
    """
    if not _is_zegclip(model):
        return
    decode_head: Any = model.decode_head
    for wrapper in decode_head.modules():
        if not isinstance(wrapper, ModulesToSaveWrapper) or adapter_name not in wrapper.modules_to_save:
            continue
        for part in wrapper.modules_to_save[adapter_name].modules():
            if hasattr(part, "config"):
                part.config = model.config


def register_tuner() -> None:
    """Make the method known to PEFT, whose own registration is closed to third parties."""
    kind = DeepPromptPeftType.DEEP_PROMPT
    peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind] = DeepPromptConfig
    peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind] = DeepPromptModel
    peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind] = DeepPromptModel.prefix


register_tuner()

__all__ = ["DeepPromptModel", "check_methods", "head_fields", "switch_head_config"]
