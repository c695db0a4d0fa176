"""Class names and prompt templates: reading and checking them, and finding the words that a model cannot know."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from .input_error import InputError

DEFAULT_PROMPT_TEMPLATES = ("a photo of a {}",)
BACKGROUND_WORDS = (
    *("sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "mountain", "sands", "desk", "bed", "building"),
    *("cloud", "lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair", "floor", "hill", "rail"),
    "fence",
)
"""What training-free papers call the background of objects (SCLIP, NACLIP)."""
_MAX_LISTED = 20


class UnknownWordsWarning(UserWarning):
    """A class name or template has words that the model's text tower was never trained on."""


def check_labels(labels: Iterable[str]) -> list[str]:
    """
    Check class names.

    Args:
        labels: Class names, in any ordered collection, or in one string, separated by commas or line breaks.

    Returns:
        The names without surrounding white space, in the given order.

    Raises:
        InputError: If `labels` is neither a string nor a list or the like, is empty, or contains a name that is not a
            string, not valid Unicode, blank or a duplicate.
    """
    labels = _list_of(labels)
    if not labels:
        raise InputError("The list of class names is empty; give at least one name.")
    names: list[str] = []
    for position, label in enumerate(labels, start=1):
        if not isinstance(label, str):
            raise InputError(f"Class name {position} is not a string: {label!r}.")
        name = label.strip()
        if any("\ud800" <= letter <= "\udfff" for letter in name):  # A lone surrogate, which no tokenizer accepts.
            raise InputError(f"Class name {position} is not valid Unicode text: {label!r}.")
        if not name:
            raise InputError(f"Class name {position} is blank.")
        if name in names:
            raise InputError(f"Class name {name!r} comes twice.")
        names.append(name)
    return names


def read_classes(labels: Iterable[str | Sequence[str]]) -> tuple[list[str], list[int]]:
    """
    Read class names of which some may have synonyms.

    Args:
        labels: As for [`check_labels`]; a list in place of a name holds the names of one class. In one string, they
            are separated by slashes: `"cat/kitten, tree"`. A name that comes twice in a class counts once.

    Returns:
        All names, checked, and the class of each, counted from 0.

    Raises:
        InputError: As [`check_labels`], or if a class has no name.
    """
    parts: list[Any] = [split_synonyms(part) for part in _list_of(labels)] if isinstance(labels, str) else []
    classes = [
        list(dict.fromkeys(label)) if isinstance(label, (list, tuple)) else [label]
        for label in parts or _list_of(labels)
    ]
    for index, names in enumerate(classes, start=1):
        if not names:
            raise InputError(f"Class {index} has no name.")
    class_of_name = [index for index, names in enumerate(classes) for _ in names]
    return check_labels([name for names in classes for name in names]), class_of_name


def nested_classes(labels: Iterable[str | Sequence[str]]) -> list[list[str]]:
    """Return the names of each class, read and checked as by [`read_classes`]."""
    names, class_of_name = read_classes(labels)
    classes: list[list[str]] = [[] for _ in range(max(class_of_name) + 1)]
    for name, index in zip(names, class_of_name):
        classes[index].append(name)
    return classes


