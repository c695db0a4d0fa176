"""Makes the models known to transformers' Auto classes, the deep prompts to PEFT, and the pipeline to `pipeline`."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from zegclip import DEFAULT_MODEL
from zegclip.modeling.configuration_zegclip import ZegClipConfig
from zegclip.modeling.modeling_zegclip import ZegClipForSemanticSegmentation  # registers the tuner too
from zegclip.processing.image_processing_pil_zegclip import ZegClipImageProcessorPil
from zegclip.processing.image_processing_zegclip import ZegClipImageProcessor
from zegclip.processing.pipeline_zegclip import TASK, ZeroShotImageSegmentationPipeline
from zegclip.processing.processing_zegclip import ZegClipProcessor

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
