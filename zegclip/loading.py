"""Finding and loading models and processors, with errors that say what is wrong."""

import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
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
    PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
    logging,
)
from transformers.utils.hub import get_checkpoint_shard_files

from zegclip.modeling.base_fingerprint import OtherBaseWarning, are_same, warning_of_other_base
from zegclip.modeling.configuration_zegclip import ZegClipConfig
from zegclip.modeling.finite_weights import find_not_finite
from zegclip.modeling.model_error import sentence_of_config_error
from zegclip.modeling.modeling_zegclip import ZegClipForSemanticSegmentation
from zegclip.modeling.prompt_tuner import head_fields
from zegclip.modeling.stored_adapter import (
    StoredAdapter,
    is_missing_folder,
    read_description,
    read_json_object,
)
from zegclip.processing.image_processing_zegclip import ZegClipImageProcessor
from zegclip.processing.processing_zegclip import ZegClipProcessor
from zegclip.processing.windows import is_out_of_memory, window_boxes

# One of them is enough for a tokenizer.
_TOKENIZER_FILES = (TOKENIZER_CONFIG_FILE, FULL_TOKENIZER_FILE, "vocab.json")
# What decides where an adapter's prompts stand, and so what its tensors mean.
_PLACES_OF_PROMPTS = (
    "num_deep_layers",
    "spectral_layers",
    "double_class_embedding",
    "text_prompts",
    "text_prompt_ids",
)


def check_model_path(model: str | os.PathLike) -> str:
    """
    Return `model` as text if it is a model folder or can be a Hub id.

    Raises:
        ValueError: One sentence, for a path that does not exist, a folder without a model, or one whose configuration
            is no JSON object.
    """
    path = Path(model)
    if path.is_dir():
        if not any((path / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME)):
            raise ValueError(f"{path}: this folder holds no model (neither {CONFIG_NAME} nor {ADAPTER_CONFIG_NAME}).")
        for described in sorted(path.glob("*config.json")):
            read_json_object(described)
    elif path.exists():
        raise ValueError(f"{path}: a model is a folder, not a file; see `zegclip convert` for official checkpoints.")
    elif is_missing_folder(model):
        raise ValueError(f"{path}: there is no such model folder.")
    return str(model)


def base_of(model: str) -> str:
    """Return where the base of a checked model lies: in the same folder, or where its adapter says."""
    adapter = StoredAdapter.find(model)
    return model if adapter is None else adapter.base


