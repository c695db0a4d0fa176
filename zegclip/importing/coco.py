"""COCO JSON: polygons and run lengths."""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from zegclip.errors import UsageError
from zegclip.importing.layouts import divide
from zegclip.importing.listing import Listing, NameIndex, Place, fold, one_line, split_of, split_within
from zegclip.importing.painting import Region, check_packages, paint_regions
from zegclip.importing.sources import ClassName, Item, Skipped, Source, add_background, label_of
from zegclip.processing.input_error import InputError

_KEYS = ("images", "annotations", "categories")


def find_coco(listing: Listing) -> list[Place]:
    """Return the JSON files that have COCO's three lists."""
    return [place for place in listing.having(".json") if _has_keys(listing.path(place.path))]


def read_coco(listing: Listing) -> Source:
    """
    Read all COCO JSON files of a source.

    Raises:
        UsageError: If there is none, or a category has no name.
        InputError: If a file is damaged.
    """
    check_packages("pycocotools")
    files = find_coco(listing)
    if not files:
        raise UsageError(f"{listing.root}: no JSON file in it has COCO's images, annotations and categories.")
    contents = {place: _read(listing.path(place.path)) for place in files}
    names, notes = _class_names(contents)
    classes, background = add_background(names)
    result = Source("coco", classes, [], notes)
    pictures = [place for place in listing.places if place.is_image and place.role in ("picture", None, "mask")]
    index = NameIndex((PurePosixPath(picture.path).name, picture) for picture in pictures)
    folders = {fold(part) for picture in pictures for part in picture.path.split("/")[:-1]}
    may_list = _owners(contents, pictures)
    found: dict[Place, tuple[Place, Mapping[str, Any]]] = {}
    images = [(file, image) for file, content in contents.items() for image in content["images"]]
    # Those whose names are exact come first, so that no other one takes their pictures.
    left: list[tuple[Place, Mapping[str, Any]]] = []
    for exactly, listed in ((True, images), (False, left)):
        for file, image in listed:
            name = str(image.get("file_name", ""))
            origin = f"{file.path}: {one_line(name)}"
            try:
                picture = _find_picture(name, index, file, folders, exactly, may_list)
            except InputError as error:
                result.skipped.append(Skipped(origin, str(error)))
                continue
            if picture is None and exactly:
                left.append((file, image))
            elif picture is None or (picture in found and not exactly):
                result.skipped.append(Skipped(origin, "there is no such picture."))
            elif picture in found:
                reason = f"it is listed twice, in {found[picture][0].path} and {file.path}."
                result.skipped.append(Skipped(picture.path, reason))
            else:
                found[picture] = (file, image)
    named = {file: split for file, _ in found.values() if (split := _split(file)) is not None}
    # One file over the folders of several splits is none of them, whatever it is called.
    if len(set(named.values())) == 1 and len({picture.split for picture in found if picture.split}) > 1:
        named = {}
    splits = {picture: named[file] for picture, (file, _) in found.items() if file in named}
    divided = divide(listing, list(found), splits)
    result.notes += divided.notes
    result.skipped += divided.skipped
    regions = {file: _group_regions(file, content, classes, result.notes) for file, content in contents.items()}
    if not any(regions.values()) and any(content["annotations"] for content in contents.values()):
        raise InputError(f"{next(iter(contents)).path}: no annotation has an image_id that is an image's id.")
    empty = without = 0
    for picture, name in divided.names.items():
        file, image = found[picture]
        origin = f"{listing.path(file.path)}, image {image['id']}"
        of_image = regions[file].get(image["id"], _OfImage())
        if of_image.fault:
            result.skipped.append(Skipped(picture.path, of_image.fault))
            continue
        empty += of_image.empty
        width, height = image.get("width"), image.get("height")
        if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
            result.skipped.append(Skipped(picture.path, f"{file.path} does not say its width and height."))
            continue
        without += not of_image.regions
        read = partial(paint_regions, of_image.regions, (width, height), background, origin)
        result.items.append(Item(listing.path(picture.path), divided.splits[picture], name, origin, read))
    if empty:
        result.notes.append(f"{empty} outlines with fewer than three corners cover no pixel and were left out.")
    if without:
        result.notes.append(f"{without} pictures have no outline and became {label_of(classes[background])!r}.")
    if unused := len(set(pictures) - found.keys()):
        result.notes.append(f"{unused} pictures are in no JSON file and were left out.")
    return result


def _base_name(path: str) -> str:
    return fold(PurePosixPath(path.replace("\\", "/")).name)


def _owners(contents: Mapping[Place, Mapping[str, Any]], pictures: Sequence[Place]) -> Callable[[Place, Place], bool]:
    """
    Return a function that says whether a file may mean a picture: where pictures that it lists lie in its folder, it
    means no others, and none in the folder of another split whose file lists this name.
    """
    names = {
        file: {_base_name(str(image.get("file_name", ""))) for image in content["images"]}
        for file, content in contents.items()
    }
    inside: dict[str, set[str]] = defaultdict(set)
    for picture in pictures:
        for folder in PurePosixPath(picture.path).parents:
            inside[f"{folder}/"].add(_base_name(picture.path))
    homes = {file: f"{PurePosixPath(file.path).parent}/" for file in names}
    homes = {file: home for file, home in homes.items() if home != "./" and names[file] & inside[home]}
    listed = {(_split(file), name) for file, of_file in names.items() for name in of_file}

    def may_list(file: Place, picture: Place) -> bool:
        others = picture.split not in (None, _split(file)) and (picture.split, _base_name(picture.path)) in listed
        return not others and picture.path.startswith(homes.get(file, ""))

    return may_list


