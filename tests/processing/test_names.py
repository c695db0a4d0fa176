"""Class names and prompt templates before they meet a tokenizer."""

import pytest

from zegclip.processing.input_error import InputError
from zegclip.processing.names import BACKGROUND_WORDS, add_background, check_labels, find_unknown_words, read_classes


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
    assert find_unknown_words(["tree"], ["a", "tree"], ["a {}", "{} a", "{}"]) is None
    assert "'a sketch of a {}'" in find_unknown_words(["tree"], ["a", "tree"], ["a {}", "a sketch of a {}"])
    message = find_unknown_words([f"name{index}" for index in range(171)], ["tree"])
    assert "'name19' and 151 more" in message
    assert "name20" not in message


def test_a_list_in_place_of_a_name_holds_synonyms():
    assert read_classes("cat, tree") == (["cat", "tree"], [0, 1])
    nested = [["cat", " kitten", "cat"], "tree", ("sky",)]
    assert read_classes(nested) == (["cat", "kitten", "tree", "sky"], [0, 0, 1, 2])
    assert read_classes("cat/ kitten, tree,sky") == (["cat", "kitten", "tree", "sky"], [0, 0, 1, 2])
    assert read_classes(["cat/kitten", "tree"]) == (["cat/kitten", "tree"], [0, 1])


def test_background_competes_as_no_class():
    assert len(BACKGROUND_WORDS) == 26
    names, class_of_name = add_background(["cat", "Sky", "tree"], [0, 1, 1], True)
    assert names[:3] == ["cat", "Sky", "tree"]
    assert class_of_name == [0, 1, 1, *[-1] * 24]  # without the sky and the tree
    assert add_background(["cat"], [0], True, ["cat", "sky"]) == (["cat", "sky"], [0, -1])
    assert add_background(["cat"], [0], False) == (["cat"], [0])
    assert add_background(["cat"], [0], "sand, rock") == (["cat", "sand", "rock"], [0, -1, -1])
    with pytest.raises(InputError, match="'cat'"):
        add_background(["cat"], [0], ["cat"])
    with pytest.raises(InputError, match="give your own"):
        add_background(["cat"], [0], True, ["cat", "dog"])


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ([["cat"], []], "2"),
        ([["cat", "dog"], "dog"], "'dog'"),
        ([["cat", 3]], "2 .*3"),
        ("cat/, tree", "2"),
        ("cat/tree, tree", "'tree'"),
        ([], "empty"),
        ({"cat"}, "list"),
    ],
)
def test_bad_synonyms_are_named(labels, named):
    with pytest.raises(InputError, match=named):
        read_classes(labels)
