"""The classes of the picture world and their three-way split.

A class id is the index of its name in `CLASS_NAMES`; every pixel of a drawn mask carries one. `IGNORE_INDEX` never
occurs in a drawn mask: it is what a trainer puts where it hides a class. The split was fixed before any model was
trained on it: every choice is made on `UNSEEN_TUNING`, and `UNSEEN_TEST` is looked at once, at the end.
"""

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
)
GROUND_NAMES = ("grass", "water", "sand", "brick", "snow", "sky", "night", "road")
CLASS_NAMES = OBJECT_NAMES + GROUND_NAMES

UNSEEN_TUNING = ("clock", "duck", "gift", "cactus", "brick")
UNSEEN_TEST = ("fish", "umbrella", "mushroom", "cup", "butterfly", "rocket", "sand", "night")
SEEN = tuple(name for name in CLASS_NAMES if name not in UNSEEN_TUNING + UNSEEN_TEST)

IGNORE_INDEX = 255


def class_ids(names: tuple[str, ...]) -> list[int]:
    """Return the ids of class names."""
    return [CLASS_NAMES.index(name) for name in names]
