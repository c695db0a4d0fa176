"""The class list and its three-way split."""

from zegclip.picture_world.classes import (
    CLASS_NAMES,
    GROUND_NAMES,
    OBJECT_NAMES,
    SEEN,
    UNSEEN_TEST,
    UNSEEN_TUNING,
    class_ids,
)


def test_split_covers_every_class_once_and_each_part_has_objects_and_grounds():
    split = SEEN + UNSEEN_TUNING + UNSEEN_TEST
    assert sorted(split) == sorted(CLASS_NAMES)
    assert len(set(split)) == len(split) == 44
    for part, objects, grounds in ((SEEN, 12, 4), (UNSEEN_TUNING, 9, 3), (UNSEEN_TEST, 9, 3)):
        assert len(set(part) & set(OBJECT_NAMES)) >= objects
        assert len(set(part) & set(GROUND_NAMES)) >= grounds


def test_names_are_single_plain_words():
    assert all(name.isascii() and name.isalpha() and name.islower() for name in CLASS_NAMES)


def test_ids_are_positions_in_the_class_list():
    assert class_ids(("house", "cactus", "drum", "grass", "carpet")) == [0, 23, 32, 33, 43]
