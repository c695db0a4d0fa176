"""Captions of the picture world: short English phrases like those of photographs on the web."""

from collections.abc import Sequence

import numpy as np

from .classes import CLASS_NAMES
from .drawing import Scene

COLOUR_WORDS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "grey", "black")
SIZE_WORDS = ("small", "large", "little", "big")
OPENINGS = (
    "a picture of {}",
    "a drawing of {}",
    "an image of {}",
    "a cropped photo of {}",
    "a close-up photo of {}",
    "there is {} in the picture",
    "{}",
)
# The zero-shot prompt, always with the article "a", as in CLIP's templates.
PROMPT = "a photo of a {}"


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def compose(
    objects: Sequence[tuple[int, str]], grounds: Sequence[int], rng: np.random.Generator
) -> tuple[str, tuple[int, ...]]:
    """Write a caption that names some of the classes in a picture.

    Args:
        objects: (class id, colour word) of each visible object.
        grounds: class ids of the visible grounds.
        rng: the source of choices.

    Returns:
        The caption and the ids of the classes that it names: mostly one object, sometimes two classes, sometimes only
        a ground.
    """
    if not objects or (grounds and rng.random() < 0.25):
        return _ground_caption(int(rng.choice(grounds)), rng)
    class_id, colour = objects[int(rng.integers(len(objects)))]
    name = CLASS_NAMES[class_id]
    if rng.random() < 0.5:
        return PROMPT.format(name), (class_id,)
    phrase = _object_phrase(name, colour, rng)
    named = [class_id]
    others = [item for item in objects if item[0] != class_id]
    choice = rng.random()
    if others and choice < 0.3:
        other_id, other_colour = others[int(rng.integers(len(others)))]
        phrase += " and " + _object_phrase(CLASS_NAMES[other_id], other_colour, rng)
        named.append(other_id)
    elif grounds and choice < 0.5:
        ground = int(rng.choice(grounds))
        phrase += f" on {CLASS_NAMES[ground]}"
        named.append(ground)
    return _open(phrase, rng), tuple(named)


def _object_phrase(name: str, colour: str, rng: np.random.Generator) -> str:
    """Name an object, half of the time with its colour, rarely with a size."""
    words = [name]
    if rng.random() < 0.5:
        words.insert(0, colour)
    if rng.random() < 0.15:
        words.insert(0, SIZE_WORDS[int(rng.integers(len(SIZE_WORDS)))])
    return with_article(" ".join(words))


def _ground_caption(ground: int, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """Write a caption of a ground alone."""
    name = CLASS_NAMES[ground]
    choice = rng.random()
    if choice < 0.5:
        return PROMPT.format(name), (ground,)
    return _open(name if choice < 0.8 else f"the {name}", rng), (ground,)


def _open(phrase: str, rng: np.random.Generator) -> str:
    """Put an opening before a phrase, half of the time the plain one."""
    opening = "a photo of {}" if rng.random() < 0.5 else OPENINGS[int(rng.integers(len(OPENINGS)))]
    return opening.format(phrase)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Write a caption of a whole scene."""
    return compose([(thing.class_id, thing.colour) for thing in scene.things], scene.grounds, rng)[0]
