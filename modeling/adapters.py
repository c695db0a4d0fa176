"""Several adapters on one model: load, add, switch, disable and delete them, each with the names it was made for."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from transformers.integrations import PeftAdapterMixin
from transformers.utils import logging
from transformers.utils.loading_report import LoadStateDictInfo

from .base_fingerprint import take_fingerprint
from .prompt_config import DeepPromptConfig
from .prompt_layers import DeepPromptLayer, PromptLayer
from .prompt_tuner import follow, remember
from .stored_adapter import is_missing_folder

# Parts that a model has with adapters only.
TAKEN_NAMES = {"base_layer", "original_module", "modules_to_save", *DeepPromptLayer.adapter_layer_names}


class AdapterMixin(PeftAdapterMixin):
    """
    Transformers' adapter methods for deep prompts, for a `PreTrainedModel` whose configuration is a `ZegClipConfig`.

    What differs from transformers' own: all parts of the model agree on the active adapter; what was loaded for
    inference stays frozen; the configuration (class names, templates, loss) is that of the active adapter; and what
    cannot be loaded leaves the model as it was.
    """

    # Of the model.
    config: Any
    training: bool
    modules: Any
    named_modules: Any
    named_parameters: Any
    get_submodule: Any
    parameters: Any
    train: Any

    def load_adapter(
        self,
        peft_model_id: str | os.PathLike | None = None,
        adapter_name: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """
        Load an adapter beside those that are there, and activate it.

        As `PreTrainedModel.load_adapter`: frozen unless `is_trainable=True`.

        Args:
            peft_model_id: Folder or Hub id.
            adapter_name: What to call it; `"default"` if left out.
            *args: As the parent's.
            **kwargs: As the parent's.

        Raises:
            ValueError: One sentence, if there is no adapter, or it does not fit this model: another kind of decode
                head, a CLIP of other sizes. The model is then as it was before.
        """
        name = adapter_name or "default"
        self._check_name(name)
        if peft_model_id is not None and is_missing_folder(peft_model_id):
            raise ValueError(f"{peft_model_id}: there is no such adapter folder.")
        path = None if peft_model_id is None else str(peft_model_id)
        # Sizes are compared below, where all that does not fit becomes one sentence.
        kwargs["ignore_mismatched_sizes"] = True
        with self._all_or_nothing(name):
            verbosity = logging.get_verbosity()
            of_base = self.__dict__.get("_weight_conversions")
            try:
                # The report would list the tensors of all other adapters as missing.
                logging.set_verbosity_error()
                info = super().load_adapter(path, adapter_name, *args, **kwargs)
            except SafetensorError as error:
                raise ValueError(f"{path}: the weights of this adapter cannot be read: {error}") from error
            finally:
                logging.set_verbosity(verbosity)
                # Left by loading, for `save_pretrained`, which would rename the base's tensors like an adapter's.
                self._weight_conversions = of_base
            own = re.compile(rf"\.(deep_prompt_\w+|modules_to_save)\.{re.escape(name)}(\.|$)")
            info.missing_keys = {key for key in info.missing_keys if own.search(key)}
            _check_loaded(path or name, info)
            stored = self.peft_config[name]
            stored.origin = path  # not a field, so it is not saved
            beside = os.path.abspath(os.path.join(path or "", stored.base_model_name_or_path or ""))
            if stored.base_model_name_or_path and os.path.isdir(beside):
                stored.base_model_name_or_path = beside  # which was named by its way from the adapter
            _check_prompts_in_memory(self)
        return info

    def add_adapter(self, adapter_config: PeftConfig, adapter_name: str | None = None) -> None:
        """As the parent's: add a fresh adapter to train, and activate it. What fails leaves the model as it was."""
        self._check_name(adapter_name or "default")
        with self._all_or_nothing(adapter_name or "default"):
            super().add_adapter(adapter_config, adapter_name)
            adapter_config.base_fingerprint = take_fingerprint(self)

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """
        Switch to an adapter: its prompts, its decode head and its part of the configuration.

        It is trainable if it was added, or loaded with `is_trainable=True`. Where adapters are disabled, they stay so.

        Raises:
            ValueError: If there is none of this name, or several are named; nothing is switched then.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if not self._hf_peft_config_loaded:
            raise ValueError("No adapter loaded. Please load an adapter first.")
        if len(names) != 1:
            raise ValueError(f"Deep prompts cannot be mixed: activate one adapter, not {names}.")
        if names[0] not in self.peft_config:
            raise ValueError(f"There is no adapter {names[0]!r}; loaded are {', '.join(map(repr, self.peft_config))}.")
        active = self._active_name()
        if active != names[0]:
            if active is not None:
                remember(self.config, self.peft_config[active])
            follow(self.config, self.peft_config[names[0]])
        self._activate(names[0])

    def enable_adapters(self) -> None:
        """As the parent's, and switches the decode head back to the adapter's, which the parent forgets."""
        if not self._hf_peft_config_loaded:
            raise ValueError("No adapter loaded. Please load an adapter first.")
        for module in self._adapted():
            module.enable_adapters(True)
        active = self._active_name()
        if active is not None:
            self._activate(active)

    def delete_adapter(self, adapter_names: list[str] | str) -> None:
        """
        As the parent's: take adapters out of memory.

        If the active one goes, the first of the others by name becomes active, with a warning. Without any, the model
        is the plain base again.
        """
        active = self._active_name()
        disabled = self._is_disabled()
        with warnings.catch_warnings():
            # Each layer would choose its successor among the adapters that it knows.
            warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
            super().delete_adapter(adapter_names)
        if not self._hf_peft_config_loaded:
            self._unwrap()
        elif active is not None and active in self.peft_config:
            self._activate(active)
        else:
            successor = min(self.peft_config)
            follow(self.config, self.peft_config[successor])
            self._activate(successor)
            warnings.warn(f"Adapter {active!r} was active and is deleted; {successor!r} is active now.", stacklevel=2)
        if disabled and self._hf_peft_config_loaded:
            self.disable_adapters()

    def _active_name(self) -> str | None:
        for module in self.modules():
            if isinstance(module, BaseTunerLayer):
                return module.active_adapters[0] if module.active_adapters else None
        return None

    def _is_disabled(self) -> bool:
        return any(module.disable_adapters for module in self.modules() if isinstance(module, BaseTunerLayer))

    def _remember_active(self) -> None:
        """Keep what the configuration says now with the active adapter."""
        active = self._active_name()
        if active is not None:
            remember(self.config, self.peft_config[active])

    def _activate(self, name: str) -> None:
        """Let all parts of the model use one adapter, which is frozen if it is there for inference."""
        inference_mode = self.peft_config[name].inference_mode
        for module in self._adapted():
            if isinstance(module, BaseTunerLayer):
                module.set_adapter([name], inference_mode=inference_mode)
                continue
            # Not every adapter has a decode head of its own.
            module.set_adapter([name] if name in module.modules_to_save else [], inference_mode=inference_mode)
            for other, head in module.modules_to_save.items():
                if other != name:  # PEFT leaves those trainable that were so when an adapter came
                    head.requires_grad_(False)

    def _adapted(self) -> list[Any]:
        """Return the modules that hold adapters."""
        return [module for module in self.modules() if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper))]

    def _check_name(self, name: str) -> None:
        """Refuse names that PEFT, which finds adapters by their names in those of the tensors, would mistake."""
        if self._hf_peft_config_loaded and name in self.peft_config:
            raise ValueError(f"There is an adapter {name!r} already: give this one another name, or delete that one.")
        parts = {part for key, _ in self.named_parameters() for part in key.split(".")} | TAKEN_NAMES
        if "." in name or name in parts:
            raise ValueError(f"An adapter cannot be called {name!r}: parts of the model are. Choose another name.")

    @contextmanager
    def _all_or_nothing(self, name: str) -> Iterator[None]:
        """Add an adapter inside: to all parts of the model if it works, and to none if it fails."""
        adapters = set(self.peft_config) if self._hf_peft_config_loaded else set()
        active, disabled, training = self._active_name(), self._is_disabled(), self.training
        trained = {parameter for parameter in self.parameters() if parameter.requires_grad}
        self._remember_active()
        before = DeepPromptConfig()
        remember(self.config, before)
        try:
            yield
        except Exception:
            if name not in adapters:
                self._take_out(name)
            if active is not None:
                self._activate(active)
            for parameter in self.parameters():
                parameter.requires_grad_(parameter in trained)
            follow(self.config, before)
            self.train(training)
            raise
        self._activate(name)
        self.train(self.training)  # what is new would be in training mode
        if disabled:  # what is new is not
            self.disable_adapters()

    def _take_out(self, name: str) -> None:
        """Remove what has been added of an adapter, however little or much that is."""
        others = [other for other in getattr(self, "peft_config", {}) if other != name]
        if not others:
            self.__dict__.pop("peft_config", None)
            self._hf_peft_config_loaded = False
            self._unwrap()
            return
        self.peft_config.pop(name, None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
            for module in self.modules():
                if isinstance(module, BaseTunerLayer):
                    module.delete_adapter(name)
                elif isinstance(module, ModulesToSaveWrapper):
                    module.delete_adapter(name, new_active_adapters=None)

    def _unwrap(self) -> None:
        """Put the base's own modules back into the places of those that hold adapters."""
        for path, module in list(self.named_modules()):
            parent, _, child = path.rpartition(".")
            if isinstance(module, PromptLayer):
                setattr(self.get_submodule(parent), child, module.base_layer)
            elif isinstance(module, ModulesToSaveWrapper):
                setattr(self.get_submodule(parent), child, module.original_module)


