"""The files that `zegclip segment` writes for each picture, and which of them are there already."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from tqdm import tqdm

import zegclip
from zegclip.drawing.colours import index_mask, make_colours
from zegclip.drawing.overlay import draw
from zegclip.errors import UsageError
from zegclip.files import writing_to
from zegclip.identity import file_state, name_revision, state_of_model
from zegclip.processing.image_reading import is_url, on_one_line
from zegclip.processing.names import nested_classes
from zegclip.run_lengths import encode
from zegclip.segmenting.outlines import outline
from zegclip.segmenting.pictures import MARK, RESULT_SUFFIXES, absolute, read_record

USUAL = ("overlay", "png")
_DELAY = 3  # Seconds until a progress bar appears.


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
        "image": absolute(path),
        "image_file": dict(state),
        "model": model_name,
        "model_files": model_state,
        "settings": dict(settings) | ({"synonyms": synonyms} if synonyms else {}),
    }


def identify_model(model: str | None, dtype: str = "float32") -> dict[str, str]:
    """Return the name of a model, by default the embedded one, and the state of its files, for [`describe`]."""
    place = str(zegclip.DEFAULT_MODEL) if model is None else model
    name = "embedded default model" if model is None else name_revision(place)
    if model is not None and os.path.isdir(model):
        name = os.path.abspath(model)
    return {
        "model_name": name if dtype == "float32" else f"{name}, {dtype}",
        "model_state": state_of_model(place),
    }


def find_unfinished(
    pictures: Mapping[str, str],
    labels: Sequence[str | Sequence[str]],
    output: Path,
    model_name: str,
    model_state: str = "",
    formats: Collection[str] = USUAL,
    show_progress: bool = True,
    **settings: Any,
) -> dict[str, str]:
    """
    Return the pictures without results from the same file, model, labels and settings.

    A picture's file is compared by its state, not by its time alone: one that replaced it may be older. What a URL
    shows is not known, so it has no results.

    Args:
        pictures: As for [`segment_pictures`], which documents the other arguments.
        show_progress: Whether to show a progress bar, after some seconds.
    """
    classes = nested_classes(labels)
    shown_labels = [names[0] for names in classes]

    def is_finished(path: str, name: str) -> bool:
        try:
            record = read_record(output, name)
            described = describe(path, file_state(path), model_name, model_state, classes, settings)
            return (
                is_of(record, described, shown_labels)
                and set(formats) <= set(record.get("formats", ()))
                and all(os.path.getsize(file) > 0 for file in _files(output, name, formats))
            )
        except OSError:  # There are none.
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


def is_of(record: Mapping[str, Any], described: Mapping[str, Any], labels: Sequence[str]) -> bool:
    """Return whether a JSON file is that of results for some labels, which `describe` has described."""
    rows = record.get("labels")
    found = [row.get("label") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return described.items() <= record.items() and found == list(labels)


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
    output: Path,
    name: str,
    picture: Image.Image,
    result: Mapping[str, Any],
    described: Mapping[str, Any],
    formats: Collection[str] = USUAL,
) -> None:
    """
    Write a picture's files, replacing its earlier ones; those of other formats stay if they show the same.

    - `name.json`: what the results depend on, their formats, and for each label its share of the pixels and mean
      score.
    - `overlay`: `name_overlay.png`, see [`draw`].
    - `png`: `name_mask.png`, see [`index_mask`].
    - `coco`: in `name.json`, the mask of each label as COCO's run lengths, its area and its box.
    - `geojson`: `name.geojson`, a `FeatureCollection` with the polygons of each label, see [`outline`].
    - `scores`: `name_scores.npy`, the scores of each label, `(labels, height, width)` float16 in [0, 1].

    Args:
        output: Folder, created if missing.
        name: Prefix of the files' names.
        picture: RGB.
        result: Of the pipeline, a class map of the picture's size.
        described: See [`describe`].
        formats: What to write.

    Raises:
        UsageError: If a file of these names is another picture's, or not one of ours.
    """
    ids, labels = result["segmentation"], result["labels"]
    summary = summarise(ids, result["scores"], labels)
    mark = PngImagePlugin.PngInfo()
    for key, text in MARK.items():
        mark.add_text(key, text)
    with writing_to(output) as folder:
        if "overlay" in formats:
            # Less compression: a third of the time for a tenth more bytes.
            draw(picture, ids, labels).save(f"{folder / name}_overlay.png", compress_level=1, pnginfo=mark)
        if "png" in formats:
            index_mask(ids, make_colours(len(labels))).save(f"{folder / name}_mask.png", pnginfo=mark)
        if "scores" in formats:
            _write_array(result["segmentation_scores"].astype(np.float16), Path(f"{folder / name}_scores.npy"))
        if "geojson" in formats:
            features = [
                {
                    "type": "Feature",
                    "properties": row,
                    "geometry": {"type": "MultiPolygon", "coordinates": outline(inside)},
                }
                for index, row in enumerate(summary)
                if (inside := ids == index).any()
            ]
            _write_json({"type": "FeatureCollection", "features": features}, folder / f"{name}.geojson", indent=None)
        earlier = read_record(output, name)
        written = set(earlier.get("formats", RESULT_SUFFIXES)) if "image_file" in earlier else set(formats)
        _check_owner(output, name, earlier, str(described.get("image")), set(formats) - written)
        # What a URL shows may have changed.
        is_same = bool(described.get("image_file")) and is_of(earlier, described, labels)
        if "coco" in formats:
            rows = [row | encode(ids == index) for index, row in enumerate(summary)]
        else:
            rows = [one | row for one, row in zip(earlier["labels"], summary)] if is_same else summary
        kept = written | set(formats) if is_same else formats
        _write_json({**described, "formats": sorted(kept), "labels": rows}, folder / f"{name}.json")
        if not is_same:
            for file in _files(output, name, written - set(formats)):
                file.unlink(missing_ok=True)


def _check_owner(output: Path, name: str, earlier: Mapping[str, Any], picture: str, new: Collection[str]) -> None:
    """Raise a [`UsageError`] if the results are another picture's, or a file of a format in `new` is there already."""
    owner = str(earlier.get("image", picture))
    if owner != picture and (is_url(owner) or os.path.exists(owner)):
        raise UsageError(
            f"{on_one_line(picture)}: another command has just written results of {on_one_line(owner)} with the same "
            "names. Run this command again."
        )
    for file in _files(output, name, new):
        if file.exists():
            raise UsageError(f"{file} was not written by zegclip: move it, or choose another folder for results.")


def _files(output: Path, name: str, formats: Collection[str]) -> list[Path]:
    return [Path(f"{output / name}{suffix}") for format, suffix in RESULT_SUFFIXES.items() if format in formats]


def _write_array(array: np.ndarray, path: Path) -> None:
    """Write a `.npy` file, as `np.save`, which does not say why it could not write."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)


def _write_json(content: Mapping[str, Any], path: Path, indent: int | None = 2) -> None:
    # A file name need not be valid UTF-8; invalid bytes are escaped.
    text = json.dumps(content, indent=indent, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
