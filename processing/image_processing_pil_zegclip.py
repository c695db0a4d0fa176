"""Image processor of ZegCLIP, with Pillow as backend."""

from transformers.image_processing_backends import PilBackend

from .image_processing_base import ZegClipImageProcessorBase


class ZegClipImageProcessorPil(ZegClipImageProcessorBase, PilBackend):
    """ZegCLIP's image processor on Pillow and NumPy, without torchvision."""


__all__ = ["ZegClipImageProcessorPil"]
