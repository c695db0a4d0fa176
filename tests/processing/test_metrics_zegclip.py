"""The protocol's figures against an independent computation."""

import numpy as np
import pytest
import torch

from zegclip.processing.class_split_zegclip import ClassSplit
from zegclip.processing.metrics_zegclip import class_counts, class_ious, summarise


@pytest.fixture
def split():
    return ClassSplit(names=("a", "b", "c", "d", "e"), seen_ids=(0, 2), unseen_ids=(1, 3), groups={"few": (0, 1)})


def maps(seed, shape=(7, 9)):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 255], size=shape)  # 3 and 4 are labelled nowhere
    return rng.integers(4, size=shape), labels  # 4 is nowhere at all


def test_figures_equal_an_independent_computation(split):
    counts, hits, valid = np.zeros((3, 5)), 0, 0
    all_predicted, all_labels = [], []
    for seed in range(3):
        predicted, labels = maps(seed)
        counts += class_counts(torch.from_numpy(predicted), torch.from_numpy(labels), 5).numpy()
        all_predicted.append(predicted[labels != 255])
        all_labels.append(labels[labels != 255])
    predicted, labels = np.concatenate(all_predicted), np.concatenate(all_labels)
    ious = []
    for index in range(5):
        union = ((predicted == index) | (labels == index)).sum()
        ious.append(((predicted == index) & (labels == index)).sum() / union if union else np.nan)
    hits, valid = (predicted == labels).sum(), len(labels)
    np.testing.assert_array_equal(class_ious(counts), ious)
    assert np.isnan(ious[4])
    figures = summarise(counts, split)
    seen, unseen = 100 * np.mean([ious[0], ious[2]]), 100 * np.mean([ious[1], ious[3]])
    assert figures["pacc"] == 100 * hits / valid
    assert figures["miou_seen"] == pytest.approx(seen, abs=1e-12)
    assert figures["miou_unseen"] == pytest.approx(unseen, abs=1e-12)
    assert figures["hiou"] == pytest.approx(2 * seen * unseen / (seen + unseen), abs=1e-12)
    assert figures["few_miou_seen"] == pytest.approx(100 * ious[0], abs=1e-12)
    assert figures["few_miou_unseen"] == pytest.approx(100 * ious[1], abs=1e-12)


def test_ignored_pixels_count_nowhere():
    predicted, labels = torch.tensor([[0, 1]]), torch.tensor([[255, 255]])
    assert class_counts(predicted, labels, 2).tolist() == [[0, 0], [0, 0], [0, 0]]


def test_nothing_labelled_and_nothing_unseen(split):
    figures = summarise(np.zeros((3, 5)), split)
    assert np.isnan(figures["pacc"])
    assert np.isnan(figures["miou_unseen"])


def test_perfect_prediction(split):
    labels = torch.tensor([[0, 1, 2, 3, 4]])
    figures = summarise(class_counts(labels, labels, 5).numpy(), split)
    assert set(figures.values()) == {100.0}
