"""Segments pictures and writes an overlay, an index mask and a JSON file for each."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from zegclip.drawing.colours import index_mask, make_colours
from zegclip.drawing.overlay import draw
from zegclip.errors import UsageError, explain_fault
from zegclip.files import writing_to
from zegclip.identity import file_state
from zegclip.loading import load_model, load_processor
from zegclip.processing.class_embeds_cache import default_cache_folder
from zegclip.processing.image_reading import load_rgb, on_one_line
from zegclip.processing.input_error import InputError
from zegclip.processing.names import nested_classes
from zegclip.processing.pipeline import TASK, ZeroShotImageSegmentationPipeline
from zegclip.processing.windows import is_out_of_memory, window_boxes

LOW_SCORE = 0.2
"""
Pictures whose pixels have a lower mean score are remarked on: probably none of the labels fits.

Scores of trained models are sigmoids, 0.5 means as likely as not; without training, scores only compare labels, and
nothing is remarked. With the embedded model, pictures whose classes are all among the labels have mean scores of 0.5
to 0.9, per class 0.15 to 0.9, and pictures without any of the labels less than 0.05.
"""
_DELAY = 3  # Seconds until a progress bar appears.

ReadPicture = tuple[str, dict[str, int], Image.Image]  # Path, state of the file, RGB picture.


class ProgressPipeline(ZeroShotImageSegmentationPipeline):
    """
    The pipeline with progress bars.

    Attributes:
        show_progress: Whether to show progress bars for the windows of a picture and for encoding names, after some
            seconds, on a terminal.
    """

    def _forward(self, model_inputs: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        usual = self.processor.image_processor
        size, stride = (kwargs.get(name, getattr(usual, name)) for name in ("window_size", "window_stride"))
        height, width = model_inputs["pixel_values"].shape[-2:]
        boxes = window_boxes(height, width, size, stride)
        passes = 2 if kwargs.get("training_free_weight") else 1
        disable = None if self.show_progress and len(boxes) > 1 else True
        bar = tqdm(total=passes * len(boxes), unit="window", delay=_DELAY, leave=False, disable=disable)

        def count(module: torch.nn.Module, given: tuple, image_embeds: torch.Tensor) -> None:
            # Windows that are done again, as memory ran out behind this module, are not to count beyond the total.
            bar.update(min(len(image_embeds), bar.total - bar.n))

        with bar:
            # Both passes call it; the one without training does not call the model's `forward`.
            hook = self.model.clip.visual_projection.register_forward_hook(count)
            try:
                return super()._forward(model_inputs, *args, **kwargs)
            finally:
                hook.remove()


@dataclass
class Outcome:
    """
    Outcome of segmenting some pictures.

    Attributes:
        segmented: Number of pictures segmented.
        done_before: Number of pictures that had results already.
        failures: One sentence for each picture that could not be read, or was too large for the memory.
        doubtful: Pictures segmented with a mean score below `LOW_SCORE`.
    """

    segmented: int = 0
    done_before: int = 0
    failures: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)


def load_segmenter(model: str | os.PathLike, device: str | None = None, dtype: str = "float32") -> ProgressPipeline:
    """
    Load a model and its processor as a pipeline.

    Args:
        model: Folder or Hub id.
        device: Name of a PyTorch device, by default an accelerator if there is one.
        dtype: Name of a PyTorch dtype.

    Raises:
        ModelError: As `load_model` and `load_processor`.
        UsageError: If there is no such device.
    """
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UsageError(f"There is no device {device!r} that PyTorch could use here.") from error
    loaded = load_model(model).to(getattr(torch, dtype))
    if device is not None:
        # With several processes, a pipeline ignores its argument `device` and uses the model's.
        loaded.to(device)
    # One mask per label would need too much memory for large pictures and many labels.
    settings = {"task": TASK, "device": device, "output_type": "class_map"}
    segmenter = ProgressPipeline(model=loaded, processor=load_processor(model), **settings)
    segmenter.names_cache_folder = default_cache_folder()
    return segmenter


def describe(
    path: str,
    state: Mapping[str, int],
    model_name: str,
    model_state: str,
    classes: Sequence[Sequence[str]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what a picture's results depend on beside the labels, as stored in its JSON file."""
    synonyms = {names[0]: list(names[1:]) for names in classes if len(names) > 1}
    return {
        "image": os.path.abspath(path),
        "image_file": dict(state),
        "model": model_name,
        "model_files": model_state,
        "settings": dict(settings) | ({"synonyms": synonyms} if synonyms else {}),
    }


def find_unfinished(
    pictures: Mapping[str, str],
    labels: Sequence[str | Sequence[str]],
    output: Path,
    model_name: str,
    model_state: str = "",
    show_progress: bool = True,
    **settings: Any,
) -> dict[str, str]:
    """
    Return the pictures without results from the same file, model, labels and settings.

    A picture's file is compared by its state, not by its time alone: one that replaced it may be older.

    Args:
        pictures: As for [`segment_pictures`], which documents the other arguments.
        show_progress: Whether to show a progress bar, after some seconds.
    """

    classes = nested_classes(labels)

    def is_finished(path: str, name: str) -> bool:
        stem = os.path.join(output, name)
        try:
            with open(f"{stem}.json", "rb") as file:
                record = json.loads(file.read())
            return (
                describe(path, file_state(path), model_name, model_state, classes, settings).items() <= record.items()
                and [row["label"] for row in record["labels"]] == [names[0] for names in classes]
                and os.path.getsize(f"{stem}_overlay.png") > 0
                and os.path.getsize(f"{stem}_mask.png") > 0
            )
        # There are none, or the file is not one of ours.
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return False

    progress = tqdm(
        pictures.items(),
        desc="Looking for earlier results",
        unit="picture",
        delay=_DELAY,
        leave=False,
        disable=None if show_progress else True,
    )
    return {path: name for path, name in progress if not is_finished(path, name)}


