"""Image processor of ZegCLIP, with torchvision as backend if that is installed, otherwise with Pillow."""

from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.image_processing_backends import TorchvisionBackend
from transformers.utils import is_torchvision_available

from .image_processing_base import ZegClipImageProcessorBase
from .image_processing_pil_zegclip import ZegClipImageProcessorPil

if is_torchvision_available() or TYPE_CHECKING:

    class ZegClipImageProcessor(ZegClipImageProcessorBase, TorchvisionBackend):
        """ZegCLIP's image processor on torch tensors, on any device."""

        def process_image(self, image: Any, *args: Any, **kwargs: Any) -> Any:
            """Convert one picture to a tensor `(3, height, width)`."""
            if isinstance(image, np.ndarray):
                # torch takes no negative strides (`picture[..., ::-1]`) and warns of arrays that are read-only.
                image = np.require(image, requirements=["C", "W"])
            return super().process_image(image, *args, **kwargs)

else:
    ZegClipImageProcessor = ZegClipImageProcessorPil


__all__ = ["ZegClipImageProcessor"]
