"""Seen and unseen classes, the values of mask files, and the labels that training sees in each setting."""

import numpy as np
import pytest

from zegclip.processing.class_split import UNLABELLED, ClassSplit, split_classes
from zegclip.processing.input_error import InputError


@pytest.fixture
def split():
    return ClassSplit(names=("a", "b", "c", "d"), seen_ids=(0, 3), unseen_ids=(1,))


@pytest.mark.parametrize(
    ("setting", "ids", "labels"),
    [
        ("inductive", (0, 3), [[0, 255, 255, 1, 255]]),  # positions among the seen classes
        ("transductive", (0, 1, 2, 3), [[0, UNLABELLED, UNLABELLED, 3, 255]]),
        ("fully_supervised", (0, 1, 2, 3), [[0, 1, 2, 3, 255]]),
    ],
)
def test_labels_of_each_setting(split, setting, ids, labels):
    assert split.training_ids(setting) == ids
    assert split.training_labels(np.array([[0, 1, 2, 3, 255]]), setting).tolist() == labels
    assert split.seen_names == ["a", "d"]


@pytest.mark.parametrize("setting", ["inductive", "transductive", "fully_supervised"])
@pytest.mark.parametrize("bad", [4, -1, 300])
def test_ids_outside_of_the_class_list(split, bad, setting):
    with pytest.raises(InputError, match=f"the id {bad},"):
        split.training_labels(np.array([[0, bad]]), setting)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"unseen_ids": (0,)}, "'a'"),
        ({"unseen_ids": (3,)}, "the id 3,"),
        ({"names": ("a", "b", "a")}, "'a'"),
        ({"names_of": {"a": ("a", "b")}}, "'b'"),
        ({"names_of": {"a": ("a", "x"), "b": ("x",)}}, "'x'"),
        ({"names_of": {"d": ("x",)}}, "'d'"),
        ({"names_of": {"a": ()}}, "'a'"),
        ({"ignore_index": 2}, "ignore_index=2 "),
        ({"ignore_index": -100}, "ignore_index=-100 "),
        ({"mask_values": (1, 2)}, "3 .*2 "),
        ({"mask_values": (1, 2, 1)}, "mask value 1 .* 'a' and 'c'"),
        ({"mask_values": (1, 255, 2)}, "mask value 255 .* 'b'"),
        ({"mask_values": (1, 70000, 2)}, "70000"),
        ({"ignored_values": (-1,)}, "-1"),
        ({"merged_values": {1: 0}}, "mask value 1 .* 'b' and 'a'"),
        ({"merged_values": {255: 1}}, "mask value 255 .* 'b'"),
    ],
)
def test_contradictions_are_refused(fields, named):
    with pytest.raises(InputError, match=named):
        ClassSplit(**({"names": ("a", "b", "c"), "seen_ids": (0,)} | fields))


def test_more_than_255_classes_need_another_ignore_index():
    names = tuple(f"class {index}" for index in range(300))
    with pytest.raises(InputError, match="65535"):
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
    merged = ClassSplit(("a", "b"), (0, 1), mask_values=(255, 3), merged_values={4: 0, 9: 1}, ignored_values=())
    assert merged.labels_of(np.array([255, 3, 4, 9], dtype=dtype).clip(0, 255)).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("bad", [2, 5, 254, 256, 60000, -1, 1 << 40])
def test_unknown_mask_values_are_named(bad):
    split = ClassSplit(("a", "b", "c"), (), mask_values=(7, 1, 3), ignored_values=(0, 255))
    with pytest.raises(InputError, match=rf"the value {bad}, .*1, 3 and 7.*0 and 255"):
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


def test_a_class_may_have_several_names():
    split = split_classes(["sky", ["cat", "kitten"], ["sofa", "couch"]], unseen=["cat"], ignored=["sofa"])
    assert (split.names, split.unseen_ids, split.seen_names) == (("sky", "cat"), (1,), ["sky"])
    assert split.nested_names() == [["sky"], ["cat", "kitten"]]
    assert split.nested_names([1]) == [["cat", "kitten"]]
    assert split.all_names() == ["sky", "cat", "kitten"]
    with pytest.raises(InputError, match=r"'kitten'.*'cat'"):
        split_classes([["cat", "kitten"], "sky"], unseen=["kitten"])


def test_classes_are_found_among_names_that_clip_reads_as_the_same():
    split = split_classes(["Traffic  light", "Sky", ["sofa", "Canap\u00e9"], "cat"])
    ids = range(len(split.names))
    found = split.classes_among(ids, ["traffic light", "canape\u0301", "CAT", "skyline"])
    assert found == ["Traffic  light", "sofa", "cat"]
    assert split.classes_among([3], ["traffic light"]) == split.classes_among(ids, []) == []


@pytest.mark.parametrize(
    ("groups", "named"),
    [
        ({"unseen": ["sofaa"]}, "'sofaa'.* unseen.*'sofa'"),
        ({"seen": ["x"]}, "'x'.* seen"),
        ({"ignored": ["x"]}, "'x'.* ignored"),
        ({"seen": ["cat"], "unseen": ["cat"]}, "'cat'.* seen .*unseen"),
        ({"unseen": ["cat"], "ignored": ["cat"]}, "'cat'.* unseen .*ignored"),
        ({"ignored": ["cat", "dog", "sofa"]}, "ignored"),
        ({"mask_values": [1, 2, 2], "ignored": ["dog"]}, "mask value 2 .* 'dog' and 'sofa'"),
        ({"mask_values": [1, 2]}, "3 .*2 "),
        ({"names": []}, "empty"),
    ],
)
def test_impossible_splits_are_refused(groups, named):
    with pytest.raises(InputError, match=named):
        split_classes(**({"names": ["cat", "dog", "sofa"]} | groups))
