"""The classes of the picture world and their three-way split.

A class id is the index of its name in `CLASS_NAMES`; every pixel of a drawn mask has one. `IGNORE_INDEX` does not
occur in drawn masks: training assigns it to the pixels of unseen classes. The split was fixed before any model was
trained: hyperparameters are chosen on `UNSEEN_TUNING`, and `UNSEEN_TEST` is evaluated once, at the end.
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
