"""The classes of the picture world and their three-way split.

A class id is the index of its name in `CLASS_NAMES`; every pixel of a drawn mask has one. `IGNORE_INDEX` does not
occur in drawn masks: training assigns it to the pixels of unseen classes. The split was fixed before any model was
trained on these classes. Hyperparameters are chosen on the evaluation split "tuning", whose scenes have no class of
`UNSEEN_TEST`; its unseen classes are `UNSEEN_TUNING`. In the evaluation split "test" the unseen classes are
`UNSEEN_TEST`, and the classes of `UNSEEN_TUNING` are seen.
"""

from collections.abc import Sequence

OBJECT_NAMES = (
    "house",
    "tree",
    "car",
    "boat",
    "fish",
    "umbrella",
    "flower",
    "apple",
    "mushroom",
    "clock",
    "cup",
    "hat",
    "butterfly",
    "rocket",
    "balloon",
    "cake",
    "book",
    "shirt",
    "lamp",
    "duck",
    "turtle",
    "cat",
    "gift",
    "cactus",
    "bottle",
    "crown",
    "snail",
    "kite",
    "pear",
    "guitar",
    "bell",
    "owl",
    "drum",
)
GROUND_NAMES = ("grass", "water", "sand", "brick", "snow", "sky", "night", "road", "wood", "gravel", "carpet")
CLASS_NAMES = OBJECT_NAMES + GROUND_NAMES

UNSEEN_TUNING = (
    "fish",
    "umbrella",
    "mushroom",
    "clock",
    "cup",
    "butterfly",
    "rocket",
    "duck",
    "gift",
    "cactus",
    "sand",
    "brick",
    "night",
)
UNSEEN_TEST = (
    "bottle",
    "crown",
    "snail",
    "kite",
    "pear",
    "guitar",
    "bell",
    "owl",
    "drum",
    "wood",
    "gravel",
    "carpet",
)
SEEN = tuple(name for name in CLASS_NAMES if name not in UNSEEN_TUNING + UNSEEN_TEST)

IGNORE_INDEX = 255


def class_ids(names: Sequence[str]) -> list[int]:
    """Return the ids of class names."""
    return [CLASS_NAMES.index(name) for name in names]
