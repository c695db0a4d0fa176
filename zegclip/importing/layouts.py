"""Which mask belongs to which picture, and to which split: by folders, suffixes and lists."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from zegclip.errors import UsageError
from zegclip.importing.listing import (
    ARRAY_SUFFIXES,
    SPELLINGS,
    Listing,
    NameIndex,
    Place,
    common_folders,
    fold,
    one_line,
    split_of,
)
from zegclip.importing.sources import Skipped
from zegclip.processing.class_split import read_text
from zegclip.processing.image_reading import PICTURE_SUFFIXES

MASK_SUFFIXES = ("_L", "_mask", "_masks", "_GT", "_gt", "_label", "_labels", "_seg", "_segmentation", "_annotation")
"""Ends of the names of masks that lie beside their pictures."""
_NUMBER = re.compile(r"[^0-9A-Za-z]\d+")
_PHOTO_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff")


@dataclass
class Pairs:
    """
    Pictures with their masks.

    Attributes:
        masks: For each picture its masks, each with what its name says beyond the picture's: the mask suffix and
            folders, by which several masks of one picture differ.
        splits: The split of each picture.
        names: The path of each picture within its split, without suffix.
        notes: As for [`Source`], as is `skipped`.
    """

    masks: dict[Place, list[tuple[Place, str]]]
    splits: dict[Place, str]
    names: dict[Place, str]
    notes: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def pair_masks(listing: Listing) -> Pairs:
    """
    Find pictures and masks.

    Raises:
        UsageError: If there are no pictures or no masks, or names fit in several ways.
    """
    pictures, masks, notes = _tell_apart(listing)
    if not pictures or not masks:
        if not masks and any(_is_labelme(listing.path(place.path)) for place in listing.having(".json")[:1]):
            raise UsageError(
                f"{listing.root}: its JSON files are labelme's, which are not read: turn them into VOC's layout with "
                "labelme's own script labelme2voc.py, and import that."
            )
        if any(place.path.rpartition("/")[2] == "metadata.jsonl" for place in listing.places):
            raise UsageError(
                f"{listing.root}: its metadata.jsonl names pictures and masks, so it needs no import: zegclip check, "
                "init and train read it as it is."
            )
        missing = "masks" if pictures else "pictures"
        raise UsageError(
            f"{listing.root}: no {missing} were found in it; name the folders with --pictures and --masks, such as "
            "--pictures photos --masks drawn."
        )
    found = _match(pictures, masks)
    if any(without_mask_suffix(rest) == "" for of_picture in found.values() for _, rest in of_picture):
        # Where masks are called as their pictures are, one with another number is that of a picture that is not there.
        for of_picture in found.values():
            of_picture[:] = [
                (mask, rest) for mask, rest in of_picture if not _NUMBER.fullmatch(without_mask_suffix(rest))
            ]
    unused = set(masks) - {mask for of_picture in found.values() for mask, _ in of_picture}
    result = divide(listing, pictures)
    result.notes = notes + result.notes
    listed = set(result.splits)
    result.masks = {picture: found[picture] for picture in pictures if picture in listed and found[picture]}
    for picture in pictures:
        if picture in listed and not found[picture]:
            result.skipped.append(Skipped(picture.path, "there is no mask for this picture."))
    if unused:
        first = min(place.path for place in unused)
        result.notes.append(f"{len(unused)} masks have no picture and were left out, such as {one_line(first)}.")
    return result


def _is_labelme(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def divide(listing: Listing, pictures: Sequence[Place], told: Mapping[Place, str] | None = None) -> Pairs:
    """
    Find the split and name of each picture, from folders or lists.

    Args:
        listing: The source.
        pictures: Its pictures.
        told: Splits that annotations say, which count more than folders and lists.

    Returns:
        Pairs without masks.
    """
    result = Pairs({}, {}, {})
    lists = _read_lists(listing, {picture.stem for picture in pictures})
    told = told or {}
    known = {picture: told.get(picture, picture.split) for picture in pictures}
    if lists and not any(known.values()):
        of_stem = NameIndex((picture.stem, picture) for picture in pictures)
        for split, (path, stems) in lists.items():
            for stem in stems:
                for picture in of_stem.find(stem):
                    if result.splits.setdefault(picture, split) != split:
                        raise UsageError(
                            f"{listing.path(path)} lists {one_line(stem)}, which is also in the split "
                            f"{result.splits[picture]}: remove it from one of them."
                        )
                if not of_stem.find(stem):
                    result.skipped.append(Skipped(path, f"it lists {one_line(stem)}, but there is no such picture."))
        if left := len(pictures) - len(result.splits):
            paths = ", ".join(path for path, _ in lists.values())
            result.notes.append(f"{left} pictures are in none of the lists {paths} and were left out.")
    else:
        result.splits = {picture: split or "train" for picture, split in known.items()}
    if moved := [picture for picture, split in told.items() if picture.split not in (None, split)]:
        result.notes.append(
            f"{len(moved)} pictures, such as {one_line(moved[0].path)}, lie in a folder of another split than the "
            f"annotations say ({told[moved[0]]}), which decide."
        )
    depth = common_folders(picture.inner for picture in result.splits)
    taken: dict[tuple[str, str], Place] = {}
    for picture in list(result.splits):
        inner = "/".join(picture.inner.split("/")[depth:] if picture.inner else [])
        name = f"{inner}/{picture.stem}" if inner else picture.stem
        other = taken.setdefault((result.splits[picture], name.lower()), picture)
        if other is not picture:
            reason = f"its name without suffix is that of {one_line(other.path)}, so masks would be ambiguous."
            result.skipped.append(Skipped(picture.path, reason))
            del result.splits[picture]
            continue
        result.names[picture] = name
    return result


def _read_lists(listing: Listing, known: Collection[str]) -> dict[str, tuple[str, list[str]]]:
    """Return path and stems of each split's list, in VOC's folder of lists or at the top; `known` are all stems."""
    found: dict[str, tuple[str, list[str]]] = {}
    for place in listing.having(".txt"):
        folders = place.path.lower().split("/")[:-1]
        in_lists = folders[-2:] == ["imagesets", "segmentation"] or folders[-1:] == ["imagesets"]
        split = split_of(place.stem)
        if in_lists and place.stem.lower() == "default":  # CVAT's, of a task without splits
            split = "train"
        if split is None or not (in_lists or not folders):
            continue
        lines = read_text(str(listing.path(place.path))).split("\n")
        # A line may hold the path of the mask as well, and a name may hold spaces.
        stems = [
            first if (first := _stem_of(line.split()[0])) in known else _stem_of(line.strip())
            for line in lines
            if line.strip()
        ]
        if split in found:
            raise UsageError(f"{listing.root}: both {found[split][0]} and {place.path} list a split; remove one.")
        found[split] = (place.path, stems)
    return found


def _stem_of(path: str) -> str:
    name = PurePosixPath(path.replace("\\", "/")).name
    return name[: -len(suffix)] if (suffix := PurePosixPath(name).suffix).lower() in PICTURE_SUFFIXES else name


def _tell_apart(listing: Listing) -> tuple[list[Place], list[Place], list[str]]:
    """Return pictures, masks and notes."""
    arrays = [place for place in listing.having(*ARRAY_SUFFIXES) if place.role != "other"]
    masks = [place for place in listing.places if place.role == "mask" and (place.is_image or place in arrays)]
    pictures = [place for place in listing.places if place.is_image and place.role == "picture"]
    rest = [place for place in listing.places if place.is_image and place.role is None]
    notes: list[str] = []
    if masks:
        masks, notes = _choose_folder(masks)
        pictures = pictures or rest
        return pictures, masks, notes
    pictures = pictures + rest if not pictures or not arrays else pictures
    if arrays:
        return pictures, arrays, notes
    # Beside each other: names with a suffix, or with the same stem and another format.
    by_stem: dict[tuple[str, str], list[Place]] = defaultdict(list)
    for place in pictures:
        by_stem[place.path.rpartition("/")[0], fold(place.stem)].append(place)
    for place in pictures:
        folder, stem = place.path.rpartition("/")[0], place.stem
        beside = by_stem[folder, fold(stem)]
        suffixed = any(
            stem.endswith(suffix) and (folder, fold(stem.removesuffix(suffix))) in by_stem for suffix in MASK_SUFFIXES
        )
        same = place.suffix == ".png" and any(other.suffix in _PHOTO_SUFFIXES for other in beside)
        if suffixed or (same and len(beside) == 2):
            masks.append(place)
    chosen = set(masks)
    return [place for place in pictures if place not in chosen], masks, notes


def _choose_folder(masks: list[Place]) -> tuple[list[Place], list[str]]:
    """Of masks in several folders, keep those that say more; refuse if it is not known which."""
    folders = Counter(mask.folder for mask in masks)
    if "segmentationclassraw" in folders and "segmentationclass" in folders:
        kept = [mask for mask in masks if mask.folder != "segmentationclass"]
        return kept, ["masks are those of SegmentationClassRaw, not SegmentationClass (--masks chooses)."]
    keys = Counter((mask.split, mask.inner, mask.stem) for mask in masks)
    if len(folders) > 1 and (twice := [mask for mask in masks if keys[mask.split, mask.inner, mask.stem] > 1]):
        names = sorted({mask.path.rpartition("/")[0] for mask in twice})[:2]
        raise UsageError(f"{names[0]} and {names[-1]} have masks of the same names: choose a folder with --masks.")
    return masks, []


def _match(pictures: Sequence[Place], masks: Sequence[Place]) -> dict[Place, list[tuple[Place, str]]]:
    """
    Return the masks of each picture: those with its name, or with its name and something behind it.

    Splits and folders must be the same; where one side has none, they are compared without. Folders may also lie in
    the other side's, or have another name if nothing else in them fits. Names may differ as in [`NameIndex`].
    """
    found: dict[Place, list[tuple[Place, str]]] = {picture: [] for picture in pictures}
    left: Collection[Place] = list(masks)
    matched: set[tuple[str | None, str]] = set()
    ways = [(split, inner) for inner in (True, False) for split in (True, False)]
    for parts, spell in [(parts, spell) for parts in ways for spell in SPELLINGS]:
        if spell is SPELLINGS[0]:
            pairs = [(picture, mask) for picture, of_picture in found.items() for mask, _ in of_picture]
            matched = {(place.split, place.inner) for pair in pairs for place in pair}
        index: dict[tuple[str | None, str, str], list[Place]] = defaultdict(list)
        for picture in pictures:
            index[_key(picture, picture.stem, spell, *parts)].append(picture)
        still: list[Place] = []
        for mask in left:
            owner, rest = _longest(mask, index, parts, spell)
            if owner is None or not _may_pair(mask, owner, matched):
                # Another class of a picture that has masks is reported with them.
                is_other_class = owner is not None and found[owner] and mask.split == owner.split
                if owner is not None and is_other_class and (mask.split, mask.inner) not in matched:
                    found[owner].append((mask, rest))
                else:
                    still.append(mask)
            else:
                # A class may also be a folder.
                label = "" if parts[1] or mask.inner == owner.inner else mask.inner.rpartition("/")[2]
                found[owner].append((mask, rest or label))
        left = still
    return found


def _longest(
    mask: Place,
    index: Mapping[tuple[str | None, str, str], list[Place]],
    parts: tuple[bool, bool],
    spell: Callable[[str], str],
) -> tuple[Place | None, str]:
    """Return the only picture with the longest name that the mask's begins with, and the rest of the mask's."""
    stem = mask.stem
    ends = [len(stem), *(end for end in range(len(stem) - 1, 0, -1) if not stem[end].isalnum())]
    for end in ends:
        pictures = index.get(_key(mask, stem[:end], spell, *parts), ())
        if len(pictures) == 1 and pictures[0] is not mask:
            return pictures[0], stem[end:]
    return None, ""


def _may_pair(mask: Place, picture: Place, matched: set[tuple[str | None, str]]) -> bool:
    """Return whether a mask's split and folders may be a picture's; `matched` are those that fit stricter."""
    splits = {split for split in (mask.split, picture.split) if split is not None}
    if len(splits) > 1 and all(split_of(split) for split in splits):
        return False
    inner = PurePosixPath(mask.inner), PurePosixPath(picture.inner)
    nested = inner[0].is_relative_to(inner[1]) or inner[1].is_relative_to(inner[0])
    if len(splits) < 2 and nested:
        return True
    return not {(mask.split, mask.inner), (picture.split, picture.inner)} & matched


def _key(
    place: Place, stem: str, spell: Callable[[str], str], with_split: bool, with_inner: bool
) -> tuple[str | None, str, str]:
    return place.split if with_split else None, spell(place.inner) if with_inner else "", spell(stem)


def without_mask_suffix(rest: str) -> str:
    """Return what the name of a mask says beyond its picture's, without a usual end."""
    return next((rest.removesuffix(suffix) for suffix in MASK_SUFFIXES if rest.endswith(suffix)), rest)


def rests_of(pairs: Pairs) -> Counter[str]:
    """Count what names of masks say beyond their pictures' and usual ends."""
    return Counter(without_mask_suffix(rest) for masks in pairs.masks.values() for _, rest in masks)
