"""`zegclip segment`: pictures and class names in; an overlay, an index mask and a JSON file for each picture out."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from zegclip.loading import load_model, load_processor
from zegclip.overlay import index_mask, make_colours, overlay
from zegclip.processing.image_reading import load_rgb
from zegclip.processing.pipeline_zegclip import TASK, ZeroShotImageSegmentationPipeline

PICTURE_SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"
}  # fmt: skip
"""Files of a folder that are taken for pictures; a file that is named itself may be called anything."""


class ClassMapPipeline(ZeroShotImageSegmentationPipeline):
    """The pipeline without a mask for each label, which a large picture with many labels has no memory for."""

    def postprocess(  # type: ignore[override]
        self, model_outputs: dict[str, torch.Tensor], candidate_labels: list[str], threshold: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best label's index, or -1 below `threshold`, int64, and its score, float32: `(height, width)`."""
        scores = model_outputs["scores"].numpy()
        return np.where(scores < threshold, -1, model_outputs["ids"].numpy()), scores


@dataclass
class Outcome:
    """
    What became of some pictures.

    Attributes:
        results: For each picture that was segmented, what its JSON file says about the labels.
        failures: For each that could not be read, one sentence that names it.
    """

    results: dict[Path, list[dict[str, Any]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def find_pictures(sources: Sequence[str | Path]) -> list[Path]:
    """
    List pictures: files as they are, and the picture files that lie directly in folders, by name.

    A picture that is given twice comes once. Files are not opened, nor looked for.

    Raises:
        ValueError: If a folder has no picture.
    """
    found: dict[Path, Path] = {}
    for source in map(Path, sources):
        pictures = [source]
        if source.is_dir():
            pictures = sorted(
                path
                for path in source.iterdir()
                if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()
            )
            if not pictures:
                raise ValueError(f"{source}: there is no picture in this folder.")
        for path in pictures:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def name_results(pictures: Sequence[Path]) -> dict[Path, str]:
    """
    Give each picture the stem of its results' names: its own, or `stem_2`, `stem_3`, ... where that is taken already.

    Upper and lower case count as the same, as they do in some file systems.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in pictures:
        name, number = path.stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{path.stem}_{number}"
        taken.add(name.lower())
        names[path] = name
    return names


def find_unknown_words(labels: Sequence[str], vocabulary: Sequence[str] | None) -> list[str]:
    """Return the labels with a word outside of a closed vocabulary (`None`: an open one, which knows every word)."""
    if vocabulary is None:
        return []
    known = {word.lower() for word in vocabulary}
    return [label for label in labels if not set(re.findall(r"\w+", label.lower())) <= known]


def load_segmenter(model: str | os.PathLike, device: str | None = None) -> ClassMapPipeline:
    """
    Load a model with its processor, ready for pictures and labels.

    Args:
        model: Folder or Hub id.
        device: As PyTorch calls it; by default an accelerator where there is one.

    Raises:
        ValueError: As `load_model` and `load_processor`, or if there is no such device.
    """
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"There is no device {device!r} that PyTorch could use here.") from error
    return ClassMapPipeline(model=load_model(model), processor=load_processor(model), task=TASK, device=device)


def summarise(ids: np.ndarray, scores: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """
    Describe a class map: for each label, in order, its share of the pixels and its mean score there (0 without any).

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


@contextmanager
def writing_to(output: Path) -> Iterator[Path]:
    """Give a folder whose files move into `output` at the end, if all went well: none is ever there in part."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".zegclip-") as folder:
        yield Path(folder)
        for path in Path(folder).iterdir():
            os.replace(path, output / path.name)


def write_results(
    output: Path, name: str, picture: Image.Image, ids: np.ndarray, labels: Sequence[str], record: Mapping[str, Any]
) -> None:
    """
    Write `name_overlay.png`, `name_mask.png` and `name.json`, replacing what is there.

    Args:
        output: Folder, made if it does not exist.
        name: What the files' names start with.
        picture: RGB.
        ids: `(height, width)` integers of the picture's size, indices into `labels` or -1 for no label.
        labels: Class names.
        record: The contents of the JSON file.
    """
    colours = make_colours(len(labels))
    with writing_to(output) as folder:
        overlay(picture, ids, labels, colours).save(folder / f"{name}_overlay.png")
        index_mask(ids, colours).save(folder / f"{name}_mask.png")
        (folder / f"{name}.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def segment_pictures(
    segmenter: ClassMapPipeline,
    pictures: Mapping[Path, str],
    labels: Sequence[str],
    output: Path,
    model_name: str,
    **settings: Any,
) -> Outcome:
    """
    Segment pictures and write the results of each; a picture that cannot be read does not stop the others.

    Args:
        segmenter: From [`load_segmenter`].
        pictures: What the names of each one's results start with, see [`name_results`].
        labels: Class names.
        output: Folder for the results, made with the first of them.
        model_name: For the JSON files.
        **settings: `threshold`, `window_size`, `window_stride`: see the pipeline.

    Raises:
        ValueError: If a label or setting is not valid.
        OSError: If results cannot be written.
    """
    outcome = Outcome()
    taken: list[tuple[Path, Image.Image]] = []
    progress = tqdm(total=len(pictures), unit="picture", disable=True if len(pictures) == 1 else None)

    def readable() -> Iterator[Image.Image]:
        for path in pictures:
            try:
                picture = load_rgb(path)
            except ValueError as error:
                outcome.failures.append(str(error))
                progress.update()
            else:
                taken.append((path, picture))
                yield picture

    with progress:
        # As a generator, the pictures are read one at a time and the labels are encoded once for all.
        for ids, scores in segmenter(readable(), candidate_labels=list(labels), **settings):
            path, picture = taken.pop(0)
            outcome.results[path] = summarise(ids, scores, labels)
            record = {"image": str(path), "model": model_name, "labels": outcome.results[path]}
            write_results(output, pictures[path], picture, ids, labels, record)
            progress.update()
    return outcome
