"""COCO JSON, colour masks with a label map, and one mask per class: how class maps are written."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
from PIL import Image

from zegclip.drawing.colours import make_colours
from zegclip.errors import UsageError
from zegclip.processing.class_split import ClassSplit, read_class_names
from zegclip.processing.input_error import InputError
from zegclip.run_lengths import check_installed, encode

BACKGROUND, BACKGROUND_COLOUR = "background", (0, 0, 0)
"""The label that CVAT reserves for pixels without one, and its colour."""
IGNORED_COLOUR = (224, 224, 192)
"""Colour of ignored pixels where the background is a class: that of Pascal VOC's borders."""
_ALLOWED = " _-.,()&+'!"
_IGNORED_NAMES = ("ignored", "void", "unlabelled", "-")


class Format(Protocol):
    """
    Writes a data set into a folder, picture by picture.

    A class map, `ids`, is `(height, width)` int64: the class's position in the list of classes, or -1 if ignored.
    """

    def picture_path(self, split: str, name: str) -> str:
        """Return where a picture belongs, without its suffix; raise a [`UsageError`] if its name is impossible."""

    def add(self, split: str, name: str, file: str, ids: np.ndarray) -> None:
        """Add a class map, of the picture that is written to `file`."""

    def finish(self) -> None:
        """Write what belongs to all pictures."""


class CocoFormat:
    """
    COCO JSON: `annotations/instances_SPLIT.json` and `images/SPLIT/`.

    A class has one annotation in each picture, as run lengths, which COCO calls a crowd. Classes keep their order and
    get the ids 1, 2, ...; a class with several names has them in `synonyms`, as in LVIS. Ignored pixels are in no
    annotation.

    Raises:
        UsageError: If pycocotools is not installed.
    """

    def __init__(self, folder: Path, split: ClassSplit) -> None:
        check_installed()
        self.folder = folder
        self.categories = [
            {"id": number, "name": names[0], **({"synonyms": names} if len(names) > 1 else {})}
            for number, names in enumerate(split.nested_names(), start=1)
        ]
        self.splits: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def picture_path(self, split: str, name: str) -> str:
        """Return where a picture belongs."""
        return f"images/{split}/{name}"

    def add(self, split: str, name: str, file: str, ids: np.ndarray) -> None:
        """Add a class map."""
        content = self.splits.setdefault(split, {"images": [], "annotations": []})
        height, width = ids.shape
        image_id = len(content["images"]) + 1
        file_name = file.removeprefix(f"images/{split}/")
        content["images"].append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        columns = np.asfortranarray(ids)  # the order of run lengths
        for index in _present(ids):
            ids_of = {"id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": index + 1}
            content["annotations"].append(ids_of | encode(columns == index) | {"iscrowd": 1})

    def finish(self) -> None:
        """Write the JSON file of each split."""
        (self.folder / "annotations").mkdir(parents=True, exist_ok=True)
        for split, content in self.splits.items():
            text = json.dumps({"licenses": [], **content, "categories": self.categories}, ensure_ascii=False)
            (self.folder / "annotations" / f"instances_{split}.json").write_text(text + "\n", encoding="utf-8")


