"""Seen and unseen classes, the values of mask files, and the labels that training sees in each setting."""

import numpy as np
import pytest

from zegclip.processing.class_split import UNLABELLED, ClassSplit, split_classes


@pytest.fixture
def split():
    return ClassSplit(names=("a", "b", "c", "d"), seen_ids=(0, 3), unseen_ids=(1,))


LABELS = np.array([[0, 1, 2, 3, 255]])


def test_inductive_labels_are_positions_among_the_seen(split):
    assert split.training_labels(LABELS).tolist() == [[0, 255, 255, 1, 255]]
    assert split.training_ids("inductive") == (0, 3)
    assert split.seen_names == ["a", "d"]


def test_transductive_labels_keep_the_place_of_what_is_not_seen(split):
    assert split.training_labels(LABELS, "transductive").tolist() == [[0, UNLABELLED, UNLABELLED, 3, 255]]
    assert split.training_ids("transductive") == (0, 1, 2, 3)


def test_fully_supervised_labels_are_as_they_are(split):
    np.testing.assert_array_equal(split.training_labels(LABELS, "fully_supervised"), LABELS)
    assert split.training_ids("fully_supervised") == (0, 1, 2, 3)


@pytest.mark.parametrize("setting", ["inductive", "transductive", "fully_supervised"])
@pytest.mark.parametrize("bad", [4, -1, 300])
def test_ids_outside_of_the_class_list(split, bad, setting):
    with pytest.raises(ValueError, match=f"the id {bad}, outside of the class list"):
        split.training_labels(np.array([[0, bad]]), setting)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"unseen_ids": (0,)}, "Class 'a' is listed as seen and as unseen."),
        ({"unseen_ids": (3,)}, "names the id 3, but there are 3 classes"),
        ({"names": ("a", "b", "a")}, "Class name 'a' comes twice."),
        ({"ignore_index": 2}, "larger than every id, but it is 2 and there are 3 classes: give ignore_index=255"),
        ({"ignore_index": -100}, "larger than every id"),
        ({"mask_values": (1, 2)}, "There are 3 classes, but 2 mask values."),
        ({"mask_values": (1, 2, 1)}, "The mask value 1 belongs to two classes, 'a' and 'c'."),
        ({"mask_values": (1, 255, 2)}, "The mask value 255 is that of class 'b' and is also to be ignored."),
        ({"mask_values": (1, 70000, 2)}, "between 0 and 65535, not be 70000"),
        ({"ignored_values": (-1,)}, "between 0 and 65535, not be -1"),
    ],
)
def test_contradictions_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        ClassSplit(**({"names": ("a", "b", "c"), "seen_ids": (0,)} | fields))


def test_more_than_255_classes_need_another_ignore_index():
    names = tuple(f"class {index}" for index in range(300))
    with pytest.raises(ValueError, match="give ignore_index=65535"):
        ClassSplit(names=names, seen_ids=(), ignored_values=())
    split = split_classes(names, unseen=["class 255"])
    assert (split.ignore_index, split.ignored_values, split.unseen_ids) == (65535, (65535,), (255,))
    values = np.array([[0, 255, 299, 65535]], dtype=np.uint16)
    assert split.labels_of(values).tolist() == [[0, 255, 299, 65535]]
    assert split.training_labels(split.labels_of(values)).tolist() == [[0, 65535, 298, 65535]]
    assert [split_classes(names[:count]).ignore_index for count in (255, 256)] == [255, 65535]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_mask_values_become_ids(dtype):
    split = ClassSplit(("a", "b", "c"), (0, 1, 2), mask_values=(7, 1, 3), ignored_values=(0, 255))
    labels = split.labels_of(np.array([[7, 1], [3, 0], [255, 7]], dtype=dtype))
    assert labels.dtype == np.int64
    assert labels.tolist() == [[0, 1], [2, 255], [255, 0]]
    assert split.labels_of(np.zeros((0, 5), dtype)).shape == (0, 5)


@pytest.mark.parametrize("bad", [2, 5, 254, 256, 60000, -1, 1 << 40])
def test_unknown_mask_values_are_named(bad):
    split = ClassSplit(("a", "b", "c"), (), mask_values=(7, 1, 3), ignored_values=(0, 255))
    with pytest.raises(ValueError, match=rf"holds the value {bad}, .*: classes have 1, 3 and 7, ignored 0 and 255\."):
        split.labels_of(np.array([[1, bad, 255]]))


def test_classes_are_split_by_name():
    names = ["a", "b", "c", "d"]

    def ids(**groups):
        split = split_classes(names, **groups)
        return split.seen_ids, split.unseen_ids

    assert ids() == ((0, 1, 2, 3), ())
    assert ids(unseen=["d", "b"]) == ((0, 2), (1, 3))
    assert ids(seen=["c"]) == ((2,), (0, 1, 3))
    assert ids(seen=["d", "a"], unseen=["b"]) == ((0, 3), (1,))
    assert ids(unseen=[]) == ((0, 1, 2, 3), ())


def test_ignored_names_leave_the_list_and_their_pixels_have_no_class():
    split = split_classes(["sky", "a", "b"], unseen=["b"], ignored=["sky"], mask_values=[5, 6, 8])
    assert split.names == ("a", "b")
    assert (split.seen_ids, split.unseen_ids) == ((0,), (1,))
    assert split.labels_of(np.array([5, 6, 8, 255])).tolist() == [255, 0, 1, 255]


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ({"unseen": ["sofaa"]}, "The class 'sofaa', listed as unseen, is not among the 3 .*did you mean 'sofa'"),
        ({"seen": ["x"]}, "The class 'x', listed as seen, is not among the 3 classes"),
        ({"ignored": ["x"]}, "The class 'x', listed as ignored"),
        ({"seen": ["cat"], "unseen": ["cat"]}, "'cat' is listed as seen and as unseen"),
        ({"unseen": ["cat"], "ignored": ["cat"]}, "'cat' is listed as unseen and as ignored"),
        ({"ignored": ["cat", "dog", "sofa"]}, "No class remains"),
        ({"mask_values": [1, 2, 2], "ignored": ["dog"]}, "The mask value 2 belongs to two classes, 'dog' and 'sofa'"),
        ({"mask_values": [1, 2]}, "There are 3 classes, but 2 mask values"),
    ],
)
def test_impossible_splits_are_refused(groups, sentence):
    with pytest.raises(ValueError, match=sentence):
        split_classes(["cat", "dog", "sofa"], **groups)


def test_an_empty_list_of_names_is_refused():
    with pytest.raises(ValueError, match="list of class names is empty"):
        split_classes([])
