"""Metrics of generalised zero-shot segmentation, from class counts that add up over pictures and processes."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from .class_split import ClassSplit

FIGURE_TITLES = {"pacc": "pAcc", "miou": "mIoU", "miou_seen": "mIoU(S)", "miou_unseen": "mIoU(U)", "hiou": "hIoU"}
"""What the figures of [`summarise`] are called in tables and cards."""


def class_counts(
    predicted: torch.Tensor, labels: torch.Tensor, num_classes: int, ignore_index: int = 255
) -> torch.Tensor:
    """
    Count pixels per class in one picture; ignored pixels count nowhere, also not as predicted.

    Args:
        predicted: `(height, width)` int64 ids.
        labels: `(height, width)` int64 ids or the ignore index.
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
    """Turn summed counts `(3, classes)` into IoU per class in [0, 1]; `nan` where a class is nowhere."""
    intersection, predicted, labelled = counts.astype(np.float64)
    union = predicted + labelled - intersection
    return np.divide(intersection, union, out=np.full_like(union, np.nan), where=union > 0)


def class_accuracies(counts: np.ndarray) -> np.ndarray:
    """Turn summed counts `(3, classes)` into the share of each class's pixels that is found, `nan` without any."""
    intersection, _, labelled = counts.astype(np.float64)
    return np.divide(intersection, labelled, out=np.full_like(labelled, np.nan), where=labelled > 0)


def summarise(counts: np.ndarray, split: ClassSplit) -> dict[str, float]:
    """
    Compute the protocol's figures from summed counts.

    A mean leaves out classes that are neither labelled nor predicted; it is `nan` where that leaves none, and so is
    what is computed from it.

    Args:
        counts: `(3, classes)` pixels in the intersection, predicted, labelled.
        split: The classes.

    Returns:
        Per cent: `pacc`, the share of labelled pixels that are right; and over all classes, and again over each of
        the split's groups with its name before the key (`objects_hiou`), `miou`, the mean IoU of seen and unseen
        classes together, and if the split has unseen classes `miou_seen`, `miou_unseen`, and `hiou`, their harmonic
        mean (2SU/(S+U), ZegCLIP section 4.1).
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
    # Unlike a running sum, the exact one does not depend on the order of the classes or on who is absent.
    return 100 * (math.fsum(values) / len(values)) if values else float("nan")


__all__ = ["class_accuracies", "class_counts", "class_ious", "summarise"]