def summarise(ids: np.ndarray, scores: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """
    Describe a class map: for each label its share of the pixels, and its mean score there (0 if it has no pixel).

    Args:
        ids: `(height, width)` integers, indices into `labels` or -1 for no label.
        scores: `(height, width)` in [0, 1].
        labels: Class names.
    """
    counts = np.bincount(ids.ravel() + 1, minlength=len(labels) + 1)[1:]
    sums = np.bincount(ids.ravel() + 1, weights=scores.ravel(), minlength=len(labels) + 1)[1:]
    return [
        {"label": label, "share": round(count / ids.size, 6), "score": round(total / max(count, 1), 6)}
        for label, count, total in zip(labels, counts.tolist(), sums.tolist(), strict=True)
    ]


def write_results(
    output: Path, name: str, picture: Image.Image, ids: np.ndarray, labels: Sequence[str], record: Mapping[str, Any]
) -> None:
    """
    Write `name_overlay.png`, `name_mask.png` and `name.json`, replacing what is there.

    Args:
        output: Folder, created if missing.
        name: Prefix of the files' names.
        picture: RGB.
        ids: `(height, width)` integers of the picture's size, indices into `labels` or -1 for no label.
        labels: Class names.
        record: The contents of the JSON file.
    """
    with writing_to(output) as folder:
        # Less compression: a third of the time for a tenth more bytes.
        draw(picture, ids, labels).save(folder / f"{name}_overlay.png", compress_level=1)
        index_mask(ids, make_colours(len(labels))).save(folder / f"{name}_mask.png")
        # A file name need not be valid UTF-8; invalid bytes are escaped.
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8", errors="backslashreplace")


def _read_pictures(
    paths: Iterable[str], taken: list[ReadPicture], fail: Callable[[str], None]
) -> Iterator[Image.Image]:
    """Yield the pictures that can be read and append them to `taken`; `fail` gets a sentence for each other one."""
    for path in paths:
        try:
            state = file_state(path) if os.path.exists(path) else {}  # before it is read
            picture = load_rgb(path)
        except (InputError, MemoryError) as error:
            fail(str(error))
        else:
            taken.append((path, state, picture))
            yield picture


def segment_pictures(
    segmenter: ProgressPipeline,
    pictures: Mapping[str, str],
    labels: Sequence[str | Sequence[str]],
    output: Path,
    model_name: str,
    model_state: str = "",
    show_progress: bool = True,
    **settings: Any,
) -> Outcome:
    """
    Segment pictures and write the results of each; one that cannot be read or is too large does not stop the others.

    Args:
        segmenter: From [`load_segmenter`].
        pictures: Paths, and the stem of each one's results, see [`name_results`].
        labels: Class names, as the pipeline takes them.
        output: Folder for the results, created with the first of them.
        model_name: For the JSON files.
        model_state: For the JSON files, see [`state_of_model`].
        show_progress: Whether to show a progress bar for several pictures, and one for the windows of a picture that
            takes some seconds, on a terminal.
        **settings: `threshold`, `window_size` and others of the pipeline.

    Raises:
        InputError: If a label or setting is not valid.
        OSError: If results cannot be written.
    """
    classes = nested_classes(labels)
    shown_labels = [names[0] for names in classes]
    only_compares = segmenter.model.config.score_function == "softmax" or settings.get("training_free_weight")
    outcome = Outcome()
    taken: list[ReadPicture] = []
    progress = tqdm(total=len(pictures), unit="picture", disable=None if show_progress and len(pictures) > 1 else True)
    segmenter.show_progress = show_progress

    def fail(sentence: str) -> None:
        outcome.failures.append(sentence)
        progress.update()

    with progress:
        # As a generator, the pictures are read one at a time and the labels are encoded once for all.
        results = iter(segmenter(_read_pictures(pictures, taken, fail), candidate_labels=classes, **settings))
        while True:
            try:
                result = next(results, None)
                if result is None:
                    return outcome
                ids, scores = result["segmentation"], result["scores"]
                path, state, picture = taken[0]
                record = describe(path, state, model_name, model_state, classes, settings)
                record["labels"] = summarise(ids, scores, shown_labels)
                write_results(output, pictures[path], picture, ids, shown_labels, record)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not taken:
                    raise
                fail(f"{on_one_line(taken[0][0])}: {explain_fault(error)}")
            else:
                outcome.segmented += 1
                inside = scores[ids >= 0]
                if inside.size and not only_compares and inside.mean(dtype=np.float64) < LOW_SCORE:
                    outcome.doubtful.append(path)
                progress.update()
            taken.clear()
