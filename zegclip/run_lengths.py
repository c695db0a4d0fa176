"""Masks as COCO's run lengths."""

from importlib.util import find_spec
from typing import Any

import numpy as np

from zegclip.errors import UsageError


def check_installed() -> None:
    """Raise a [`UsageError`] if pycocotools is not installed."""
    if find_spec("pycocotools") is None:
        raise UsageError("COCO JSON needs pycocotools, not installed here: pip install 'zegclip[import]'.")


def encode(inside: np.ndarray) -> dict[str, Any]:
    """
    Return the `segmentation`, `area` and `bbox` of an annotation of COCO.

    Args:
        inside: `(height, width)` bool.
    """
    from pycocotools import mask

    encoded = mask.encode(np.asfortranarray(inside).view(np.uint8))
    return {
        "segmentation": {"size": list(inside.shape), "counts": encoded["counts"].decode("ascii")},
        "area": int(mask.area(encoded)),
        "bbox": mask.toBbox(encoded).tolist(),
    }
