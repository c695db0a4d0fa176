"""Adapters of a model: load, add, switch, disable, delete and save them, each with its part of the configuration."""

import copy
import inspect
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, logging
from transformers.utils.loading_report import LoadStateDictInfo

from .base_fingerprint import OtherBaseWarning, are_same, take_checksums, take_fingerprint
from .model_error import ModelError
from .prompt_layers import DeepPromptLayer, PromptLayer
from .prompt_tuner import check_methods, head_fields, switch_head_config
from .stored_adapter import DOWNLOAD_ARGUMENTS, StoredAdapter, is_missing_folder

# Names of submodules that only a model with adapters has.
TAKEN_NAMES = {"base_layer", "original_module", "modules_to_save", *DeepPromptLayer.adapter_layer_names}
# Arguments of `from_pretrained` that a configuration, which may have attributes of these names, must not take.
MODEL_ARGUMENTS = {"dtype", "torch_dtype", "quantization_config", "fusion_config"}


class AdapterModel(PreTrainedModel):
    """
    A `PreTrainedModel` with a `ZegClipConfig` whose adapters are deep prompts and a decode head.

    Saving, loading and switching are those of transformers (`PeftAdapterMixin`) with these properties: all parts of
    the model agree on the active adapter; an adapter that was loaded for inference stays frozen; the configuration
    (class names, templates, loss) is that of the active adapter; an adapter that cannot be loaded leaves the model
    unchanged. docs/adapters.md lists what PEFT and transformers do otherwise, with a test for each.
    """

    _own_fields: dict[str, Any] | None = None
    """The part of the configuration that adapters change, as it is without any of them."""
    _loaded_base: tuple[str | None, dict[str, Any]] = (None, {})
    """Fingerprint and checksums of the base, as it was loaded."""
    _absent_from_clip: Sequence[str] = ()
    """Names of the CLIP's weights that the files of the base did not have."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        config: Any = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """
        Load a full model, a base with its adapter, an adapter alone (its base is found by name), or a plain CLIP.

        As `PreTrainedModel.from_pretrained`. An adapter brings the configuration of its decode head, so it also loads
        onto a plain CLIP, and onto a base that has another adapter beside it.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            *model_args: As the parent's.
            config: As the parent's.
            output_loading_info: As the parent's.
            **kwargs: As the parent's; fields of `ZegClipConfig`, which replace the adapter's; and
                `base_model_name_or_path`, a CLIP of the same architecture to use instead of the one that the adapter
                names, such as a fine-tuned one.

        Raises:
            ModelError: If the adapter's base cannot be found or lacks weights of the CLIP, or a
                `base_model_name_or_path` is given without adapter.
        """
        base = kwargs.pop("base_model_name_or_path", None)
        adapter_kwargs = kwargs.pop("adapter_kwargs", None) or {}
        path = adapter_kwargs.get("_adapter_model_path", pretrained_model_name_or_path)  # of Auto classes
        adapter = StoredAdapter.find(path, base=base, **kwargs) if path is not None else None
        if adapter is None:
            if base is not None:
                raise ModelError(f"base_model_name_or_path={str(base)!r} needs an adapter, and {path} has none.")
            kwargs |= {"config": config, "output_loading_info": output_loading_info, "adapter_kwargs": adapter_kwargs}
            loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
            (loaded[0] if output_loading_info else loaded)._note_base()
            return loaded
        if "subfolder" not in kwargs and (fields := adapter.find_contradictions()):
            warnings.warn(
                f"{adapter.path}: config.json and the model_config of adapter_config.json differ in "
                f"{', '.join(fields)}. from_pretrained takes the latter, Auto classes and the pipeline the former: "
                "make them equal.",
                stacklevel=2,
            )
        if not adapter.model_config:  # of another method, such as LoRA: config.json has it, if there is one
            download = {key: kwargs[key] for key in DOWNLOAD_ARGUMENTS & kwargs.keys()}
            if adapter.has_configuration(**download):
                adapter.model_config = cls.config_class.from_pretrained(adapter.path, **download).describe_head()
        for name in ("revision", "subfolder"):
            # They are the adapter's; a base elsewhere has revisions and folders of its own.
            if adapter.base != adapter.path and name in kwargs:
                adapter_kwargs.setdefault(name, kwargs.pop(name))
        download = {key: kwargs[key] for key in DOWNLOAD_ARGUMENTS & kwargs.keys()}
        base_config = cls.config_class.from_pretrained(adapter.base, **download)
        arguments = {name: kwargs.pop(name) for name in MODEL_ARGUMENTS & kwargs.keys()}
        if not isinstance(config, PreTrainedConfig):
            described = adapter.describe_on(base_config.to_dict())
            if config is not None:
                described = cls.config_class.from_pretrained(config, **download).to_dict()
            config, kwargs = cls.config_class.from_dict(described, return_unused_kwargs=True, **kwargs)
        elif str(path) != str(pretrained_model_name_or_path) == str(config.name_or_path):
            # Auto classes have read the configuration of the base, and changed what they were asked to.
            stored = cls.config_class.from_dict(adapter.describe_on(config.to_dict()))
            config = copy.deepcopy(config)
            for name in {*stored.describe_head(), "label2id"} - config.given:
                setattr(config, name, getattr(stored, name))
        plain_clip = PreTrainedConfig.get_config_dict(adapter.base, **download)[0].get("model_type") == "clip"
        other_head = not plain_clip and any(
            getattr(config, name) != getattr(base_config, name) for name in head_fields(config.decode_head_type)
        )
        if other_head:
            # The adapter's decode head replaces the base's.
            kwargs.setdefault("ignore_mismatched_sizes", True)
        adapter_kwargs["_adapter_model_path"] = adapter.path
        kwargs |= {"config": config, "output_loading_info": output_loading_info, "adapter_kwargs": adapter_kwargs}
        kwargs |= arguments
        with quiet(plain_clip or other_head), warnings.catch_warnings():
            # The load report would list the base's decode head as missing.
            if base is not None:  # Another base than the adapter's own is intended.
                warnings.simplefilter("ignore", OtherBaseWarning)
            loaded = super().from_pretrained(adapter.base, *model_args, **kwargs)
        model = loaded[0] if output_loading_info else loaded
        if absent := model._absent_from_clip:  # The load report, if any, is that of the adapter.
            raise ModelError(
                f"{adapter.base}: this lacks fitting weights for {len(absent)} parts of a CLIP, such as {absent[0]}."
            )
        model._note_base()
        model.config.apply_head(config.describe_head())  # with the fields that were given here
        model.config.label2id = config.label2id
        (peft_config,) = model.peft_config.values()
        if adapter.base != adapter.path:
            # Saved elsewhere, the adapter must still find its base.
            peft_config.base_model_name_or_path = adapter.base
            peft_config.clip_model_name_or_path = None
        if base is not None:
            peft_config.base_fingerprint = take_fingerprint(model)
        # A configuration in the adapter's folder is the adapter's.
        model._own_fields = {"training_free_weight": 0.0, "seen_class_names": None}
        if adapter.base != adapter.path:  # What the base's decode head is was chosen by the adapter.
            kept = head_fields(config.decode_head_type)
            described = base_config.describe_head().items()
            model._own_fields = {name: value for name, value in described if name not in kept}
        return loaded

    @staticmethod
    def _finalize_model_loading(model: Any, load_config: Any, loading_info: LoadStateDictInfo) -> LoadStateDictInfo:
        info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        absent = (name for name in info.missing_and_mismatched() if name.startswith("clip."))
        model._absent_from_clip = sorted(name for name in absent if name != "clip.logit_scale")  # which nothing uses
        return info

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        As `PreTrainedModel.save_pretrained`; with adapters, the active one alone and the configuration.

        An adapter whose base is not stored elsewhere (both came from one folder, or were converted) is saved with it,
        and so is one whose base has been changed in memory, with a warning.
        With `push_to_hub=True`, what `push_to_hub` sends is then uploaded, beside the model the processor, code and
        card; its arguments are given here, too, and `repo_id` is by default the folder's name.

        Raises:
            ModelError: If the model has no adapter, but the folder has one, which would be loaded with it.
            ValueError: For a `state_dict` or `variant` with `push_to_hub=True`, which sends the model's own weights.
        """
        if kwargs.pop("push_to_hub", False):
            for name in ("state_dict", "variant"):
                if kwargs.get(name) is not None:
                    raise ValueError(f"{name} cannot be pushed: save it, and upload the folder.")
            own = inspect.signature(self.push_to_hub).parameters.keys() & kwargs.keys()
            push = {name: kwargs[name] for name in own}
            kwargs = {name: value for name, value in kwargs.items() if name not in own - {"max_shard_size"}}
            self.save_pretrained(save_directory, **kwargs)
            if kwargs.get("is_main_process", True):
                name = os.path.basename(os.path.abspath(save_directory))
                self.push_to_hub(push.pop("repo_id", None) or name, **push)
            return
        active = self._active_name()
        if active is None and os.path.isfile(os.path.join(save_directory, ADAPTER_CONFIG_NAME)):
            raise ModelError(
                f"{save_directory} has an adapter, which would be loaded with this model, that has none: choose "
                f"another folder, or remove {ADAPTER_CONFIG_NAME} and the adapter's weights there."
            )
        if active is not None:
            changed = self._has_changed_base()
            if changed:
                warnings.warn(
                    "The CLIP has changed since it was loaded, so it is saved with the adapter.", stacklevel=2
                )
            if changed or not self.peft_config[active].base_model_name_or_path:
                self.save_with_base(save_directory, **kwargs)
                return
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            # With it, Auto classes and pipelines open an adapter's folder, whatever its base is.
            self.config.save_pretrained(save_directory)

    def _note_base(self) -> None:
        self._loaded_base = (take_fingerprint(self), take_checksums(self))

    def _has_changed_base(self) -> bool:
        """Return whether the CLIP, or the decode head of an adapter without one, has changed since it was loaded."""
        active = self._active_name()
        adapter = None if active is None else self.peft_config[active]
        injected_into = getattr(adapter, "injected_into", None)
        loaded, sums = self._loaded_base
        # What the adapter has of its own, or changes when it is merged.
        own = ["decode_head."] if self._head_is_adapters() else []
        for name, module in self.named_modules():
            if isinstance(module, BaseTunerLayer) and not isinstance(module, PromptLayer):
                own += [f"{name}."] if module.merged else []
                if getattr(adapter, "bias", "none") == "lora_only":
                    own.append(f"{name}.bias")
        with_biases = getattr(adapter, "bias", "none") == "all"  # of LoRA
        for name, (dtype, value) in take_checksums(self).items():
            known, before = sums.get(name, (None, None))
            kept = name.startswith(tuple(own)) or (with_biases and name.endswith(".bias"))
            if known == dtype and value != before and not kept:
                return True
        return not (are_same(loaded, injected_into) and are_same(injected_into, take_fingerprint(self)))

    def save_with_base(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        Save base and active adapter in one folder, which loads without another model.

        Args:
            save_directory: The folder.
            **kwargs: As those of `PreTrainedModel.save_pretrained`, except for `variant`.

        Raises:
            ModelError: If no adapter is loaded; that of a `PeftModel` has to be saved and loaded here first.
            ValueError: For a `variant`, under which an adapter does not find its base.
        """
        if kwargs.get("variant") is not None:
            raise ValueError("A base that is saved with its adapter has no variant: leave it out.")
        active = self._active_name() if self._hf_peft_config_loaded else None
        if active is None:
            raise ModelError("There is no adapter to save beside the base: load one with from_pretrained first.")
        if not kwargs.get("is_main_process", True):
            return
        state_dict = kwargs.pop("state_dict", None) or self.state_dict()
        base = type(self)(self.config)
        own = {
            name.replace(".base_layer.", ".").replace(".original_module.", "."): tensor
            for name, tensor in state_dict.items()
            if ".modules_to_save." not in name
        }
        names = base.state_dict().keys()
        base.load_state_dict({name: tensor for name, tensor in own.items() if name in names})
        PreTrainedModel.save_pretrained(base.to(self.dtype), save_directory, **kwargs)
        super().save_pretrained(save_directory, state_dict=state_dict)
        described = copy.copy(self.peft_config[active])
        described.base_model_name_or_path = described.clip_model_name_or_path = None  # it is beside
        if hasattr(described, "injected_into"):
            described.base_fingerprint = take_fingerprint(self)
        described.save_pretrained(save_directory)

    def _forget_base(self) -> None:
        """Note that the base in memory is another one than that on disk: `save_pretrained` then saves it, too."""
        self._note_base()
        self.name_or_path = self.config.name_or_path = ""
        for peft_config in getattr(self, "peft_config", {}).values():
            peft_config.base_model_name_or_path = peft_config.clip_model_name_or_path = None
            peft_config.base_fingerprint = take_fingerprint(self)

    def load_adapter(
        self,
        peft_model_id: str | os.PathLike | None = None,
        adapter_name: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """
        Load a further adapter and activate it.

        As `PreTrainedModel.load_adapter`: frozen unless `is_trainable=True`.

        Args:
            peft_model_id: Folder or Hub id.
            adapter_name: Its name here; `"default"` if left out.
            *args: As the parent's.
            **kwargs: As the parent's.

        Raises:
            ModelError: If there is no adapter, or it does not fit this model: another type of decode head, a CLIP of
                other sizes. The model is then unchanged.
        """
        name = adapter_name or "default"
        self._check_name(name)
        self._note_own_fields()
        if peft_model_id is not None and is_missing_folder(peft_model_id):
            raise ModelError(f"{peft_model_id}: there is no such adapter folder.")
        path = None if peft_model_id is None else str(peft_model_id)
        # Sizes are compared in `_check_loaded`, where all that does not fit becomes one sentence.
        kwargs["ignore_mismatched_sizes"] = True
        conversions = self.__dict__.get("_weight_conversions")
        with self._warning_of_base_head(), self._all_or_nothing(name):
            try:
                # The report would list the tensors of all other adapters as missing.
                with quiet():
                    info = super().load_adapter(path, adapter_name, *args, **kwargs)
            except SafetensorError as error:
                raise ModelError(f"{path}: the weights of this adapter cannot be read: {error}") from error
            except ModelError:
                raise
            except ValueError as error:  # of PEFT and transformers, which may not name the folder
                reason = re.sub(r"\(\n.*\n\)", "", str(error), flags=re.DOTALL)  # without modules as they are printed
                raise ModelError(f"{path or name}: {reason}") from error
            # Those of the adapter, which `save_pretrained` would apply to the base's tensors.
            self._weight_conversions = conversions
            own = re.compile(rf"\.(deep_prompt_\w+|modules_to_save)\.{re.escape(name)}(\.|$)")
            info.missing_keys = {key for key in info.missing_keys if own.search(key)}
            _check_loaded(path or name, info)
            _check_in_memory(self)
            stored = self.peft_config[name]
            stored.origin = path  # not a field, so it is not saved
            beside = os.path.abspath(os.path.join(path or "", stored.base_model_name_or_path or ""))
            if stored.base_model_name_or_path and os.path.isdir(beside):
                stored.base_model_name_or_path = beside  # stored relative to the adapter's folder
        return info

    def add_adapter(self, adapter_config: PeftConfig, adapter_name: str | None = None) -> None:
        """As the parent's: add a new adapter to train and activate it; a failure leaves the model unchanged."""
        name = adapter_name or "default"
        self._check_name(name)
        is_first = not getattr(self, "peft_config", None)
        self._note_own_fields()
        with self._warning_of_base_head(), self._all_or_nothing(name):
            super().add_adapter(copy.copy(adapter_config), name)
            self.peft_config[name].base_fingerprint = take_fingerprint(self)
        if not is_first:  # A configuration of a trained adapter has the weight that was chosen for that one.
            self.config.training_free_weight = 0.0

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """
        Switch to an adapter: its prompts, its decode head and its part of the configuration.

        It is trainable if it was added, or loaded with `is_trainable=True`. Disabled adapters stay disabled. A warning
        says if the base's decode head takes over, as the adapter has none.

        Raises:
            ModelError: If there is no adapter of this name, or several are named; nothing is switched then.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if len(names) != 1:
            raise ModelError(f"Deep prompts cannot be mixed: activate one adapter, not {names}.")
        loaded = list(getattr(self, "peft_config", {}))
        if names[0] not in loaded:
            raise ModelError(f"There is no adapter {names[0]!r}; loaded are {loaded}.")
        with self._warning_of_base_head():
            self._activate(names[0])

    def disable_adapters(self) -> None:
        """As the parent's, with a warning if the base's decode head, which may be random, takes over from another."""
        with self._warning_of_base_head():
            super().disable_adapters()

    def enable_adapters(self) -> None:
        """As the parent's, which forgets the decode head."""
        super().enable_adapters()
        for module in self._adapted():
            module.enable_adapters(True)
        active = self._active_name()
        if active is not None:
            self._activate(active)

    def delete_adapter(self, adapter_names: list[str] | str) -> None:
        """
        As the parent's: remove adapters from memory.

        If the active one is removed, the first of the others by name becomes active, with a warning. Without adapters
        the model is the plain base again. A warning says if its decode head, which may be random, takes over.
        """
        with self._warning_of_base_head():
            self._delete_adapter(adapter_names)

    def _delete_adapter(self, adapter_names: list[str] | str) -> None:
        active, disabled = self._active_name(), self._is_disabled()
        with warnings.catch_warnings():
            # Each layer would choose its successor among the adapters that it knows.
            warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
            super().delete_adapter(adapter_names)
        if not self._hf_peft_config_loaded:
            self._unwrap()
            # The last adapter's must not become those of the base, or of a new one.
            self.config.apply_head(self._own_fields or {})
            return
        successor = active if active is not None and active in self.peft_config else min(self.peft_config)
        self._activate(successor)
        if successor != active:
            warnings.warn(f"Adapter {active!r} was active and is deleted; {successor!r} is active now.", stacklevel=2)
        if disabled:
            super().disable_adapters()

    def _note_own_fields(self) -> None:
        if not getattr(self, "peft_config", None):
            self._own_fields = copy.deepcopy(self.config.describe_head())

    def _active_name(self) -> str | None:
        layers = [module for module in self.modules() if isinstance(module, BaseTunerLayer)]
        return layers[0].active_adapters[0] if layers and layers[0].active_adapters else None

    def _is_disabled(self) -> bool:
        return any(module.disable_adapters for module in self.modules() if isinstance(module, BaseTunerLayer))

    def _adapted(self) -> list[Any]:
        """Return the modules that contain adapters."""
        return [module for module in self.modules() if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper))]

    def _activate(self, name: str) -> None:
        """Let all parts of the model use one adapter, frozen if it was loaded for inference."""
        inference_mode = self.peft_config[name].inference_mode
        for module in self._adapted():
            if isinstance(module, BaseTunerLayer):
                module.set_adapter([name], inference_mode=inference_mode)
                continue
            # Not every adapter has a decode head of its own.
            module.set_adapter([name] if name in module.modules_to_save else [], inference_mode=inference_mode)
            for other, head in module.modules_to_save.items():
                if other != name:  # PEFT leaves those trainable that were so when an adapter was added
                    head.requires_grad_(False)
        switch_head_config(self, self.peft_config, name)

    def _check_name(self, name: str) -> None:
        """Refuse names that are parts of tensor names, by which PEFT and transformers tell adapters apart."""
        parts = {part for key, _ in self.named_parameters() for part in key.split(".")} | TAKEN_NAMES
        if "." in name or name in parts:
            raise ModelError(f"Choose another name than {name!r}: an adapter or a part of the model is called so.")

    @contextmanager
    def _all_or_nothing(self, name: str) -> Iterator[None]:
        """Add an adapter inside: to all parts of the model if it succeeds, to none if it fails."""
        disabled = self._is_disabled()
        trained = {parameter for parameter in self.parameters() if parameter.requires_grad}
        objects = [*self.modules(), self.config, *getattr(self, "peft_config", {}).values()]
        before = [(item, dict(vars(item)), _copies_of_dicts(item)) for item in objects]
        try:
            try:
                yield
            finally:  # also where PEFT has failed for this reason, which it does not name
                check_methods(self, getattr(self, "peft_config", {}))
        except Exception:
            for item, attributes, tables in before:
                vars(item).clear()
                vars(item).update(attributes)
                for table, content in tables:  # in place: handles of hooks refer to the table itself
                    table.clear()
                    table.update(content)
            for parameter in self.parameters():
                parameter.requires_grad_(parameter in trained)
            raise
        self._activate(name)
        self.train(self.training)  # new modules are in training mode,
        if disabled:  # and enabled
            super().disable_adapters()

    @contextmanager
    def _warning_of_base_head(self) -> Iterator[None]:
        """Warn at the end if the decode head is the base's own, and was an adapter's before."""
        head, before = getattr(self, "decode_head", None), self._head_is_adapters()
        yield
        if before and not self._head_is_adapters() and next(head.original_module.parameters(), None) is not None:
            warnings.warn(
                "The decode head is the base's own now, which is random unless it was trained. For what the CLIP "
                "alone finds, call get_training_free_logits, or the pipeline with training_free_weight=1.0.",
                stacklevel=4,
            )

    def _head_is_adapters(self) -> bool:
        head = getattr(self, "decode_head", None)
        return isinstance(head, ModulesToSaveWrapper) and not head.disable_adapters and bool(head.active_adapters)

    def _unwrap(self) -> None:
        """Put the base's own modules back in the places of those that contain adapters."""
        for path, module in list(self.named_modules()):
            parent, _, child = path.rpartition(".")
            if isinstance(module, BaseTunerLayer):
                setattr(self.get_submodule(parent), child, module.get_base_layer())
            elif isinstance(module, ModulesToSaveWrapper):
                setattr(self.get_submodule(parent), child, module.original_module)


