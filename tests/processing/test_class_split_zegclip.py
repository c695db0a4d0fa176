"""Seen and unseen classes, and the labels of inductive training."""

import numpy as np
import pytest

from zegclip.processing.class_split_zegclip import ClassSplit


@pytest.fixture
def split():
    return ClassSplit(names=("a", "b", "c", "d"), seen_ids=(0, 3), unseen_ids=(1,))


def test_training_labels_are_positions_among_the_seen(split):
    labels = np.array([[0, 1, 2, 3, 255]])
    assert split.training_labels(labels).tolist() == [[0, 255, 255, 1, 255]]
    assert split.seen_names == ["a", "d"]


@pytest.mark.parametrize("bad", [4, -1, 300])
def test_ids_outside_of_the_class_list(split, bad):
    with pytest.raises(ValueError, match=f"the id {bad}, outside of the class list"):
        split.training_labels(np.array([[0, bad]]))


def test_a_class_cannot_be_both():
    with pytest.raises(ValueError, match="'b' is listed as seen and as unseen"):
        ClassSplit(names=("a", "b"), seen_ids=(0, 1), unseen_ids=(1,))


def test_ids_of_the_split_exist():
    with pytest.raises(ValueError, match="names the id 2, but there are 2 classes"):
        ClassSplit(names=("a", "b"), seen_ids=(2,))
