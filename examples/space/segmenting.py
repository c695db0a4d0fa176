"""What the Space computes: the models that it offers, and one picture's segmentation. Nothing here needs gradio."""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import zegclip
from zegclip.drawing.colours import index_mask, make_colours
from zegclip.processing.image_reading import load_rgb
from zegclip.processing.names import find_unknown_words, nested_classes
from zegclip.segmenting.results import summarise
from zegclip.segmenting.segmenter import load_segmenter

MODELS_VARIABLE = "ZEGCLIP_MODELS"
"""The environment variable that lists models: `name=folder or Hub id`, with commas between them."""
EMBEDDED_NAME = "embedded model"

# A model is loaded when it is first chosen, and kept.
_segmenter = functools.cache(load_segmenter)


@dataclass(frozen=True)
class Segmentation:
    """
    One picture's segmentation, ready to be shown.

    Attributes:
        overlay: RGB, the picture under its classes with a legend beside it.
        training_free: The same for what the CLIP says without training; `None` for a model that is not trained.
        mask: The index of the class of each pixel, with a palette; 255 for none.
        rows: For each class, in order: its first name, its share of the pixels in percent, and its mean score there,
            in [0, 1], or a dash where it has no pixel.
        warning: One sentence about labels that the model cannot know, plain text; `None` if there is none.
    """

    overlay: Image.Image
    training_free: Image.Image | None
    mask: Image.Image
    rows: list[tuple[str, str, str]]
    warning: str | None


def read_models(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """
    Return folders or Hub ids of the models to choose from, by name; without a list, the embedded model alone.

    Args:
        environment: Variables, of which `ZEGCLIP_MODELS` is read.

    Raises:
        ValueError: If an entry is not `name=folder or Hub id`, or a name comes twice.
    """
    text = environment.get(MODELS_VARIABLE, "").strip()
    if not text:
        return {EMBEDDED_NAME: str(zegclip.DEFAULT_MODEL)}
    models: dict[str, str] = {}
    for entry in text.split(","):
        name, separator, source = (part.strip() for part in entry.partition("="))
        if not (name and separator and source):
            raise ValueError(f"{MODELS_VARIABLE}: {entry.strip()!r} must be written as name=folder or name=Hub id.")
        if name in models:
            raise ValueError(f"{MODELS_VARIABLE}: the name {name!r} comes twice.")
        models[name] = source
    return models


def segment_picture(
    path: str | None,
    label_text: str,
    model_name: str,
    models: Mapping[str, str],
    threshold: float = 0.0,
    refine: bool = False,
) -> Segmentation:
    """
    Segment a picture into typed class names.

    Args:
        path: The picture's file; `None` if there is none yet.
        label_text: Class names with commas between them; slashes separate the names of one class: `cat/kitten, tree`.
        model_name: One of `models`, which is loaded at its first use and kept.
        models: From [`read_models`].
        threshold: Pixels whose best score is lower, in [0, 1], belong to no label.
        refine: Whether masks follow the outlines in the picture.

    Raises:
        ValueError: If the picture is missing or broken, a label is blank or comes twice, or the model is unknown or
            cannot be loaded. The message is plain text and may quote what the user typed.
    """
    if path is None:
        raise ValueError("There is no picture yet: upload one, or choose an example.")
    classes = nested_classes(label_text)
    labels = [names[0] for names in classes]
    if model_name not in models:
        raise ValueError(f"There is no model {model_name!r} here: choose from {', '.join(models)}.")
    file = Path(path)
    # As bytes, so that a message has the picture's name and not its path on the server.
    picture = load_rgb(file.read_bytes(), name=file.name)
    segmenter = _segmenter(models[model_name])
    result = segmenter(picture, candidate_labels=classes, threshold=threshold, refine=refine)
    ids, scores = result["segmentation"], result["scores"]
    training_free = None
    if segmenter.model.config.score_function != "softmax":
        alone = segmenter(picture, candidate_labels=classes, training_free_weight=1.0, refine=refine)
        training_free = zegclip.draw(picture, alone["segmentation"], labels, side_by_side=False)
    rows = [
        (row["label"], f"{100 * row['share']:.1f} %", f"{row['score']:.2f}" if row["share"] else "-")
        for row in summarise(ids, scores, labels)
    ]
    warning = find_unknown_words(
        [name for names in classes for name in names],
        segmenter.model.config.vocabulary,
        segmenter.model.config.prompt_templates,
        f"The {model_name}",
    )
    # The page shows the picture already.
    overlay = zegclip.draw(picture, ids, labels, side_by_side=False)
    return Segmentation(overlay, training_free, index_mask(ids, make_colours(len(labels))), rows, warning)


def load_all(models: Mapping[str, str]) -> None:
    """Load all models now, instead of each at its first use."""
    for source in models.values():
        _segmenter(source)