def _check_loaded(place: str, info: LoadStateDictInfo) -> None:
    """Refuse an adapter of which something is missing, left over, or of another size."""
    for key, stored, expected in sorted(info.mismatched_keys):
        raise ValueError(
            f"{place}: this adapter does not fit: {key} is {tuple(stored)} there, {tuple(expected)} in this model."
        )
    for key in sorted(info.missing_keys):
        raise ValueError(f"{place}: this adapter does not fit: it has no weights for {key}.")
    for key in sorted(info.unexpected_keys):
        raise ValueError(f"{place}: this adapter does not fit: the model has no {key}.")


def _check_prompts_in_memory(model: AdapterMixin) -> None:
    """Refuse a `device_map` that offloads a whole encoder: its prompts would silently not be those of the file."""
    places = getattr(model, "hf_device_map", {})
    offloaded = {"disk"} if set(places.values()) <= {"cpu", "disk"} else {"cpu", "disk"}
    for name, module in model.named_modules():
        if not isinstance(module, PromptLayer):
            continue
        for mapped, place in places.items():
            if place in offloaded and f"{name}.".startswith(f"{mapped}." if mapped else ""):
                raise ValueError(
                    f"device_map offloads {mapped or 'the model'} with the prompts of an adapter, which cannot be "
                    f"loaded there: map the layers of {name} one by one, or keep it in memory."
                )


__all__ = ["AdapterMixin"]