def _copies_of_dicts(item: Any) -> list[tuple[dict, dict]]:
    return [(value, dict(value)) for value in vars(item).values() if isinstance(value, dict)]


@contextmanager
def quiet(condition: bool = True) -> Iterator[None]:
    """Keep transformers from logging, and so from its load report."""
    verbosity = logging.get_verbosity()
    if condition:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _check_loaded(place: str, info: LoadStateDictInfo) -> None:
    """Refuse an adapter with missing or unexpected tensors, or tensors of another size."""
    problems = [
        f"{key} is {tuple(stored)} there, {tuple(expected)} in this model"
        for key, stored, expected in sorted(info.mismatched_keys)
    ]
    problems += [f"it has no weights for {key}" for key in sorted(info.missing_keys)]
    problems += [f"the model has no {key}" for key in sorted(info.unexpected_keys)]
    if problems:
        raise ModelError(f"{place}: this adapter does not fit: {problems[0]}.")


def _check_in_memory(model: PreTrainedModel) -> None:
    """
    Refuse a `device_map` that offloads a whole encoder or a part of the decode head.

    Their prompts and weights would silently not be those of the adapter's file.
    """
    places = getattr(model, "hf_device_map", {})
    offloaded = {"disk"} if set(places.values()) <= {"cpu", "disk"} else {"cpu", "disk"}
    for name, module in model.named_modules():
        if not isinstance(module, (PromptLayer, ModulesToSaveWrapper)):
            continue
        for mapped, place in places.items():
            around = f"{name}.".startswith(f"{mapped}." if mapped else "")
            inside = isinstance(module, ModulesToSaveWrapper) and mapped.startswith(f"{name}.")
            if place in offloaded and (around or inside):
                hint = "" if inside or "encoder" not in name else f"map the layers of {name} one by one, or "
                raise ModelError(
                    f"device_map offloads {mapped or 'the model'} with weights of an adapter, which cannot be loaded "
                    f"there: {hint}keep it in memory."
                )


__all__ = ["AdapterModel", "quiet"]
