"""Which format a source is in: the one that it proves, or the one that is named."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from zegclip.errors import UsageError
from zegclip.importing.class_masks import is_brush_export, pair_brushes, read_class_masks
from zegclip.importing.class_tables import ClassTable, find_table, has_table
from zegclip.importing.coco import find_coco, read_coco
from zegclip.importing.layouts import MASK_SUFFIXES, Pairs, pair_masks, rests_of
from zegclip.importing.listing import Listing
from zegclip.importing.pixel_masks import read_ids, read_pixel_masks
from zegclip.importing.sources import Item, Skipped, Source
from zegclip.importing.yolo import find_yolo, read_yolo
from zegclip.processing.benchmarks import BENCHMARKS, benchmark_split, find_benchmark_files, read_class_lists

_VOC_STEM = re.compile(r"(2007|2008|2009|2010|2011|2012)_\d{6}")
_ONLY_NUMBER = re.compile(rf"({'|'.join(MASK_SUFFIXES)})?[^0-9A-Za-z]*\d+")
"""Behind a picture's name, what names no class."""


def read_source(
    listing: Listing, format: str | None, classes: Path | None, variable: str | None, num_workers: int
) -> Source:
    """
    Read a source.

    Args:
        listing: Its files.
        format: One of `zegclip.importing.FORMATS`; `None`: the one that the files prove.
        classes: File that names the classes, where the format does not.
        variable: Name of the array in `.mat` files.
        num_workers: Number of processes.

    Raises:
        UsageError: If the format cannot be told, or something is missing or ambiguous; the sentence names the option
            that decides.
        InputError: If a file that belongs to all pictures is damaged.
    """
    format = format or _prove_format(listing)
    if classes is not None and format in ("coco", "yolo", "voc", "ade20k", "cityscapes"):
        raise UsageError(f"--classes is for formats without names, but {format} has its own.")
    if format == "coco":
        return read_coco(listing)
    if format == "yolo":
        return read_yolo(listing)
    if format in ("ade20k", "cityscapes"):
        return _read_benchmark(listing, format)
    if format == "voc":
        names = ["background", *read_class_lists()["voc"]["names"]]
        table = ClassTable("the class list of VOC", names, tuple(range(len(names))))
        source = read_pixel_masks(listing, pair_masks(listing), table, "ids", None, num_workers)
        source.format = "voc"
        return source
    if format == "class-masks" or (format == "masks" and is_brush_export(listing)):
        pairs = pair_brushes(listing) if is_brush_export(listing) else pair_masks(listing)
        return read_class_masks(listing, pairs, find_table(listing, classes))
    pairs = pair_masks(listing)
    if format == "masks" and _name_classes(pairs):
        named = find_table(listing, classes)
        if named is None and all(_ONLY_NUMBER.fullmatch(rest) for rest in rests_of(pairs)):
            raise UsageError(
                f"{listing.root}: numbers are all that names of masks say beyond their pictures': if they are the "
                "classes, give --format class-masks; if they are single objects, merge those of each picture."
            )
        return read_class_masks(listing, pairs, named)
    _keep_one_mask(pairs)
    kind = None if format == "masks" else format
    return read_pixel_masks(listing, pairs, find_table(listing, classes), kind, variable, num_workers)


def _prove_format(listing: Listing) -> str:
    proofs: dict[str, Callable[[], bool]] = {
        "coco": lambda: bool(find_coco(listing)),
        "yolo": lambda: bool(find_yolo(listing)) and _have_labels(listing),
        "cityscapes": lambda: (
            any(place.path.endswith("_gtFine_labelIds.png") for place in listing.places)
            or any(place.path.endswith("_gtFine_labelTrainIds.png") for place in listing.places)
        ),
        "ade20k": lambda: _have_names(listing, "annotations", re.compile(r"ADE_(train|val)_\d{8}")),
        "voc": lambda: _have_names(listing, "segmentationclass", _VOC_STEM),
        "masks": lambda: any(place.role == "mask" and place.is_image for place in listing.places),
    }
    proven = [name for name, is_proven in proofs.items() if is_proven()]
    # The layouts of benchmarks are kinds of masks.
    if len(proven) > 1 and proven[-1] == "masks" and proven[0] in BENCHMARKS:
        proven.pop()
    if len(proven) > 1:
        raise UsageError(f"{listing.root} has {' and '.join(proven)} at once: choose one with --format.")
    return proven[0] if proven else "masks"


def _have_labels(listing: Listing) -> bool:
    """Return whether text files lie as YOLO's labels do, for at least one picture."""
    stems = {place.stem for place in listing.having(".txt")}
    return any(place.is_image and place.stem in stems for place in listing.places)


def _have_names(listing: Listing, folder: str, stem: re.Pattern[str]) -> bool:
    """Return whether all masks of a folder are called as a benchmark's, and nothing else names their classes."""
    masks = [place for place in listing.places if place.is_image and place.folder == folder]
    return bool(masks) and all(stem.fullmatch(mask.stem) for mask in masks) and not has_table(listing)


def _read_benchmark(listing: Listing, name: str) -> Source:
    """Read a benchmark through [`find_benchmark_files`], from the source or the folder in it that has its layout."""
    start = BENCHMARKS[name].train[0]
    roots = {place.path[: place.path.index(start)] for place in listing.places if f"/{start}/" in f"/{place.path}"}
    root = listing.path(min(roots, default=""))
    files = find_benchmark_files(name, str(root))
    masks = [mask for pairs in files.values() for _, mask in pairs if Path(mask).is_file()]
    split = benchmark_split(name, masks=masks)
    source = Source(name, [list(names) if len(names) > 1 else names[0] for names in split.nested_names()], [])
    before, behind = BENCHMARKS[name].picture.split("{}")
    for split_name, pairs in files.items():
        for picture, mask in pairs:
            place = Path(picture).relative_to(root).as_posix()
            missing = next((path for path in (picture, mask) if not Path(path).is_file()), None)
            if missing is not None:
                source.skipped.append(Skipped(place, f"there is no file {missing}."))
                continue
            inner = place.removeprefix(before).removesuffix(behind)
            item_name = PurePosixPath(*PurePosixPath(inner).parts[1:]).as_posix()
            read = partial(read_ids, Path(mask), split)
            source.items.append(Item(Path(picture), split_name, item_name, mask, read))
    return source


def _name_classes(pairs: Pairs) -> bool:
    """Return whether masks differ by their classes: by ends that are no usual ones."""
    rests = rests_of(pairs)
    return len(rests) > 1 and "" not in rests


def _keep_one_mask(pairs: Pairs) -> None:
    """Leave out pictures with several masks."""
    for picture, masks in list(pairs.masks.items()):
        if len(masks) > 1:
            paths = " and ".join(sorted(mask.path for mask, _ in masks)[:2])
            pairs.skipped.append(Skipped(picture.path, f"several masks have its name: {paths}."))
            del pairs.masks[picture]
