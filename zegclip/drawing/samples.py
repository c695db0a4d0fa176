"""Predictions beside the truth: a strip for each picture, and a sheet of strips."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from zegclip.drawing.legend import GAP, LETTER, arrange, draw_text
from zegclip.drawing.overlay import class_panes
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.metrics import class_counts, class_ious


def sample_strip(picture: Image.Image, truth: np.ndarray, predicted: np.ndarray, split: ClassSplit) -> Image.Image:
    """
    Put a picture, its true classes and its predicted classes side by side, with one legend for both.

    The legend lists the classes that occur, those of the truth first, the largest first, with their IoU in this
    picture; it says which ones training had no masks of. Pixels that the truth ignores are striped there, and tinted
    like all others in the prediction.

    Args:
        picture: RGB. It is shown with a longer side of about 360 to 512 pixels.
        truth: `(height, width)` ids of the picture's size, or the split's ignore index.
        predicted: `(height, width)` ids.
        split: The classes.

    Returns:
        RGB.

    Raises:
        ValueError: If sizes differ, or if an id is not in the class list.
    """
    for title, ids in (("truth", truth), ("prediction", predicted)):
        if ids.shape != picture.size[::-1]:
            size = "x".join(map(str, ids.shape[::-1]))
            raise ValueError(f"The {title} is {size} pixels, but its picture {picture.width}x{picture.height}.")
    truth, predicted = truth.astype(np.int64), predicted.astype(np.int64)
    split.check(truth)
    wrong = predicted[(predicted < 0) | (predicted >= len(split.names))]
    if wrong.size:
        raise ValueError(f"A prediction holds the id {wrong[0]}, outside of the classes 0 to {len(split.names) - 1}.")

    label_maps = (torch.from_numpy(predicted), torch.from_numpy(truth))
    counts = class_counts(*label_maps, len(split.names), split.ignore_index).numpy()
    accuracy = counts[0].sum() / counts[2].sum() if counts[2].sum() else math.nan
    shown = _order_classes(truth[truth != split.ignore_index], predicted, len(split.names))
    maps = {
        "truth": np.where(truth == split.ignore_index, -1, truth),
        f"prediction (pAcc {_per_cent(accuracy)})": predicted,
    }
    ious = [_per_cent(iou) for iou in class_ious(counts)[shown]]
    return class_panes(picture, maps, split, shown, ious, heading="IoU %")


def sample_sheet(strips: Sequence[Image.Image], title: str) -> Image.Image:
    """
    Stack strips under a title.

    Args:
        strips: From [`sample_strip`], at least one.
        title: One line of text.

    Returns:
        RGB, as wide as the widest strip.

    Raises:
        ValueError: If there is no strip.
    """
    if not strips:
        raise ValueError("A sheet of samples needs at least one strip.")
    width = max(strip.width for strip in strips)
    heading = arrange([draw_text(title, width - 2 * GAP, letter=3 * LETTER // 2)], columns=1)
    return arrange([heading, *strips], columns=1, gap=0)


def _order_classes(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> list[int]:
    """List the classes that occur: those of the truth, then those only predicted, each kind the largest first."""
    in_truth = np.bincount(truth.ravel(), minlength=num_classes)
    in_prediction = np.bincount(predicted.ravel(), minlength=num_classes)
    order = np.lexsort((-in_prediction, -in_truth))
    return order[(in_truth + in_prediction)[order] > 0].tolist()


def _per_cent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"