def load_model(model: str | os.PathLike) -> ZegClipForSemanticSegmentation:
    """
    Load a model in eval mode, with its adapter if it has one, and make sure that nothing of it is left untrained.

    Raises:
        ValueError: One sentence, for a path without a model, a broken or contradictory one, or weights that lack
            something, such as those of a plain CLIP, or are no numbers, or if the Hub cannot be reached.
    """
    name = check_model_path(model)
    with _loading(name):
        # All that transformers would say about missing and mismatched weights becomes an error below.
        loaded, info = ZegClipForSemanticSegmentation.from_pretrained(name, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if hasattr(loaded, "peft_config"):
        missing = [key for key in missing if not key.startswith("decode_head.")]  # the adapter brings its own
    if missing:
        raise ValueError(
            f"{name}: this is no trained segmentation model; it has no weights for {missing[0]}"
            + (f" and {len(missing) - 1} other parts." if len(missing) > 1 else ".")
        )
    _check_weights(name, loaded, info, other_head=hasattr(loaded, "peft_config"))
    return loaded.eval()


@contextmanager
def _loading(place: str, what: str = "model") -> Iterator[None]:
    """Keep the libraries quiet, and turn what they raise about a stored model into one sentence that names it."""
    try:
        with _quiet():
            yield
    except Exception as error:  # A description that lies can make them raise anything.
        lines = str(error).strip().splitlines() or [""]
        ours = type(error) is ValueError and lines[0].startswith((f"{place}:", os.path.join(place, "")))
        if ours or is_out_of_memory(error):
            raise
        if isinstance(error, OSError):
            where = "" if os.path.isdir(place) else f" no folder, and no {what} that can be had from the Hub:"
            raise ValueError(f"{place}:{where} {lines[0]}") from error
        if isinstance(error, RuntimeError) and "mismatched" in str(error):
            raise ValueError(
                f"{place}: this {what}'s weights do not have the sizes that its configuration says."
            ) from error
        if isinstance(error, StrictDataclassError):
            reason = sentence_of_config_error(error)
        elif isinstance(error, pickle.UnpicklingError):
            reason = "its weights are a pickle of more than plain tensors"  # PyTorch would advise to trust them.
        elif isinstance(error, (ValueError, SafetensorError)):
            reason = lines[0]
        else:
            reason = f"{type(error).__name__}: {lines[0]}"
        raise ValueError(f"{place}: this {what} cannot be loaded: {reason}") from error


def _check_weights(
    name: str, loaded: ZegClipForSemanticSegmentation, info: Mapping[str, Any], *, other_head: bool
) -> None:
    """Refuse weights that are no numbers, and those of layers that the configuration leaves out."""
    for key in sorted(info["unexpected_keys"]):  # Others that nothing reads do no harm.
        if ".layers." in key and not (other_head and key.startswith("decode_head.")):
            raise ValueError(f"{name}: its weights have {key}, for which its configuration has no layer.")
    broken = find_not_finite(loaded.state_dict().items())
    if broken is not None:
        raise ValueError(f"{name}: this model's weights are broken: {broken} holds NaN or infinite values.")


def load_base(model: str | os.PathLike, overrides: dict[str, Any]) -> ZegClipForSemanticSegmentation:
    """
    Load a CLIP to put another decode head or adapter on: a plain CLIP, or what an adapter was trained on.

    It is in float32, whatever its files are in: gradients of half precision would vanish on their way to the prompts.

    Args:
        model: Folder or Hub id.
        overrides: Fields of the configuration to replace.

    Raises:
        ValueError: As [`load_model`], or if weights of the CLIP are missing.
    """
    name = check_model_path(model)
    with _loading(name):
        base = base_of(name)
        stored = ZegClipConfig.from_pretrained(base)
    config = ZegClipConfig.from_dict(stored.to_dict() | overrides)
    with _loading(name):  # that the decode head is new is what was asked for
        if StoredAdapter.find(base) is None:
            loaded, info = ZegClipForSemanticSegmentation.from_pretrained(
                base, config=config, dtype=torch.float32, output_loading_info=True
            )
        else:
            # `from_pretrained` would load the adapter beside it too.
            state_dict = _load_weights(base)
            clip_only = {name: tensor for name, tensor in state_dict.items() if name.startswith("clip.")}
            loaded, info = ZegClipForSemanticSegmentation.from_pretrained(
                None, config=config, state_dict=clip_only, dtype=torch.float32, output_loading_info=True
            )
            loaded.config._name_or_path = loaded.name_or_path = base
    if config.decode_head_type != stored.decode_head_type:
        # Heads of different kinds share some names: what was loaded of the stored one must not stay.
        head = {f"decode_head.{name}" for name in loaded.decode_head.state_dict()}
        if head - info["missing_keys"]:
            loaded.decode_head = type(loaded.decode_head)(config).apply(loaded._init_weights)
    missing = sorted(name for name in info["missing_keys"] if name.startswith("clip."))
    if missing:
        raise ValueError(f"{model}: this is no whole CLIP: {len(missing)} weights are missing, such as {missing[0]}.")
    _check_weights(name, loaded, info, other_head=True)
    return loaded


def _load_weights(place: str) -> dict[str, torch.Tensor]:
    """Load all tensors of a folder or Hub id, from one file or several."""
    whole = cached_file(place, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    if whole is not None:
        return load_file(whole)
    index = cached_file(place, SAFE_WEIGHTS_INDEX_NAME)
    paths, _ = get_checkpoint_shard_files(place, index)
    return {name: tensor for path in paths for name, tensor in load_file(path).items()}


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def load_adapter_into(model: PeftModel, adapter: str | os.PathLike) -> None:
    """
    Put the weights of a stored adapter into a fresh one of the same shape, which stays trainable.

    Args:
        model: From `get_peft_model`.
        adapter: Folder or Hub id.

    Raises:
        ValueError: One sentence, if there is no adapter, it is broken, or its prompts or its decode head are others.
    """
    if is_missing_folder(adapter):
        raise ValueError(f"{adapter}: there is no such adapter folder.")
    with _loading(str(adapter), "adapter"):
        described_in = find_adapter_config_file(str(adapter))
        if described_in is None:
            raise ValueError(f"{adapter}: there is no adapter (no {ADAPTER_CONFIG_NAME}).")
        read_description(described_in)
        stored = PeftConfig.from_pretrained(str(adapter))
        weights = load_peft_weights(str(adapter), device="cpu")
    config = model.active_peft_config
    for name in _PLACES_OF_PROMPTS:
        # Tensors of the same sizes, which mean something else.
        if getattr(stored, name, None) != getattr(config, name):
            raise ValueError(
                f"{adapter}: this adapter does not fit: its {name} is {getattr(stored, name, None)}, here it is "
                f"{getattr(config, name)}."
            )
    described, expected = stored.model_config or {}, config.model_config
    for name in head_fields(expected["decode_head_type"]):
        if described.get(name, expected[name]) != expected[name]:
            raise ValueError(
                f"{adapter}: this adapter does not fit: its decode head has {name}={described[name]}, the model's "
                f"{expected[name]}."
            )
    own = get_peft_model_state_dict(model)
    for name in sorted(own.keys() ^ weights.keys()):
        raise ValueError(
            f"{adapter}: this adapter does not fit, as its decode head or its prompts are others: only "
            f"{'it' if name in weights else 'the model'} has {name}."
        )
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            raise ValueError(
                f"{adapter}: this adapter does not fit: {name} is {tuple(weights[name].shape)} there, "
                f"{tuple(tensor.shape)} in the model."
            )
    if not are_same(stored.made_for, config.base_fingerprint):
        base, here = stored.clip_model_name_or_path or stored.base_model_name_or_path, config.base_model_name_or_path
        warnings.warn(warning_of_other_base(adapter, base, here), OtherBaseWarning, stacklevel=2)
    broken = find_not_finite(weights.items())
    if broken is not None:
        raise ValueError(f"{adapter}: this adapter's weights are broken: {broken} holds NaN or infinite values.")
    set_peft_model_state_dict(model, weights)


def load_processor(
    model: str | os.PathLike, prompt_templates: list[str] | None = None, **image_processor_kwargs: Any
) -> ZegClipProcessor:
    """
    Load a model's processor, that of an adapter's base where it has none, or make one for a plain CLIP.

    Args:
        model: Folder or Hub id with a tokenizer.
        prompt_templates: Instead of the stored ones.
        **image_processor_kwargs: Attributes of the image processor to replace, such as `size`.

    Raises:
        ValueError: One sentence, if there is neither processor nor tokenizer, or one of them is broken.
    """
    name = check_model_path(model)
    processor = _stored_processor(name) or _stored_processor(base_of(name))
    if processor is None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(base_of(name))
        except Exception as error:  # Of any kind: tokenizers raises plain ones.
            raise ValueError(f"{name}: the model has no processor, and no tokenizer to make one with.") from error
        # A plain CLIP's own picture settings (CLIP's statistics, a square crop) are not ZegCLIP's.
        processor = ZegClipProcessor(ZegClipImageProcessor(), tokenizer)
    image_processor = processor.image_processor
    with _loading(name, "processor"):
        # Whether its settings make sense shows with a picture and a text.
        image_processor(Image.new("RGB", (1, 1)))
        window_boxes(1, 1, image_processor.window_size, image_processor.window_stride)
        processor.tokenizer(["a"], padding=True)
    if prompt_templates:
        processor.prompt_templates = prompt_templates
    for attribute, value in image_processor_kwargs.items():
        setattr(image_processor, attribute, value)
    return processor


def _stored_processor(place: str) -> ZegClipProcessor | None:
    """Load the processor of a folder or Hub id if it has a whole one, tokenizer included."""
    quietly = {"_raise_exceptions_for_missing_entries": False}
    stored = cached_file(place, PROCESSOR_NAME, **quietly)
    # A plain CLIP's is another, and an adapter folder may hold no tokenizer.
    if stored is None or "ZegClip" not in str(read_json_object(stored)):
        return None
    if all(cached_file(place, file, **quietly) is None for file in _TOKENIZER_FILES):
        return None
    with _loading(place, "processor"):
        return ZegClipProcessor.from_pretrained(place)
