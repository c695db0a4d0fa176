"""A plain CLIP as a model that segments without training, by the method of NACLIP."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

from transformers import AutoImageProcessor, CLIPConfig, CLIPModel, PreTrainedConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file

from zegclip.modeling.adapters import quiet
from zegclip.modeling.configuration_zegclip import ZegClipConfig
from zegclip.modeling.model_error import ModelError
from zegclip.modeling.modeling_zegclip import ZegClipForSemanticSegmentation
from zegclip.processing.image_processing_zegclip import ZegClipImageProcessor
from zegclip.processing.names import DEFAULT_PROMPT_TEMPLATES
from zegclip.processing.processing_zegclip import ZegClipProcessor

logger = logging.getLogger(__name__)

SENTENCE = "{} is a plain CLIP: segmenting without training (NACLIP)."
"""What is said once about a plain CLIP."""
_PATCHES = 14
"""Least side of the windows, in patches: that of ViT-B/16 at 224 pixels, which the papers use."""
IMAGENET_TEMPLATES = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
"""The 80 templates that OpenAI published with CLIP for ImageNet, which the training-free papers use."""


def is_plain_clip(place: str, **kwargs: Any) -> bool:
    """Return whether a folder or Hub id is a CLIP without anything of this package's."""
    return PreTrainedConfig.get_config_dict(place, **kwargs)[0].get("model_type") == CLIPConfig.model_type


def training_free_fields(vocabulary: Sequence[str] | None = None) -> dict[str, Any]:
    """
    Return the fields of a [`ZegClipConfig`] that make a CLIP segment without training.

    Args:
        vocabulary: Words that the CLIP knows, `None` for any. The 80 templates have words that a small one lacks.
    """
    templates = IMAGENET_TEMPLATES if vocabulary is None else DEFAULT_PROMPT_TEMPLATES
    return {
        "decode_head_type": "similarity",
        "dense_attention": "naclip",
        "prompt_templates": list(templates),
    }


def image_processor_for(clip_config: CLIPConfig, image_processor: Any = None) -> ZegClipImageProcessor:
    """
    Return the image processor of NACLIP's protocol for a CLIP.

    With 14x14 patches of 16 pixels: short side 336 (the long one at most 2048), windows of 224 every 112. Other CLIPs
    get windows of as many patches as they were trained with, at least 14x14, and the same proportions.

    Args:
        clip_config: Of the CLIP.
        image_processor: The CLIP's own, whose mean and standard deviation are kept; by default OpenAI's.
    """
    vision = clip_config.vision_config
    window = max(vision.image_size // vision.patch_size, _PATCHES) * vision.patch_size
    return ZegClipImageProcessor(
        size={"shortest_edge": window * 3 // 2, "longest_edge": 2048},
        window_size=window,
        window_stride=window // 2,
        image_mean=getattr(image_processor, "image_mean", None) or OPENAI_CLIP_MEAN,
        image_std=getattr(image_processor, "image_std", None) or OPENAI_CLIP_STD,
    )


def load_image_processor(place: str, clip_config: CLIPConfig) -> ZegClipImageProcessor:
    """As [`image_processor_for`], with the statistics that a CLIP's folder or Hub id states, if it does."""
    files = (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME)
    is_there = any(cached_file(place, file, _raise_exceptions_for_missing_entries=False) for file in files)
    return image_processor_for(clip_config, AutoImageProcessor.from_pretrained(place) if is_there else None)


def from_clip(model: CLIPModel, processor: Any) -> tuple[ZegClipForSemanticSegmentation, ZegClipProcessor]:
    """
    Turn a CLIP and its processor into ours. Weights are shared.

    Args:
        model: A `CLIPModel`.
        processor: A `CLIPProcessor`, or a [`ZegClipProcessor`], whose settings and templates are then kept.

    Raises:
        ModelError: If weights of the CLIP are missing.
    """
    if not_loaded := _not_loaded(model):
        raise ModelError(f"{model.name_or_path}: not a whole CLIP; it has no weights for {not_loaded[0]}.")
    fields = training_free_fields(getattr(model.config, "vocabulary", None))
    if isinstance(processor, ZegClipProcessor):
        fields["prompt_templates"] = list(processor.prompt_templates)
    config = ZegClipConfig(clip_config=copy.deepcopy(model.config), **fields)  # the caller's is not to change
    with quiet():
        ours, info = ZegClipForSemanticSegmentation.from_pretrained(
            None,
            config=config,
            state_dict={f"clip.{name}": tensor for name, tensor in model.state_dict().items()},
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            output_loading_info=True,
        )
    if info["missing_keys"]:
        raise ModelError(
            f"This {type(model).__name__} is not a whole CLIP, as it has no weights called "
            f"{min(info['missing_keys']).removeprefix('clip.')}: give a CLIPModel whose adapters are merged."
        )
    ours.to(model.device)
    ours.name_or_path = ours.config._name_or_path = model.name_or_path
    if processor is not None and not isinstance(processor, ZegClipProcessor):
        image_processor = image_processor_for(model.config, processor.image_processor)
        processor = ZegClipProcessor(image_processor, processor.tokenizer, fields["prompt_templates"])
    logger.warning(SENTENCE.format(model.name_or_path or "This model"))
    return ours, processor


def _not_loaded(model: CLIPModel) -> list[str]:
    """Return the weights that `from_pretrained` did not find and drew at random, which it only logs."""
    mark = "_is_hf_initialized"
    if not any(hasattr(parameter, mark) for parameter in model.parameters()):
        return []  # It was not loaded.
    return [
        f"{name}.{part}".lstrip(".")
        for name, module in model.named_modules()
        if getattr(module, mark, False)  # not one that was put into the model later
        for part, parameter in module.named_parameters(recurse=False)
        if not getattr(parameter, mark, False)
    ]
