"""Random changes of picture and mask together, drawn from torch's generator."""

import torch
from PIL import Image, ImageOps


def random_crop_and_flip(image: Image.Image, mask: Image.Image, crop_size: int) -> tuple[Image.Image, Image.Image]:
    """
    Cut the same random square out of picture and mask, and mirror both with probability 0.5.

    Args:
        image: RGB picture.
        mask: Label map of the same size.
        crop_size: Side in pixels; a shorter side of the picture is kept whole.
    """
    left, top = (int(torch.randint(max(side - crop_size, 0) + 1, ())) for side in image.size)
    box = (left, top, min(left + crop_size, image.width), min(top + crop_size, image.height))
    image, mask = image.crop(box), mask.crop(box)
    if torch.rand(()) < 0.5:
        image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
    return image, mask


__all__ = ["random_crop_and_flip"]
