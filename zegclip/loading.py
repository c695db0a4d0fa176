"""Finding and loading models and processors, local paths first, with errors that say what is wrong."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import AutoTokenizer
from transformers.utils import CONFIG_NAME, PROCESSOR_NAME, SAFE_WEIGHTS_NAME, cached_file, find_adapter_config_file

from zegclip.modeling.configuration_zegclip import ZegClipConfig
from zegclip.modeling.modeling_zegclip import ZegClipForSemanticSegmentation
from zegclip.processing.image_processing_zegclip import ZegClipImageProcessor
from zegclip.processing.processing_zegclip import ZegClipProcessor

ADAPTER_CONFIG_NAME = "adapter_config.json"


def check_model_path(model: str | os.PathLike) -> str:
    """
    Return `model` as text if it is a model folder or can be a Hub id.

    Raises:
        ValueError: One sentence, for a path that does not exist or a folder without a model.
    """
    path = Path(model)
    if path.is_dir():
        if not any((path / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME)):
            raise ValueError(f"{path}: this folder holds no model (neither {CONFIG_NAME} nor {ADAPTER_CONFIG_NAME}).")
    elif path.exists():
        raise ValueError(f"{path}: a model is a folder, not a file; see `zegclip convert` for official checkpoints.")
    elif path.is_absolute() or str(model).startswith((".", "~")) or str(model).count("/") != 1:
        raise ValueError(f"{path}: there is no such model folder.")
    return str(model)


def load_model(model: str | os.PathLike, **kwargs: Any) -> ZegClipForSemanticSegmentation:
    """Load a model with its adapter, in eval mode; `kwargs` are `from_pretrained`'s."""
    return ZegClipForSemanticSegmentation.from_pretrained(check_model_path(model), **kwargs).eval()


def load_base(model: str | os.PathLike, overrides: dict[str, Any]) -> ZegClipForSemanticSegmentation:
    """
    Load a CLIP to put another decode head or adapter on: a plain CLIP, or what an adapter was trained on.

    Args:
        model: Folder or Hub id.
        overrides: Fields of the configuration to replace.
    """
    model = check_model_path(model)
    adapter_config = find_adapter_config_file(model)
    beside_base = os.path.isfile(os.path.join(model, CONFIG_NAME))
    if adapter_config is not None and not beside_base:
        model = json.loads(Path(adapter_config).read_text(encoding="utf-8"))["base_model_name_or_path"]
    config = ZegClipConfig.from_pretrained(model)
    config = ZegClipConfig.from_dict(config.to_dict() | overrides)
    if adapter_config is not None and beside_base:
        # `from_pretrained` would load the adapter too.
        state_dict = load_file(os.path.join(model, SAFE_WEIGHTS_NAME))
        clip_only = {name: tensor for name, tensor in state_dict.items() if name.startswith("clip.")}
        return ZegClipForSemanticSegmentation.from_pretrained(None, config=config, state_dict=clip_only)
    return ZegClipForSemanticSegmentation.from_pretrained(model, config=config)


def load_processor(
    model: str | os.PathLike, prompt_templates: list[str] | None = None, **image_processor_kwargs: Any
) -> ZegClipProcessor:
    """
    Load a model's processor, or make one for a plain CLIP.

    Args:
        model: Folder or Hub id with a tokenizer.
        prompt_templates: Instead of the stored ones.
        **image_processor_kwargs: Attributes of the image processor to replace, such as `size`.
    """
    model = check_model_path(model)
    stored = cached_file(model, PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False)
    if stored is not None and "ZegClipProcessor" in Path(stored).read_text(encoding="utf-8"):
        processor = ZegClipProcessor.from_pretrained(model)
    else:
        # A plain CLIP's own picture settings (CLIP's statistics, a square crop) are not ZegCLIP's.
        processor = ZegClipProcessor(ZegClipImageProcessor(), AutoTokenizer.from_pretrained(model))
    if prompt_templates:
        processor.prompt_templates = prompt_templates
    for name, value in image_processor_kwargs.items():
        setattr(processor.image_processor, name, value)
    return processor
