"""Finding and loading models and processors, with errors that name the model and the reason."""

import json
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    StrictDataclassError,
)
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer
from transformers.tokenization_utils_base import FULL_TOKENIZER_FILE, TOKENIZER_CONFIG_FILE
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)
from transformers.utils.hub import get_checkpoint_shard_files

from zegclip.errors import sentence_of
from zegclip.modeling.adapters import quiet
from zegclip.modeling.base_fingerprint import OtherBaseWarning, are_same, warning_of_other_base
from zegclip.modeling.configuration_zegclip import ZegClipConfig
from zegclip.modeling.finite_weights import find_not_finite
from zegclip.modeling.model_error import ModelError, sentence_of_config_error
from zegclip.modeling.modeling_zegclip import ZegClipForSemanticSegmentation
from zegclip.modeling.prompt_config import DeepPromptConfig
from zegclip.modeling.prompt_tuner import head_fields
from zegclip.modeling.stored_adapter import StoredAdapter, is_missing_folder, read_description, read_json_object
from zegclip.plain_clip import is_plain_clip, load_image_processor, training_free_fields
from zegclip.processing.image_processing_zegclip import ZegClipImageProcessor
from zegclip.processing.names import check_templates
from zegclip.processing.processing_zegclip import ZegClipProcessor
from zegclip.processing.windows import is_out_of_memory, window_boxes

# A tokenizer has at least one of them.
_TOKENIZER_FILES = (TOKENIZER_CONFIG_FILE, FULL_TOKENIZER_FILE, "vocab.json")
_QUIETLY = {"_raise_exceptions_for_missing_entries": False}


def check_model_path(model: str | os.PathLike) -> str:
    """
    Return `model` as text if it is a model folder, or a Hub id that is in the cache or that the Hub knows.

    Raises:
        ModelError: If the path does not exist, the folder contains no model, a configuration is not a JSON object, or
            the model is neither in the cache nor on the Hub, or the Hub cannot be reached.
    """
    path = Path(model)
    if path.is_dir():
        if not any((path / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME)):
            raise ModelError(
                f"{path}: this folder contains no model (neither {CONFIG_NAME} nor {ADAPTER_CONFIG_NAME})."
            )
        for described in sorted(path.glob("*config.json")):
            read_json_object(described)
    elif path.exists():
        raise ModelError(f"{path}: a model is a folder, not a file; see `zegclip convert` for official checkpoints.")
    elif is_missing_folder(model):
        raise ModelError(f"{path}: there is no such model folder.")
    else:
        check_hub_id(str(model))
    return str(model)


def check_hub_id(model: str) -> None:
    """
    Raise a [`ModelError`] with the reason if a Hub id is not in the cache and cannot be downloaded.

    It sends one request. Without it, the libraries would ask for each of several files in turn, each time waiting
    and trying again for 20 seconds, and take the files for missing.
    """
    names = (CONFIG_NAME, ADAPTER_CONFIG_NAME, TOKENIZER_CONFIG_FILE)
    try:
        if any(isinstance(try_to_load_from_cache(model, name), str) for name in names):
            return
        get_hf_file_metadata(hf_hub_url(model, CONFIG_NAME))
    except EntryNotFoundError:
        return  # such as an adapter's repository
    except GatedRepoError as error:
        address = f"{constants.ENDPOINT}/{model}"
        raise ModelError(f"{model}: ask for access to this model at {address}, and log in: hf auth login.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{model}: there is neither such a folder nor such a model on the Hub, or it is private: hf auth login."
        ) from error
    except HFValidationError as error:
        raise ModelError(f"{model}: there is no such folder, and it is no Hub id: {sentence_of(error)}") from error
    except HfHubHTTPError as error:
        raise ModelError(f"{model}: the Hub refuses it: {error.server_message or sentence_of(error)}") from error
    except (HTTPError, OSError) as error:
        offline = isinstance(error, OfflineModeIsEnabled)
        reason = "HF_HUB_OFFLINE is set" if offline else sentence_of(error).rstrip(".")
        raise ModelError(
            f"{model}: there is no such folder, the model is not in the Hub's cache, and the Hub cannot be reached "
            f"({reason})."
        ) from error


