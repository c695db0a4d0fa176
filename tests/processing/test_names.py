"""Class names and prompt templates before they meet a tokenizer."""

import pytest

from zegclip.processing.input_error import InputError
from zegclip.processing.names import check_labels, find_unknown_words, read_classes


def test_labels_are_stripped_and_keep_their_order():
    expected = ["tree", "cat", "dining table"]
    assert check_labels((" tree", "cat ", "dining table")) == check_labels(" tree,cat , dining table") == expected


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ([], "empty"),
        ((), "empty"),
        (None, "None"),
        (["cat", 3], "2 .*3"),
        (["cat", "  "], "2 .*blank"),
        (["cat", "tree", " cat"], "'cat'"),
        (["cat", "\udcff"], r"2 .*'\\udcff'"),
    ],
)
def test_bad_labels_are_named(labels, named):
    with pytest.raises(InputError, match=named):
        check_labels(labels)


@pytest.mark.parametrize(
    ("label", "known"),
    [
        ("tree", True),
        ("Red Tree", True),
        ("red-tree", True),
        ("zebra", False),
        ("red zebra", False),
        ("猫", False),
        ("🎉", False),
        ("tree!", False),
        ("???", False),
    ],
)
def test_unknown_words(label, known):
    message = find_unknown_words([label], ["red", "tree"])
    assert (message is None) == known
    assert known or repr(label) in message
    assert find_unknown_words([label], None) is None


def test_unknown_words_of_templates_and_of_many_names():
    assert find_unknown_words(["tree"], ["a", "tree"], ["a {}", "{} a"]) is None
    assert "'a sketch of a {}'" in find_unknown_words(["tree"], ["a", "tree"], ["a {}", "a sketch of a {}"])
    message = find_unknown_words([f"name{index}" for index in range(171)], ["tree"])
    assert "'name19' and 151 more" in message
    assert "name20" not in message


def test_a_list_in_place_of_a_name_holds_synonyms():
    assert read_classes("cat, tree") == (["cat", "tree"], [0, 1])
    nested = [["cat", " kitten", "cat"], "tree", ("sky",)]
    assert read_classes(nested) == (["cat", "kitten", "tree", "sky"], [0, 0, 1, 2])


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ([["cat"], []], "2"),
        ([["cat", "dog"], "dog"], "'dog'"),
        ([["cat", 3]], "2 .*3"),
        ([], "empty"),
        ({"cat"}, "list"),
    ],
)
def test_bad_synonyms_are_named(labels, named):
    with pytest.raises(InputError, match=named):
        read_classes(labels)