class ColourFormat:
    """
    Colour masks as in CVAT's "Segmentation mask 1.1", which is Pascal VOC's layout with `labelmap.txt`.

    CVAT reserves black for the background, its label of pixels that have none. A class of that name is black, and then
    ignored pixels have a label of their own; otherwise the background is the ignored pixels. In `SegmentationObject`,
    each class of a picture is one object.

    Raises:
        UsageError: If `labelmap.txt` cannot hold a class name.
    """

    def __init__(self, folder: Path, split: ClassSplit) -> None:
        self.folder = folder
        for name in split.names:
            if ":" in name or name.startswith("#") or not name.isprintable():
                raise UsageError(
                    f"labelmap.txt cannot hold the class name {name!r}: labels have no ':', no '#' at their start and "
                    "no line break. Rename the class, or use --to coco."
                )
        self.names = split.names
        self.ignored = BACKGROUND
        if BACKGROUND in self.names:
            self.ignored = next(name for name in _IGNORED_NAMES if name not in self.names)
        self.has_ignored = False
        self.listed: dict[str, list[str]] = {}
        reserved = (BACKGROUND_COLOUR, IGNORED_COLOUR)
        # More than there are classes, as some may be reserved or among the first colours.
        colours = dict.fromkeys(map(tuple, make_colours(len(self.names) + 25).tolist()))
        free = [colour for colour in colours if colour not in reserved]
        self.colour_of = {
            name: BACKGROUND_COLOUR if name == BACKGROUND else free[index] for index, name in enumerate(self.names)
        }
        self.colour_of[self.ignored] = BACKGROUND_COLOUR if self.ignored == BACKGROUND else IGNORED_COLOUR
        # The last row, index -1, is that of ignored pixels.
        self.table = np.array([self.colour_of[name] for name in (*self.names, self.ignored)], dtype=np.uint8)
        self.object_colours = np.array(free[: len(self.names)], dtype=np.uint8)

    def picture_path(self, split: str, name: str) -> str:
        """Return where a picture belongs."""
        if '"' in name or name.startswith("#") or not name.isprintable() or name != name.strip():
            raise UsageError(
                f"{name!r}: ImageSets cannot list this name, which has a quotation mark or a line break, or begins "
                "with '#', or has a space at one of its ends: rename the picture."
            )
        return f"JPEGImages/{name}"

    def add(self, split: str, name: str, file: str, ids: np.ndarray) -> None:
        """Add a class map."""
        self.listed.setdefault(split, []).append(name)
        self.has_ignored |= bool((ids < 0).any())
        objects = np.zeros_like(self.table)
        present = [index for index in _present(ids) if self.names[index] != BACKGROUND]
        objects[present] = self.object_colours[: len(present)]
        for kind, table in {"SegmentationClass": self.table, "SegmentationObject": objects}.items():
            _save_png(Image.fromarray(table[ids]), self.folder / kind / f"{name}.png")

    def finish(self) -> None:
        """Write the label map and the lists of pictures."""
        labels = list(self.names)
        if BACKGROUND not in labels:
            labels.insert(0, BACKGROUND)
        elif self.has_ignored:
            labels.append(self.ignored)
        lines = ["# label:color_rgb:parts:actions"]
        lines += [f"{label}:{','.join(map(str, self.colour_of[label]))}::" for label in labels]
        _write_lines(lines, self.folder / "labelmap.txt")
        for split, names in self.listed.items():
            _write_lines(names, self.folder / "ImageSets" / "Segmentation" / f"{split}.txt")


class BinaryFormat:
    """
    One mask of 0 and 255 for each class and picture, with names as Label Studio's brush export writes them.

    `images/SPLIT/NAME.jpg` has `masks/SPLIT/NAME-tag-CLASS-0.png`. As files have no order, the classes are also in
    `classes.txt` or `id2label.json`. Ignored pixels are in no mask. In file names, letters that not every system
    allows are written as in URLs (`a%2Fb`).

    Raises:
        UsageError: If two class names differ only in case, as some systems ignore it.
    """

    def __init__(self, folder: Path, split: ClassSplit) -> None:
        self.folder = folder
        self.tags = [tag_of(name) for name in split.names]
        first: dict[str, str] = {}
        for name, tag in zip(split.names, self.tags):
            if (other := first.setdefault(tag.casefold(), name)) != name:
                raise UsageError(
                    f"The class names {other!r} and {name!r} differ only in case, as file names must not: rename one, "
                    "or use --to coco."
                )
        self.classes = split.nested_names()

    def picture_path(self, split: str, name: str) -> str:
        """Return where a picture belongs."""
        return f"images/{split}/{name}"

    def add(self, split: str, name: str, file: str, ids: np.ndarray) -> None:
        """Add a class map."""
        for index in _present(ids):
            mask = np.where(ids == index, np.uint8(255), np.uint8(0))
            path = self.folder / "masks" / split / f"{name}-tag-{self.tags[index]}-0.png"
            _save_png(Image.fromarray(mask), path)

    def finish(self) -> None:
        """Write the class names."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_class_names(self.folder, self.classes)


FORMATS: Mapping[str, Callable[[Path, ClassSplit], Format]] = {
    "coco": CocoFormat,
    "colours": ColourFormat,
    "binary": BinaryFormat,
}


def tag_of(name: str) -> str:
    """Return a class name as part of a file name; `urllib.parse.unquote` returns it again."""
    tag = "".join(letter if letter.isalnum() or letter in _ALLOWED else quote(letter, safe="") for letter in name)
    # Of NAME-tag-CLASS-0, the last "-tag-" must be the one that stands before the class.
    return tag.replace("-", "%2D") if "-tag-" in f"-{tag}" else tag


def write_class_names(folder: Path, classes: Sequence[Sequence[str]]) -> None:
    """Write `classes.txt`, or `id2label.json` where the names would not be the same when read from it."""
    expected = [names[0] if len(names) == 1 else list(names) for names in classes]
    path = folder / "classes.txt"
    _write_lines(["/".join(names) for names in classes], path)
    try:
        names, _ = read_class_names(path)
    except InputError:
        names = []
    if names != expected:
        path.unlink()
        text = json.dumps(dict(enumerate(expected)), ensure_ascii=False, indent=1)
        (folder / "id2label.json").write_text(text + "\n", encoding="utf-8")


def _present(ids: np.ndarray) -> list[int]:
    return np.flatnonzero(np.bincount(ids.ravel() + 1)[1:]).tolist()  # faster than np.unique


def _save_png(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")


def _write_lines(lines: Sequence[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
