"""Metrics of generalised zero-shot segmentation, from pixel counts that are summed over pictures and processes."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from .class_split import ClassSplit

FIGURE_TITLES = {"pacc": "pAcc", "miou": "mIoU", "miou_seen": "mIoU(S)", "miou_unseen": "mIoU(U)", "hiou": "hIoU"}
"""Titles of the metrics of [`summarise`] in tables and model cards."""


def class_counts(
    predicted: torch.Tensor, labels: torch.Tensor, num_classes: int, ignore_index: int = 255
) -> torch.Tensor:
    """
    Count pixels per class in one picture. Ignored pixels are not counted, not even as predicted.

    Args:
        predicted: `(height, width)` int64 ids.
        labels: `(height, width)` int64 ids or `ignore_index`.
        num_classes: Number of classes.
        ignore_index: Label of pixels without a class.

    Returns:
        `(3, num_classes)` int64: pixels in the intersection, predicted, and labelled.
    """
    valid = labels != ignore_index
    predicted, labels = predicted[valid], labels[valid]
    hits = labels[predicted == labels]
    return torch.stack([torch.bincount(ids, minlength=num_classes) for ids in (hits, predicted, labels)])


def class_ious(counts: np.ndarray) -> np.ndarray:
    """IoU per class in [0, 1] from summed counts `(3, classes)`; NaN for a class neither labelled nor predicted."""
    intersection, predicted, labelled = counts.astype(np.float64)
    union = predicted + labelled - intersection
    return np.divide(intersection, union, out=np.full_like(union, np.nan), where=union > 0)


def class_accuracies(counts: np.ndarray) -> np.ndarray:
    """Accuracy per class in [0, 1] from summed counts `(3, classes)`; NaN for a class that is not labelled."""
    intersection, _, labelled = counts.astype(np.float64)
    return np.divide(intersection, labelled, out=np.full_like(labelled, np.nan), where=labelled > 0)


def summarise(counts: np.ndarray, split: ClassSplit) -> dict[str, float]:
    """
    Compute the metrics of generalised zero-shot segmentation from summed counts.

    Means exclude classes that are neither labelled nor predicted. Without any other class the mean is NaN, and so is
    every metric computed from it.

    Args:
        counts: `(3, classes)`: pixels in the intersection, predicted, labelled.
        split: The classes.

    Returns:
        In per cent: `pacc`, the pixel accuracy; `miou`, the mean IoU of seen and unseen classes together; and if the
        split has unseen classes, `miou_seen`, `miou_unseen` and their harmonic mean `hiou` (2SU/(S+U), ZegCLIP
        section 4.1). All but `pacc` again for each group of the split, with its name as prefix (`objects_hiou`).
    """
    ious = class_ious(counts)
    labelled = counts[2].sum()
    result = {"pacc": 100 * float(counts[0].sum() / labelled) if labelled else float("nan")}
    for prefix, group in {"": None, **{f"{name}_": ids for name, ids in split.groups.items()}}.items():
        seen_ids = [i for i in split.seen_ids if group is None or i in group]
        unseen_ids = [i for i in split.unseen_ids if group is None or i in group]
        result[f"{prefix}miou"] = _mean(ious, seen_ids + unseen_ids)
        if split.unseen_ids:
            seen, unseen = _mean(ious, seen_ids), _mean(ious, unseen_ids)
            harmonic = 0.0 if seen + unseen == 0 else 2 * seen * unseen / (seen + unseen)
            result |= {f"{prefix}miou_seen": seen, f"{prefix}miou_unseen": unseen, f"{prefix}hiou": harmonic}
    return result


def _mean(ious: np.ndarray, ids: Sequence[int]) -> float:
    values = [value for value in ious[list(ids)].tolist() if not math.isnan(value)]
    # An exact sum does not depend on the order of the classes.
    return 100 * (math.fsum(values) / len(values)) if values else float("nan")


__all__ = ["class_accuracies", "class_counts", "class_ious", "summarise"]