def base_of(model: str) -> str:
    """Return where the base of a checked model is: in the same folder, or where its adapter says."""
    adapter = StoredAdapter.find(model)
    if adapter is None:
        return model
    if adapter.base != model and not os.path.isdir(adapter.base):
        check_hub_id(adapter.base)
    return adapter.base


def load_model(model: str | os.PathLike) -> ZegClipForSemanticSegmentation:
    """
    Load a model in eval mode, with its adapter if it has one, and check that none of its weights is missing.

    A plain CLIP becomes a model that segments without training, see [`training_free_fields`].

    Raises:
        ModelError: For a path without a model, a damaged or contradictory one, weights that are not finite or
            incomplete, or if the Hub cannot be reached.
    """
    name = check_model_path(model)
    with _loading(name):
        base = base_of(name)
        plain = is_plain_clip(name)
        fields = _fields_of_plain_clip(name) if plain else {}
        # What transformers would log about missing and mismatched weights becomes an error below.
        loaded, info = ZegClipForSemanticSegmentation.from_pretrained(name, output_loading_info=True, **fields)
    has_adapter = hasattr(loaded, "peft_config")  # which brings a decode head, unless it is another method's
    if has_adapter and not hasattr(loaded.decode_head, "modules_to_save") and is_plain_clip(base):
        raise ModelError(
            f"{name}: this adapter of a plain CLIP has no decode_head: to segment without training, merge it into the "
            "CLIP (merge_and_unload) and save that."
        )
    missing = sorted(key for key in info["missing_keys"] if not (has_adapter and key.startswith("decode_head.")))
    if missing:
        more = f" and {len(missing) - 1} other parts." if len(missing) > 1 else "."
        what = "a whole CLIP" if plain else "a trained segmentation model"
        raise ModelError(f"{name}: not {what}; it has no weights for {missing[0]}{more}")
    _check_weights(name, loaded, info, other_head=has_adapter)
    return loaded.eval()


def _fields_of_plain_clip(name: str) -> dict[str, Any]:
    fields = training_free_fields(ZegClipConfig.from_pretrained(name).vocabulary)
    if (processor := _stored_processor(name)) is not None:
        fields["prompt_templates"] = processor.prompt_templates
    return fields


@contextmanager
def _loading(place: str, what: str = "model") -> Iterator[None]:
    """Keep the libraries from logging, and turn their errors about a stored model into one that names the model."""
    try:
        with quiet():
            yield
    except Exception as error:  # A configuration with wrong values can make them raise anything.
        named = isinstance(error, ValueError) and str(error).startswith((f"{place}:", os.path.join(place, "")))
        if named or is_out_of_memory(error):
            raise
        raise ModelError(f"{place}:{_reason(error, place, what)}") from error


def _reason(error: Exception, place: str, what: str) -> str:
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, OSError):
        return f" this {what} cannot be loaded: {sentence_of(error)}"
    if isinstance(error, RuntimeError) and "mismatched" in str(error):
        return f" the weights of this {what} do not have the sizes that its configuration says."
    reason = f"{type(error).__name__}: {lines[0]}"
    if isinstance(error, StrictDataclassError):
        reason = sentence_of_config_error(error)
    elif isinstance(error, pickle.UnpicklingError):
        reason = "its weights are a pickle of more than plain tensors"  # PyTorch would advise to trust them.
    elif isinstance(error, (ValueError, SafetensorError)):
        reason = lines[0]
    return f" this {what} cannot be loaded: {reason}"


def _check_weights(
    name: str, loaded: ZegClipForSemanticSegmentation, info: Mapping[str, Any], *, other_head: bool
) -> None:
    """Refuse weights that are not finite, and those of layers that the configuration does not have."""
    for key in sorted(info["unexpected_keys"]):  # Others are not read, and do no harm.
        if ".layers." in key and not (other_head and key.startswith("decode_head.")):
            raise ModelError(f"{name}: its weights have {key}, for which its configuration has no layer.")
    _check_finite(name, "model", loaded.state_dict())