def _find_picture(
    name: str,
    index: NameIndex,
    file: Place,
    known: Collection[str],
    exactly: bool,
    may_list: Callable[[Place, Place], bool],
) -> Place | None:
    """
    Return the picture with this name or path; of several, the one that lies beside the file or in its split.

    A folder that is `known` in the source, folded, must be the picture's; others may be those of another machine.
    """
    wanted = PurePosixPath(name.replace("\\", "/"))
    folders = [fold(part) for part in wanted.parts[:-1] if part not in ("/", ".", "..")]

    def accept(places: Sequence[Place]) -> list[Place]:
        """Keep those that the file may mean, whose paths end with most of the folders."""
        for length in range(len(folders), -1, -1):
            end = folders[len(folders) - length :]
            told = {split_of(part) for part in end} - {None}  # The name itself says the split's folder.
            found = [
                place
                for place in places
                if fold(place.path).split("/")[-1 - length : -1] == end
                and (place.split in told or may_list(file, place))
            ]
            if found or (length == 1 and end[0] in known):
                return found
        return []

    fitting = index.find(wanted.name, accept, exactly)
    if len(fitting) > 1:
        folder, split = file.path.rpartition("/")[0], _split(file)
        closer = [place for place in fitting if place.path.rpartition("/")[0] == folder]
        fitting = closer or [place for place in fitting if split is not None and place.split == split] or fitting
    if len(fitting) > 1:
        paths = f"{one_line(fitting[0].path)} and {one_line(fitting[1].path)}"
        raise InputError(f"several pictures have this name, such as {paths}.")
    return fitting[0] if fitting else None


def _split(file: Place) -> str | None:
    """Return the split that a file's folder or name says."""
    return file.split or split_of(file.stem) or split_within(file.stem)


def _class_names(contents: Mapping[Place, Mapping[str, Any]]) -> tuple[list[ClassName], list[str]]:
    """Return the names in all files, by id, without a category that only stands for all others; and notes."""
    names: list[str] = []
    used, groups, projects = set(), set(), set()
    for file, content in contents.items():
        by_id: dict[Any, str] = {}
        for category in content["categories"]:
            name = category.get("name") if isinstance(category, dict) else None
            number = category.get("id") if isinstance(category, dict) else None
            if not isinstance(name, str) or not isinstance(number, int):
                raise InputError(f"{file.path}: the category {category!r} has no name and number.")
            if number in by_id or name in by_id.values():
                raise InputError(f"{file.path}: the category {name!r} or its number {number} occurs twice.")
            by_id[number] = name
            groups.add(category.get("supercategory"))
            if category.get("supercategory") == "none":
                projects.add(name)
        names += [by_id[number] for number in sorted(by_id) if by_id[number] not in names]
        used |= {by_id.get(entry.get("category_id")) for entry in content["annotations"] if isinstance(entry, dict)}
    # Roboflow's first category is the project, of which all others are kinds.
    left_out = [name for name in names if name in projects & groups - used]
    notes = [f"the category {name!r} has no outlines, but stands for others, and was left out." for name in left_out]
    return [name for name in names if name not in left_out], notes


@dataclass
class _OfImage:
    """The regions of an image, how many outlines enclose nothing, and why the image cannot be used."""

    regions: list[Region] = field(default_factory=list)
    empty: int = 0
    fault: str = ""


def _group_regions(
    file: Place, content: Mapping[str, Any], classes: Sequence[ClassName], notes: list[str]
) -> dict[int | str, _OfImage]:
    """Return the regions of each image by its id, which annotations may have as text, and add to the notes."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    positions = {label_of(name): index for index, name in enumerate(classes)}
    found: dict[int | str, _OfImage] = defaultdict(_OfImage)
    own = [image["id"] for image in content["images"]]
    ids = {str(image_id): image_id for image_id in own} | {image_id: image_id for image_id in own}
    lost = 0
    for entry in content["annotations"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), (int, str)):
            raise InputError(f"{file.path}: the annotation {str(entry)[:80]} belongs to no image.")
        image_id = ids.get(entry["image_id"], ids.get(str(entry["image_id"])))
        if image_id is None:
            lost += 1
            continue
        of_image = found[image_id]
        outline, box, label = entry.get("segmentation"), entry.get("bbox"), names.get(entry.get("category_id"))
        if label not in positions:
            of_image.fault = f"{file.path}: annotation {entry.get('id')} is of no known category."
        elif isinstance(outline, dict):
            of_image.regions.append(Region(positions[label], outline))
        elif isinstance(outline, list) and outline:
            # Polygons of one or two corners enclose nothing; pycocotools takes four numbers for a box.
            enclosing = [polygon for polygon in outline if not isinstance(polygon, list) or len(polygon) >= 6]
            of_image.regions.append(Region(positions[label], enclosing))
            of_image.empty += not enclosing
        elif isinstance(box, list) and any(box[2:]):
            of_image.fault = f"{file.path}: annotation {entry.get('id')} has a box, but no outline."
        else:
            of_image.empty += 1
    if lost:
        notes.append(f"{lost} annotations of {file.path} belong to none of its images and were left out.")
    return found


def _has_keys(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(1)
            if start not in (b"{", b"\xef", b" ", b"\n", b"\r", b"\t"):
                return False
            content = file.read()
    except OSError:
        return False
    return all(f'"{key}"'.encode() in content for key in _KEYS)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: this file is not JSON.") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in _KEYS):
        raise InputError(f"{path}: images, annotations and categories must be lists.")
    for image in content["images"]:
        if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
            raise InputError(f"{path}: the image {str(image)[:80]} has no id.")
    if len({image["id"] for image in content["images"]}) < len(content["images"]):
        raise InputError(f"{path}: two images have the same id.")
    return content
