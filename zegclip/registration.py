"""Makes the models known to transformers' Auto classes, the deep prompts to PEFT, and the pipeline to `pipeline`."""

from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.pipelines import PIPELINE_REGISTRY

from zegclip import DEFAULT_MODEL
from zegclip.modeling.configuration_zegclip import ZegClipConfig
from zegclip.modeling.modeling_zegclip import ZegClipForSemanticSegmentation  # registers the tuner too
from zegclip.modeling.stored_adapter import StoredAdapter
from zegclip.processing.image_processing_pil_zegclip import ZegClipImageProcessorPil
from zegclip.processing.image_processing_zegclip import ZegClipImageProcessor
from zegclip.processing.pipeline import TASK, ZeroShotImageSegmentationPipeline
from zegclip.processing.processing_zegclip import ZegClipProcessor


def push_to_hub(model: ZegClipForSemanticSegmentation, repo_id: str, **kwargs: Any) -> str:
    """See [`zegclip.sharing.publishing.push`], which is imported when it is called: it needs time."""
    from zegclip.sharing.publishing import push

    return push(model, repo_id, **kwargs)


def from_clip(model: Any, processor: Any) -> tuple[Any, Any]:
    """See [`zegclip.plain_clip.from_clip`], imported likewise: that module may be what is being imported."""
    from zegclip.plain_clip import from_clip as turn

    return turn(model, processor)


def load_processor(folder: str, for_training: bool = False) -> Any:
    """See [`zegclip.loading.load_processor`]."""
    from zegclip.loading import load_processor as load

    return load(folder, for_training=for_training)


StoredAdapter.embedded = str(DEFAULT_MODEL)
ZegClipForSemanticSegmentation._publish = push_to_hub
ZeroShotImageSegmentationPipeline._from_clip = from_clip
ZeroShotImageSegmentationPipeline._load_stored_processor = load_processor
# Again where an earlier attempt was interrupted.
AutoConfig.register(ZegClipConfig.model_type, ZegClipConfig, exist_ok=True)
AutoModel.register(ZegClipConfig, ZegClipForSemanticSegmentation, exist_ok=True)
AutoModelForSemanticSegmentation.register(ZegClipConfig, ZegClipForSemanticSegmentation, exist_ok=True)
# By these names the pipeline "image-segmentation" knows which models it supports.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[ZegClipConfig.model_type] = ZegClipForSemanticSegmentation.__name__
AutoProcessor.register(ZegClipConfig, ZegClipProcessor, exist_ok=True)
AutoImageProcessor.register(
    ZegClipConfig,
    image_processor_classes={"pil": ZegClipImageProcessorPil, "torchvision": ZegClipImageProcessor},
    exist_ok=True,
)
PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=ZeroShotImageSegmentationPipeline,
    pt_model=(AutoModelForSemanticSegmentation, AutoModel),  # the second for a plain CLIP
    default={"model": (str(DEFAULT_MODEL), "main")},
    type="multimodal",
)
