"""Image processor of ZegCLIP, with torchvision as backend if that is installed, otherwise with Pillow."""

from typing import TYPE_CHECKING

from transformers.image_processing_backends import TorchvisionBackend
from transformers.utils import is_torchvision_available

from .image_processing_base import ZegClipImageProcessorBase
from .image_processing_pil_zegclip import ZegClipImageProcessorPil

if is_torchvision_available() or TYPE_CHECKING:

    class ZegClipImageProcessor(ZegClipImageProcessorBase, TorchvisionBackend):
        """ZegCLIP's image processor on torch tensors, on any device."""

else:
    ZegClipImageProcessor = ZegClipImageProcessorPil


__all__ = ["ZegClipImageProcessor"]