def fold_name(name: str) -> str:
    """Return a class name without the differences in case, white space and composed letters that CLIP does not see."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def split_synonyms(text: str) -> list[str]:
    """Return the names of one class, which slashes separate, as in `"cat/kitten"`."""
    return [name.strip() for name in text.split("/")]


def add_background(
    names: list[str],
    class_of_name: list[int],
    background: bool | Iterable[str],
    vocabulary: Sequence[str] | None = None,
) -> tuple[list[str], list[int]]:
    """
    Add names of the background, whose class is -1, to those that [`read_classes`] returns.

    Args:
        names: All names.
        class_of_name: The class of each.
        background: Its names, as for [`read_classes`], or whether there are any: `BACKGROUND_WORDS` then, without
            those that are among the names.
        vocabulary: All words that the model knows, for `BACKGROUND_WORDS`; `None` for any word.

    Raises:
        InputError: As [`check_labels`], also for a name of the background that is among the names, or if none of the
            usual ones is left.
    """
    if isinstance(background, bool):
        taken = {name.lower() for name in names}
        known = BACKGROUND_WORDS if vocabulary is None else [word for word in BACKGROUND_WORDS if word in vocabulary]
        words = [word for word in known if word not in taken] if background else []
        if background and not words:
            raise InputError(
                "The model knows none of the usual words of backgrounds, or all of them are labels: give your own as "
                "background."
            )
    else:
        words, _ = read_classes(background)
        for word in words:
            if word in names:
                raise InputError(f"{word!r} is a class name and also one of the background.")
    return check_labels([*names, *words]), [*class_of_name, *(-1 for _ in words)]


def _list_of(labels: Any) -> list[Any]:
    if isinstance(labels, str):
        lines = [line.strip() for line in labels.splitlines() if line.strip()]
        # A comma may end a line, or begin one.
        lines[:-1] = [line.removesuffix(",") for line in lines[:-1]]
        lines[1:] = [line.removeprefix(",") for line in lines[1:]]
        return [name for line in lines for name in line.split(",")]
    # Arrays, columns of data sets and others with an order, which a set does not have.
    if not isinstance(labels, Iterable) or isinstance(labels, (bytes, Mapping, Set)):
        raise InputError(f"Class names must be a list of strings, not {labels!r}.")
    return list(labels)


def find_unknown_words(
    labels: Sequence[str],
    vocabulary: Sequence[str] | None,
    prompt_templates: Sequence[str] = (),
    model: str = "this model",
) -> str | None:
    """
    Find class names and templates with words that are not in the vocabulary a text tower was trained on.

    Args:
        labels: Class names.
        vocabulary: All words of the training captions, the field `vocabulary` of the configuration; `None` for an
            open vocabulary, to which every word is known.
        prompt_templates: Templates that the names are inserted into.
        model: How the message calls the model.

    Returns:
        A message that lists the unknown names and templates, or `None` if every word is known.
    """
    if vocabulary is None:
        return None
    known = {word.lower() for word in vocabulary}

    def is_known(text: str) -> bool:
        words = set(re.findall(r"\w+", text.lower()))
        return bool(words) and words <= known and not re.search(r"[^\w\s]", re.sub(r"\b-\b", " ", text))

    templates = [template for template in prompt_templates if template.strip() != "{}"]
    unknown = [repr(text) for text in (*labels, *templates) if not is_known(text.replace("{}", " "))]
    if not unknown:
        return None
    more = f" and {len(unknown) - _MAX_LISTED} more" if len(unknown) > _MAX_LISTED else ""
    return (
        f"{model} cannot know {', '.join(unknown[:_MAX_LISTED])}{more}, so its answer there may mean nothing; it was "
        f"trained on these words alone, without punctuation: {', '.join(vocabulary)}."
    )


def check_templates(prompt_templates: Sequence[str] | str) -> list[str]:
    """
    Check prompt templates, several or one.

    Raises:
        InputError: If there is no template, or one is not a string with exactly one `{}`.
    """
    if isinstance(prompt_templates, str):
        prompt_templates = [prompt_templates]
    if not prompt_templates:
        raise InputError("prompt_templates is empty: give at least one template such as 'a photo of a {}'.")
    for template in prompt_templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise InputError(f"A prompt template needs exactly one '{{}}' for the class name, unlike {template!r}.")
    return list(prompt_templates)


def fill_templates(names: Sequence[str], prompt_templates: Sequence[str]) -> list[str]:
    """Insert names into templates: all templates of the first name, then all of the second, and so on."""
    # Not `str.format`: a name may contain braces.
    return [template.replace("{}", name) for name in names for template in prompt_templates]


def words_before_name(prompt_templates: Sequence[str]) -> str:
    """
    Return the words of a template that ends with the class name.

    Raises:
        InputError: If there are several templates, or the only one does not end with a space and the name: text
            prompts are inserted before the name, and one table of them cannot replace several templates.
    """
    words, _, behind = prompt_templates[0].partition("{}")
    if len(prompt_templates) > 1 or behind or not words.strip() or not words[-1].isspace():
        raise InputError(
            "Text prompts need exactly one template, which ends with the name, such as 'a photo of a {}'; "
            f"prompt_templates is {prompt_templates}."
        )
    return words.strip()


__all__ = [
    "BACKGROUND_WORDS",
    "DEFAULT_PROMPT_TEMPLATES",
    "UnknownWordsWarning",
    "add_background",
    "check_labels",
    "check_templates",
    "fill_templates",
    "find_unknown_words",
    "fold_name",
    "nested_classes",
    "read_classes",
    "split_synonyms",
    "words_before_name",
]
