"""The files of a source folder, and what the names of its folders say: split, picture or mask."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from zegclip.errors import UsageError
from zegclip.processing.image_reading import PICTURE_SUFFIXES, on_one_line

Role = Literal["picture", "mask", "other"]

ARRAY_SUFFIXES = (".npy", ".mat")
"""Suffixes of masks that are no pictures."""
_SPLIT = re.compile(r"(train|training|val|valid|validation|test|testing)(?:\d{4})?", re.IGNORECASE)
_SPLIT_OF = re.compile(
    rf"{_SPLIT.pattern}[_-]?(annots?|ann|annotations?|labels?|masks?|gt|images?|imgs?)", re.IGNORECASE
)
_MASK_FOLDERS = {
    *("ann", "ann_dir", "annot", "annotation", "annotations", "annots", "ground_truth", "groundtruth", "gt", "gtfine"),
    *("label", "label_images", "labels", "mask", "masks", "segmentation", "segmentationclass", "segmentationclasspng"),
    *("segmentationclassraw", "segmentations", "semantic", "targets"),
}
_PICTURE_FOLDERS = {"image", "images", "img", "img_dir", "imgs", "jpegimages", "leftimg8bit", "photos", "pictures"}
_OTHER_FOLDERS = {
    *("__macosx", "imagesets", "segmentationclassvisualization", "segmentationobject", "segmentationobjectpng"),
    *("visualization", "visualizations"),
}


@dataclass(frozen=True)
class Place:
    """
    What the path of a file says.

    Attributes:
        path: Relative to the source, with "/".
        split: Canonical name of its split, or `None`.
        role: `None` where no folder tells.
        inner: Folders that tell neither, joined with "/".
        folder: The folder that tells the role, in lower case.
        depth: How deep the folder lies that tells the split; -1 if none does.
    """

    path: str
    split: str | None
    role: Role | None
    inner: str
    folder: str
    depth: int = -1

    @property
    def stem(self) -> str:
        """Name without suffix."""
        return PurePosixPath(self.path).stem

    @property
    def suffix(self) -> str:
        """Suffix in lower case."""
        return PurePosixPath(self.path).suffix.lower()

    @property
    def is_image(self) -> bool:
        """Whether the file is one that Pillow may open."""
        return self.suffix in PICTURE_SUFFIXES


@dataclass(frozen=True)
class Listing:
    """A source folder and all of its visible files, sorted."""

    root: Path
    places: tuple[Place, ...]

    def path(self, relative: str) -> Path:
        """Return the path of a file."""
        return self.root / relative

    def having(self, *suffixes: str) -> list[Place]:
        """Return the files with one of these suffixes."""
        return [place for place in self.places if place.suffix in suffixes]


def list_source(root: Path, pictures: str | None = None, masks: str | None = None) -> Listing:
    """
    List a source.

    Args:
        root: The folder.
        pictures: Folder of the pictures: its name or its path in `root`; `None`: known names.
        masks: Folder of the masks.

    Raises:
        UsageError: If there is no such folder, or it has no files.
        OSError: If a folder cannot be read.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: there is no such folder.")
    paths = sorted(_walk(root))
    places = tuple(find_place(path, pictures, masks) for path in paths)
    depths = {place.depth for place in places if place.split is not None and place.role != "other"}
    if len(depths) == 1:  # Beside `train`, a folder of any name is a split.
        places = tuple(find_place(path, pictures, masks, min(depths)) for path in paths)
    if not places:
        raise UsageError(f"{root}: this folder is empty.")
    for option, folder, role in (("--pictures", pictures, "picture"), ("--masks", masks, "mask")):
        if folder is not None and not any(place.role == role for place in places):
            raise UsageError(f"{root}: there is no folder {folder!r} in it, which {option} names.")
    return Listing(root, places)


