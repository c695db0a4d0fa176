"""Data sets of picture and mask files: rows that hold paths, and reading one of them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image
from PIL.Image import Image as PILImage

from .class_split import ClassSplit
from .image_reading import PICTURE_SUFFIXES, load_class_ids, load_rgb, on_one_line

# Without a mode, so that masks keep their ids: a palette picture would become grey or coloured.
FEATURES = Features({"image": Image(), "mask": Image()})

Pair = tuple[str, str]
"""Paths of a picture and its mask."""


def read_sample(row: Mapping[str, Any], split: ClassSplit, index: int | None = None) -> tuple[PILImage, np.ndarray]:
    """
    Read a picture and its labels.

    Args:
        row: `image` and `mask` as files, that is, cast to `Image(decode=False)`: `path` and `bytes`, one of which may
            be `None`.
        split: The classes.
        index: Number of the row, by which errors call a picture that has no path.

    Returns:
        The picture, RGB and upright, and `(height, width)` int64 ids or the split's ignore index.

    Raises:
        ValueError: If one of them cannot be read, the sizes differ, or a mask value is neither a class nor ignored;
            one sentence that names the file.
    """
    (picture, picture_name), (mask, mask_name) = find_files(row, index)
    image = load_rgb(picture, name=picture_name)
    values = load_class_ids(mask, name=mask_name)
    check_sizes(picture_name, image.size, mask_name, (values.shape[1], values.shape[0]))
    try:
        return image, split.labels_of(values)
    except ValueError as error:
        raise ValueError(f"{mask_name}: {error}") from error


def find_files(
    row: Mapping[str, Any], index: int | None = None
) -> tuple[tuple[bytes | Path, str], tuple[bytes | Path, str]]:
    """
    Find the picture of a row and its mask.

    Args:
        row: As for [`read_sample`], as is `index`.

    Returns:
        For each of both, what to read, and what to call it.

    Raises:
        ValueError: If one of them is missing; one sentence.
    """
    numbers = ("picture", "mask") if index is None else (f"picture {index}", f"mask of picture {index}")
    return _find_file(row["image"], numbers[0]), _find_file(row["mask"], numbers[1])


def check_sizes(picture_name: str, size: tuple[int, int], mask_name: str, mask_size: tuple[int, int]) -> None:
    """Raise `ValueError` if upright width and height of a picture and its mask differ."""
    if size == mask_size:
        return
    turned = "; a picture with an EXIF orientation is turned upright, its mask only if it has one, too"
    raise ValueError(
        f"{mask_name} has {mask_size[0]}x{mask_size[1]} pixels, but its picture {picture_name} has "
        f"{size[0]}x{size[1]}{turned if mask_size[::-1] == size else ''}."
    )


def _find_file(file: Mapping[str, Any] | None, name: str) -> tuple[bytes | Path, str]:
    """Return what to read, and what to call it."""
    path, content = (None, None) if file is None else (file.get("path"), file.get("bytes"))
    if content is not None:
        return content, name if path is None else f"{name} ({path})"
    if path is None:
        raise ValueError(f"{name} is missing: there is neither a path nor a file in the data set.")
    return Path(path), path


def read_text(path: str) -> str:
    """Read UTF-8 text; `ValueError` with one sentence if there is none."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"There is no file {path}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: this file is not UTF-8 text.") from error


def list_names(folder: str) -> set[str]:
    """Return the names in a folder, of which there are none if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError, ValueError):  # The last for names that no system has.
        return set()


def is_picture(name: str) -> bool:
    """Tell by its name whether a file is a picture."""
    return name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith(".")


def check_files(splits: Mapping[str, Sequence[Pair]], demand: str) -> None:
    """Complain of files that do not exist; each folder is listed once, which is faster than asking for each file."""
    listings: dict[str, set[str]] = {}
    absent = []
    for path in (path for pairs in splits.values() for pair in pairs for path in pair):
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = list_names(folder)
        if name not in listings[folder]:
            absent.append(path)
    if absent:
        folder = os.path.dirname(absent[0])
        what = "such file" if os.path.isdir(folder) else f"folder {folder}"
        more = f" ({len(absent) - 1} more are missing, too)" if len(absent) > 1 else ""
        raise ValueError(on_one_line(f"{demand} {absent[0]}, but there is no {what}{more}."))


def make_data_set(splits: Mapping[str, Sequence[Pair]]) -> DatasetDict:
    """Make a data set that holds paths only; `ValueError` for one that is not UTF-8, as its tables are."""
    data = {}
    for name, pairs in name_splits(splits).items():
        columns = {"image": [image for image, _ in pairs], "mask": [mask for _, mask in pairs]}
        try:
            data[name] = Dataset.from_dict(columns, features=FEATURES)
        except UnicodeEncodeError as error:
            raise ValueError(on_one_line(f"{error.object} has a name that is not UTF-8 text: rename it.")) from error
    return DatasetDict(data)


def name_splits(splits: Mapping[str, Any]) -> dict[str, Any]:
    """Call a split `val` `validation`, as Datasets does."""
    return {"validation" if name == "val" and "validation" not in splits else name: splits[name] for name in splits}


__all__ = [
    "FEATURES",
    "Pair",
    "check_files",
    "check_sizes",
    "find_files",
    "is_picture",
    "list_names",
    "make_data_set",
    "name_splits",
    "read_sample",
    "read_text",
]
