"""The metrics against an independent computation."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import torch

from zegclip.processing.class_split import ClassSplit
from zegclip.processing.metrics import class_accuracies, class_counts, class_ious, summarise

NUM_CLASSES = 12


def random_maps(rng, ignore_index):
    """Predictions and label maps of some pictures, often with absent classes and ignored pixels."""
    labelled = rng.choice(NUM_CLASSES, size=rng.integers(1, NUM_CLASSES + 1), replace=False)
    predictable = rng.choice(NUM_CLASSES, size=rng.integers(1, NUM_CLASSES + 1), replace=False)
    pictures = []
    for _ in range(rng.integers(1, 5)):
        shape = rng.integers(1, 12, size=2)
        labels = rng.choice(labelled, size=shape)
        predicted = np.where(rng.random(shape) < rng.random(), labels, rng.choice(predictable, size=shape))
        labels[rng.random(shape) < rng.choice([0.0, 0.3, 1.0], p=[0.4, 0.4, 0.2])] = ignore_index
        pictures.append((predicted, labels))
    return pictures


def random_split(rng):
    """A split in random order, sometimes without unseen classes, with two groups."""
    order = rng.permutation(NUM_CLASSES).tolist()
    seen, unseen = order[: rng.integers(1, 8)], order[8 : 8 + rng.integers(0, 4)]
    return ClassSplit(
        names=tuple(f"class {index}" for index in range(NUM_CLASSES)),
        seen_ids=tuple(seen),
        unseen_ids=tuple(unseen),
        groups={name: tuple(rng.choice(NUM_CLASSES, size=4, replace=False).tolist()) for name in ("few", "others")},
    )


def confusion_matrix(pictures, ignore_index):
    """Pixels by label (rows) and prediction (columns), counted one at a time."""
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), dtype=np.int64)
    for predicted, labels in pictures:
        for found, label in zip(predicted.ravel().tolist(), labels.ravel().tolist(), strict=True):
            if label != ignore_index:
                confusion[label, found] += 1
    return confusion


def nan_mean(values):
    """Mean of the values that are not NaN, summed without rounding; NaN for none."""
    values = [Fraction(float(value)) for value in values if not math.isnan(value)]
    return float(sum(values)) / len(values) if values else math.nan


def harmonic_mean(first, second):
    """2 SU / (S + U), with its limit where both are 0."""
    return 0.0 if first == second == 0 else 2 * first * second / (first + second)


def test_figures_equal_a_confusion_matrix_exactly():
    """IoU = I/U, accuracy = I/GT, pAcc = sum(I)/sum(GT), nan-means over seen and unseen, hIoU = 2SU/(S+U)."""
    kinds = Counter()
    for seed in range(400):
        rng = np.random.default_rng(seed)
        ignore_index = int(rng.choice([255, 65535, -1]))
        pictures, split = random_maps(rng, ignore_index), random_split(rng)
        counts = sum(
            class_counts(torch.from_numpy(predicted), torch.from_numpy(labels), NUM_CLASSES, ignore_index)
            for predicted, labels in pictures
        )
        assert counts.dtype == torch.int64

        confusion = confusion_matrix(pictures, ignore_index)
        hits, found, labelled = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
        np.testing.assert_array_equal(counts.numpy(), [hits, found, labelled])
        with np.errstate(invalid="ignore"):
            ious, accuracies = hits / (found + labelled - hits), hits / labelled
        np.testing.assert_array_equal(class_ious(counts.numpy()), ious)
        np.testing.assert_array_equal(class_accuracies(counts.numpy()), accuracies)

        total = labelled.sum()
        expected = {"pacc": 100 * (hits.sum() / total) if total else math.nan}
        for prefix, members in {"": range(NUM_CLASSES), **{f"{k}_": v for k, v in split.groups.items()}}.items():
            seen_ious = [ious[i] for i in split.seen_ids if i in members]
            unseen_ious = [ious[i] for i in split.unseen_ids if i in members]
            expected[f"{prefix}miou"] = 100 * nan_mean(seen_ious + unseen_ious)
            if split.unseen_ids:
                seen, unseen = 100 * nan_mean(seen_ious), 100 * nan_mean(unseen_ious)
                expected |= {f"{prefix}miou_seen": seen, f"{prefix}miou_unseen": unseen}
                expected[f"{prefix}hiou"] = harmonic_mean(seen, unseen)
        figures = summarise(counts.numpy(), split)
        assert figures.keys() == expected.keys()
        for name, value in expected.items():
            assert figures[name] == value or (math.isnan(figures[name]) and math.isnan(value)), (seed, name)

        kinds["nothing labelled"] += not total
        kinds["absent class"] += bool(np.isnan(ious).any())
        kinds["no unseen"] += not split.unseen_ids
        for group in ("seen", "unseen"):
            kinds[f"{group} all absent"] += bool(split.unseen_ids and total and math.isnan(figures[f"miou_{group}"]))
        kinds["no overlap"] += figures.get("hiou") == 0
    assert len(kinds) == 6
    assert min(kinds.values()) >= 5, kinds


def test_255_is_a_class_where_something_else_is_ignored():
    predicted, labels = torch.tensor([[255, 255, 299]]), torch.tensor([[255, 65535, 255]])
    intersection, found, labelled = class_counts(predicted, labels, 300, ignore_index=65535)
    assert (intersection[255], found[255], labelled[255], found[299]) == (1, 1, 2, 1)
    assert (intersection.sum(), found.sum(), labelled.sum()) == (1, 2, 2)