def find_place(path: str, pictures: str | None = None, masks: str | None = None, split_depth: int = -1) -> Place:
    """
    Return what a relative path says.

    Args:
        path: The path.
        pictures: As for [`list_source`], as is `masks`.
        split_depth: How deep the folders lie that are splits whatever they are called; -1: none.
    """
    split: str | None = None
    role: Role | None = None
    inner: list[str] = []
    teller, depth = "", -1
    *folders, _ = path.split("/")
    for index, folder in enumerate(folders):
        name, so_far = folder.lower(), "/".join(folders[: index + 1])
        split_here, role_here = split_of(folder), _role_of(name)
        if both := _SPLIT_OF.fullmatch(folder):
            split_here, role_here = split_of(both[1]), "picture" if both[2].lower().startswith("im") else "mask"
        options: tuple[tuple[str | None, Role], ...] = ((pictures, "picture"), (masks, "mask"))
        for given, wanted in options:
            if given is None:
                continue
            if given.strip("/") in (folder, so_far):
                role_here = wanted
            elif role_here == wanted:
                role_here = "other"
        if role_here is not None:
            role, teller = role_here, name
        if index == split_depth and split_here is None and role_here is None:
            split_here = folder
        if split_here is not None and split is None:
            split, depth = split_here, index
        elif role_here is None:
            inner.append(folder)
    return Place(path, split, role, "/".join(inner), teller, depth)


def _role_of(name: str) -> Role | None:
    roles: tuple[tuple[set[str], Role], ...] = (
        (_MASK_FOLDERS, "mask"),
        (_PICTURE_FOLDERS, "picture"),
        (_OTHER_FOLDERS, "other"),
    )
    return next((role for names, role in roles if name in names), None)


def split_of(name: str) -> str | None:
    """Return the canonical name of a split, which a folder or file names, such as `validation` for `val2017`."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return None
    return {"tr": "train", "va": "validation", "te": "test"}[match[1][:2].lower()]


def split_within(name: str) -> str | None:
    """Return the split that one of the words in a name is, such as `train` for `instances_train2017`."""
    found = {split for word in re.split(r"[^A-Za-z0-9]+", name) if (split := split_of(word)) is not None}
    return found.pop() if len(found) == 1 else None


def fold(name: str) -> str:
    """Return a name without differences in case, and in how Unicode composes letters."""
    return unicodedata.normalize("NFC", name).casefold()


def _without_spaces(name: str) -> str:
    """Return a name as Label Studio changes those of uploads, folded."""
    return re.sub(r"[^\w./-]", "_", fold(name))


SPELLINGS: tuple[Callable[[str], str], ...] = (str, fold, _without_spaces)
"""What two names of one file have in common: all, or less."""


class NameIndex:
    """
    Files by name. Where no file has a name exactly, those have it that differ in case or in how letters are composed,
    or as Label Studio changes the names of uploads.

    Args:
        named: Names with their files.
    """

    def __init__(self, named: Iterable[tuple[str, Place]]) -> None:
        self._places: tuple[dict[str, list[Place]], ...] = tuple({} for _ in SPELLINGS)
        for name, place in named:
            for places, spell in zip(self._places, SPELLINGS):
                places.setdefault(spell(name), []).append(place)

    def find(
        self, name: str, accept: Callable[[list[Place]], list[Place]] = list, exactly: bool = False
    ) -> list[Place]:
        """
        Return the files of a name.

        Args:
            name: The name.
            accept: Chooses from the files of a spelling; the next one counts if none is left.
            exactly: Whether only the files of this very name count.
        """
        for places, spell in zip(self._places[: 1 if exactly else None], SPELLINGS):
            if found := accept(places.get(spell(name), [])):
                return found
        return []


def common_folders(inner: Iterable[str]) -> int:
    """Return how many of the first folders are the same in all these paths."""
    paths = [path.split("/") if path else [] for path in inner]
    same = [len(set(parts)) == 1 for parts in zip(*paths)]
    return same.index(False) if False in same else len(same)


def one_line(path: str | Path) -> str:
    """Return a path for a message."""
    return on_one_line(str(path))


def _walk(root: Path) -> list[str]:
    """Return the relative paths of all visible files. Links to folders are followed, but each folder is read once."""

    def fail(error: OSError) -> None:  # os.walk would leave out what it cannot read.
        raise error

    found, seen = [], set()
    for place, folders, names in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        start = os.path.relpath(place, root)
        found += [os.path.normpath(os.path.join(start, name)) for name in names if not name.startswith(".")]
    return [path.replace(os.sep, "/") for path in found]