def _check_finite(place: str | os.PathLike, what: str, tensors: Mapping[str, torch.Tensor]) -> None:
    broken = find_not_finite(tensors.items())
    if broken is not None:
        raise ModelError(f"{place}: the weights of this {what} are damaged: {broken} has NaN or infinite values.")


def read_base_config(model: str | os.PathLike) -> ZegClipConfig:
    """
    Read the configuration of a model's base, a plain CLIP's included.

    Raises:
        ModelError: As [`load_model`], without looking at the weights.
    """
    name = check_model_path(model)
    with _loading(name):
        return ZegClipConfig.from_pretrained(base_of(name))


HEAD_FIELDS = frozenset(
    {
        *("descriptor", "decode_head_init", "num_decoder_layers", "decoder_attention_heads", "decoder_ffn_dim"),
        *("decoder_dropout", "decoder_window_size", "decoder_low_frequency_heads", "decoder_top_k", "out_indices"),
        *("focal_weight", "focal_alpha", "focal_gamma", "dice_weight", "ssim_weight", "ssim_of_probabilities"),
        *("cross_entropy_weight", "ignored_pixels_as_negatives"),
    }
)
"""Fields of a configuration that are of a decode head and its training."""


def config_of_base(stored: ZegClipConfig, overrides: Mapping[str, Any]) -> ZegClipConfig:
    """
    Replace fields of the configuration of a model that another decode head is put on.

    For a head of another type, the fields of heads and losses are the defaults unless they are given: those of the
    head that was trained before mean something else, or belong to another method. What another head's scores were
    blended with is never kept.

    Args:
        stored: The model's configuration.
        overrides: Fields to replace.
    """
    fields = stored.to_dict()
    if overrides.get("decode_head_type", stored.decode_head_type) != stored.decode_head_type:
        fields = {name: value for name, value in fields.items() if name not in HEAD_FIELDS}
    return ZegClipConfig.from_dict(fields | {"training_free_weight": 0.0} | dict(overrides))


def load_base(model: str | os.PathLike, overrides: dict[str, Any]) -> ZegClipForSemanticSegmentation:
    """
    Load a CLIP to train another decode head or adapter on: a plain CLIP, or the base of an adapter.

    It is in float32, whatever the dtype of its files: in half precision the prompts' gradients would underflow.

    Args:
        model: Folder or Hub id.
        overrides: Fields of the configuration to replace.

    Raises:
        ModelError: As [`load_model`], or if weights of the CLIP are missing.
    """
    name = check_model_path(model)
    stored = read_base_config(name)
    base = base_of(name)
    config = config_of_base(stored, overrides)
    kwargs: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    other_head = config.decode_head_type != stored.decode_head_type
    kwargs["ignore_mismatched_sizes"] = other_head  # The CLIP's are checked below.
    with _loading(name):  # a new decode head is expected here
        if StoredAdapter.find(base) is None:
            loaded, info = ZegClipForSemanticSegmentation.from_pretrained(base, **kwargs)
        else:
            # Given the folder, `from_pretrained` would load the adapter beside the base, too.
            clip = {key: tensor for key, tensor in _load_weights(base).items() if key.startswith("clip.")}
            loaded, info = ZegClipForSemanticSegmentation.from_pretrained(None, state_dict=clip, **kwargs)
            loaded.config._name_or_path = loaded.name_or_path = base
    if other_head:
        # Heads of different types share some names: what was loaded of the stored one must not stay.
        head = {f"decode_head.{key}" for key in loaded.decode_head.state_dict()}
        if head - info["missing_keys"]:
            loaded.decode_head = type(loaded.decode_head)(config).apply(loaded._init_weights)
    if any(key.startswith("clip.") for key, *_ in info["mismatched_keys"]):
        raise ModelError(f"{model}: the weights of this model do not have the sizes that its configuration says.")
    missing = sorted(key for key in info["missing_keys"] if key.startswith("clip."))
    if missing:
        raise ModelError(f"{model}: not a whole CLIP: {len(missing)} weights are missing, such as {missing[0]}.")
    _check_weights(name, loaded, info, other_head=True)
    return loaded


