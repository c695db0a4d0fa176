"""
Zero-shot semantic segmentation with CLIP for the Hugging Face ecosystem.

Importing this package registers the models with transformers' Auto classes, the deep prompts with PEFT, and the
pipeline `zero-shot-image-segmentation` with the embedded default model: at once if transformers is imported already,
otherwise as soon as it is. So importing it alone takes no time.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from zegclip.drawing.overlay import draw
    from zegclip.modeling.configuration_zegclip import ZegClipConfig
    from zegclip.modeling.modeling_zegclip import ZegClipForSemanticSegmentation
    from zegclip.modeling.prompt_config import DeepPromptConfig
    from zegclip.modeling.prompt_tuner import DeepPromptModel
    from zegclip.processing.image_processing_pil_zegclip import ZegClipImageProcessorPil
    from zegclip.processing.image_processing_zegclip import ZegClipImageProcessor
    from zegclip.processing.pipeline import ZeroShotImageSegmentationPipeline
    from zegclip.processing.processing_zegclip import ZegClipProcessor

if not (Path(__file__).parent / "modeling").exists() and (Path(__file__).parents[1] / "setup.cfg").is_file():
    # A checkout that is not installed: the folders beside this one are this package's (see setup.cfg).
    __path__.append(str(Path(__file__).parents[1]))

__version__ = "0.1.0"

DEFAULT_MODEL = Path(__file__).parent / "default_model"
"""A tiny CLIP pretrained on the generated picture world, with an SPT-SEG adapter trained on its seen classes."""

METRIC = str(Path(__file__).parent / "gzs_iou.py")
"""pAcc, mIoU of seen and unseen classes and hIoU for the `evaluate` library: `evaluate.load(zegclip.METRIC)`."""

_MODULES = {
    "DeepPromptConfig": "zegclip.modeling.prompt_config",
    "DeepPromptModel": "zegclip.modeling.prompt_tuner",
    "ZegClipConfig": "zegclip.modeling.configuration_zegclip",
    "ZegClipForSemanticSegmentation": "zegclip.modeling.modeling_zegclip",
    "ZegClipImageProcessor": "zegclip.processing.image_processing_zegclip",
    "ZegClipImageProcessorPil": "zegclip.processing.image_processing_pil_zegclip",
    "ZegClipProcessor": "zegclip.processing.processing_zegclip",
    "ZeroShotImageSegmentationPipeline": "zegclip.processing.pipeline",
    "draw": "zegclip.drawing.overlay",
}

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
    "draw",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'zegclip' has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# What registration imports, and what may import transformers on its own way in.
_NEEDED = ("transformers", "peft", "accelerate")


def _register(imported: ModuleType) -> None:
    """
    Register, unless one of the others is being imported: then this is called again at its end.

    Importing one of our modules registers before that module is executed: registration needs all of them whole.
    """
    if imported.__name__.startswith("zegclip."):
        import_module("zegclip.registration")
        return
    others = [sys.modules.get(name) for name in _NEEDED if name != imported.__name__]
    if "transformers" in sys.modules and not any(
        getattr(getattr(other, "__spec__", None), "_initializing", False) for other in others
    ):
        import_module("zegclip.registration")


for _name in (*_NEEDED, "zegclip.modeling", "zegclip.processing"):
    wrapt.register_post_import_hook(_register, _name)
