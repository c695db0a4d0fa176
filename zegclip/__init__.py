"""
Zero-shot semantic segmentation with CLIP for the Hugging Face ecosystem.

Importing this package registers the models with transformers' Auto classes, the deep prompts with PEFT, and the
pipeline `zero-shot-image-segmentation` with the embedded default model.
"""

from pathlib import Path

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

if not (Path(__file__).parent / "modeling").exists() and (Path(__file__).parents[1] / "setup.cfg").is_file():
    # A checkout that is not installed: the folders beside this one are this package's (see setup.cfg).
    __path__.append(str(Path(__file__).parents[1]))

from zegclip.modeling.configuration_zegclip import ZegClipConfig
from zegclip.modeling.modeling_zegclip import ZegClipForSemanticSegmentation
from zegclip.modeling.tuner_config_zegclip import DeepPromptConfig
from zegclip.modeling.tuner_zegclip import DeepPromptModel
from zegclip.processing.image_processing_pil_zegclip import ZegClipImageProcessorPil
from zegclip.processing.image_processing_zegclip import ZegClipImageProcessor
from zegclip.processing.pipeline_zegclip import TASK, ZeroShotImageSegmentationPipeline
from zegclip.processing.processing_zegclip import ZegClipProcessor

__version__ = "0.1.0"

DEFAULT_MODEL = Path(__file__).parent / "default_model"
"""A tiny CLIP pretrained on the generated picture world, with a ZegCLIP adapter trained on its seen classes."""

METRIC = str(Path(__file__).parent / "gzs_iou.py")
"""pAcc, mIoU of seen and unseen classes and hIoU for the `evaluate` library: `evaluate.load(zegclip.METRIC)`."""

AutoConfig.register(ZegClipConfig.model_type, ZegClipConfig)
AutoModel.register(ZegClipConfig, ZegClipForSemanticSegmentation)
AutoModelForSemanticSegmentation.register(ZegClipConfig, ZegClipForSemanticSegmentation)
AutoProcessor.register(ZegClipConfig, ZegClipProcessor)
AutoImageProcessor.register(
    ZegClipConfig, image_processor_classes={"pil": ZegClipImageProcessorPil, "torchvision": ZegClipImageProcessor}
)
PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=ZeroShotImageSegmentationPipeline,
    pt_model=AutoModelForSemanticSegmentation,
    default={"model": (str(DEFAULT_MODEL), "main")},
    type="multimodal",
)

__all__ = [
    "DEFAULT_MODEL",
    "METRIC",
    "DeepPromptConfig",
    "DeepPromptModel",
    "ZegClipConfig",
    "ZegClipForSemanticSegmentation",
    "ZegClipImageProcessor",
    "ZegClipImageProcessorPil",
    "ZegClipProcessor",
    "ZeroShotImageSegmentationPipeline",
]