def _load_weights(place: str) -> dict[str, torch.Tensor]:
    """Load all tensors of a folder or Hub id, from one file or several."""
    whole = cached_file(place, SAFE_WEIGHTS_NAME, **_QUIETLY)
    if whole is not None:
        return load_file(whole)
    index = cached_file(place, SAFE_WEIGHTS_INDEX_NAME)
    paths, _ = get_checkpoint_shard_files(place, index)
    return {name: tensor for path in paths for name, tensor in load_file(path).items()}


def check_adapter_path(adapter: str | os.PathLike) -> None:
    """
    Look for the folder of an adapter, or for its Hub id as [`check_model_path`] does.

    Raises:
        ModelError: If it is not there.
    """
    if is_missing_folder(adapter):
        raise ModelError(f"{adapter}: there is no such adapter folder.")
    if not os.path.isdir(adapter):
        check_hub_id(str(adapter))


def load_adapter_into(model: PeftModel, adapter: str | os.PathLike) -> dict[str, Any]:
    """
    Load the weights of a stored adapter into a new one of the same shape, which stays trainable.

    PEFT's own loading accepts tensors of the same sizes that mean something else, and ignores missing ones.

    Args:
        model: From `get_peft_model`.
        adapter: Folder or Hub id.

    Returns:
        The stored adapter's part of the model's configuration, which the model's own is not changed by.

    Raises:
        ModelError: If there is no adapter, it is damaged, or its prompts or its decode head are different.
    """
    check_adapter_path(adapter)
    peft_config = model.active_peft_config
    with _loading(str(adapter), "adapter"):
        described_in = find_adapter_config_file(str(adapter))
        if described_in is None:
            raise ModelError(f"{adapter}: there is no adapter (no {ADAPTER_CONFIG_NAME}).")
        read_description(described_in)
        stored = PeftConfig.from_pretrained(str(adapter))
        if not isinstance(stored, DeepPromptConfig):
            raise ModelError("it has no deep prompts.")
        num_layers = model.config.clip_config.vision_config.num_hidden_layers
        there, here = _meaning_of(stored, num_layers), _meaning_of(peft_config, num_layers)
        weights = load_peft_weights(str(adapter), device="cpu")
    config = json.loads(json.dumps(model.config.describe_head()))  # with lists for tuples, as in the stored one
    stored_config = getattr(stored, "model_config", None) or {}
    own = get_peft_model_state_dict(model)
    differences = [
        (name, getattr(stored, name), getattr(peft_config, name))
        for name in there
        if there[name] != here[name] and getattr(stored, name) != getattr(peft_config, name)
    ]  # Whether there are such prompts at all is told by the tensors below.
    differences += [
        (f"decode head's {name}", stored_config[name], config[name])
        for name in head_fields(config["decode_head_type"])
        if stored_config.get(name, config[name]) != config[name]
    ]
    differences += [
        (name, *(tuple(tensors[name].shape) if name in tensors else "missing" for tensors in (weights, own)))
        for name in sorted(own.keys() | weights.keys())
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    ]
    for name, there, here in differences:
        raise ModelError(f"{adapter}: this adapter does not fit: its {name} is {there}, the model's is {here}.")
    if not are_same(stored.made_for, peft_config.base_fingerprint):
        base = stored.clip_model_name_or_path or stored.base_model_name_or_path
        sentence = warning_of_other_base(adapter, base, peft_config.base_model_name_or_path)
        warnings.warn(sentence, OtherBaseWarning, stacklevel=2)
    _check_finite(adapter, "adapter", weights)
    set_peft_model_state_dict(model, weights)
    return stored_config


def _meaning_of(config: DeepPromptConfig, num_layers: int) -> dict[str, Any]:
    """Return what decides what an adapter's tensors mean in a vision tower of `num_layers`, however it is written."""
    prompted = config.prompted_layers(num_layers)
    return {
        "num_deep_layers": (list(prompted), bool(prompted) and config.num_deep_layers == 0),
        "spectral_layers": config.filtered_layers(num_layers),
        "double_class_embedding": config.double_class_embedding,
        "text_prompts": config.text_prompts,
        "text_prompt_ids": None if config.text_prompts is None else list(config.text_prompt_ids or ()),
    }


def load_processor(
    model: str | os.PathLike,
    prompt_templates: list[str] | None = None,
    *,
    for_training: bool = False,
    **image_processor_kwargs: Any,
) -> ZegClipProcessor:
    """
    Load a model's processor, the one of an adapter's base where it has none, or create one for a plain CLIP.

    To segment with a plain CLIP, its own statistics, NACLIP's sizes and the 80 templates are right; to train on it,
    those of ZegCLIP.

    Args:
        model: Folder or Hub id with a tokenizer.
        prompt_templates: Instead of those of the model's configuration, an adapter's if it has one. A plain CLIP's
            has none, and leaves those of its processor.
        for_training: Whether a plain CLIP is to be trained on.
        **image_processor_kwargs: Attributes of the image processor to replace, such as `size`; of the latter, a limit
            of the long side stays if only the short side is given.

    Raises:
        ModelError: If there is neither a processor nor a tokenizer, or one of them is damaged.
    """
    name = check_model_path(model)
    processor = _stored_processor(name)
    base = name if processor is not None else base_of(name)  # which need not be there
    if processor is None:
        processor = _stored_processor(base)
    if processor is None:
        with _loading(base, "tokenizer of a model without a processor"):
            if not _has_tokenizer(base):  # Without files, transformers would create a CLIP tokenizer of two tokens.
                if not os.path.isdir(base):
                    cached_file(base, TOKENIZER_CONFIG_FILE)  # says that the Hub cannot be reached
                raise ModelError(f"{base}: the model has no processor, and no tokenizer to create one with.")
            tokenizer = AutoTokenizer.from_pretrained(base)
        images = _stored_image_processor(name) or _stored_image_processor(base) or ZegClipImageProcessor()
        processor = ZegClipProcessor(images, tokenizer)
        if is_plain_clip(name) and not for_training:
            config = ZegClipConfig.from_pretrained(name)
            processor.image_processor = load_image_processor(name, config.clip_config)
            processor.prompt_templates = training_free_fields(config.vocabulary)["prompt_templates"]
    image_processor = processor.image_processor
    with _loading(name, "processor"):
        # Wrong settings show when an image and a text are processed.
        image_processor(Image.new("RGB", (1, 1)))
        window_boxes(1, 1, image_processor.window_size, image_processor.window_stride)
        processor.tokenizer(["a"], padding=True)
    stated = prompt_templates or ZegClipConfig.get_config_dict(name)[0].get("prompt_templates")
    if stated:
        processor.prompt_templates = check_templates(stated)
    for attribute, value in image_processor_kwargs.items():
        if attribute == "size" and value.keys() == {"shortest_edge"}:
            limit = {key: length for key, length in dict(image_processor.size).items() if key == "longest_edge"}
            value = limit | value
        setattr(image_processor, attribute, value)
    return processor


def _stored_processor(place: str) -> ZegClipProcessor | None:
    """Load the processor of a folder or Hub id if it has a whole one, tokenizer included."""
    stored = cached_file(place, PROCESSOR_NAME, **_QUIETLY)
    # A plain CLIP's is of another class, and an adapter folder may have no tokenizer.
    if stored is None or "ZegClip" not in str(read_json_object(stored)):
        return None
    if not _has_tokenizer(place):
        return None
    with _loading(place, "processor"):
        return ZegClipProcessor.from_pretrained(place)


def _stored_image_processor(place: str) -> ZegClipImageProcessor | None:
    """Load the image processor of a folder or Hub id if it was saved alone."""
    stored = cached_file(place, IMAGE_PROCESSOR_NAME, **_QUIETLY)
    if stored is None or "ZegClip" not in str(read_json_object(stored)):
        return None
    with _loading(place, "image processor"):
        return ZegClipImageProcessor.from_pretrained(place)


def _has_tokenizer(place: str) -> bool:
    return any(cached_file(place, file, **_QUIETLY) is not None for file in _TOKENIZER_FILES)
