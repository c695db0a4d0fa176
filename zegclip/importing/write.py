"""Writes a source as the folder that the rest of zegclip reads: pictures, masks, class names and a report."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from zegclip.errors import UsageError
from zegclip.files import check_new_folder, read_json, remove_leftovers, replacing, write_json
from zegclip.importing.listing import Listing, one_line
from zegclip.importing.parallel import call_each
from zegclip.importing.sources import IGNORED, UNLISTED, ClassName, Item, Skipped, Source, label_of
from zegclip.processing.class_split import read_class_names, split_classes
from zegclip.processing.datasets import check_sizes
from zegclip.processing.image_reading import load_rgb, load_upright, read_frame
from zegclip.processing.input_error import InputError
from zegclip.processing.names import check_labels

RECORD = "import.json"
"""What a target holds: where it comes from, with which options, and what was skipped."""
_JOURNAL = ".import.jsonl"
_COPIED, _LINKED = "copied", "linked"


class Written(NamedTuple):
    """
    What became of one picture.

    Attributes:
        how: Whether its file was linked or copied.
        pixels: Number of pixels of each id of the source.
        turned: Whether its mask had to be turned as its EXIF orientation says.
        fault: Why it was skipped; empty if it was not.
    """

    how: str = ""
    pixels: Mapping[str, int] = {}
    turned: bool = False
    fault: str = ""


@dataclass
class Outcome:
    """
    What an import has done.

    Attributes:
        splits: Number of pictures of each split.
        linked: Number of pictures whose files are the source's.
        copied: Number of the others.
        pixels: Number of pixels of each class by its label, and of `ignored` and `unlisted` ones.
        skipped: What was not imported.
        notes: As for [`Source`].
        done_before: Number of pictures that an earlier run has written.
    """

    splits: Counter[str] = field(default_factory=Counter)
    linked: int = 0
    copied: int = 0
    pixels: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    done_before: int = 0


def describe_import(listing: Listing, options: Mapping[str, Any], classes: Path | None) -> dict[str, Any]:
    """Return what an import depends on: its options, and the names, sizes and times of the source's files."""
    digest = hashlib.blake2b(digest_size=16)
    for place in listing.places:
        found = os.stat(listing.path(place.path))
        digest.update(f"{place.path!r} {found.st_size} {found.st_mtime_ns}\n".encode())
    if classes is not None:
        digest.update(classes.read_bytes())
    return {"source": str(listing.root.resolve()), "contents": digest.hexdigest(), "options": dict(options)}


def find_finished(target: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """
    Return the record of an import that is finished; `None` if it is new or was interrupted.

    Raises:
        UsageError: If the target holds something else.
    """
    record = read_json(target / RECORD) if target.is_dir() else {}
    if not isinstance(record.get("settings"), dict):  # none, or not ours
        check_new_folder(target)
        return None
    if record.get("settings") != settings:
        theirs = record["settings"]
        differing = next(
            (name for name in ("source", "options", "contents") if theirs.get(name) != settings[name]), ""
        )
        what = {
            "source": f"of {theirs.get('source')}",
            "options": "with other options",
            "contents": "of what was in the source before it changed",
        }.get(differing, "of something else")
        if any((target / name).exists() for name in ("images", "masks")):  # otherwise that one has found nothing
            raise UsageError(f"{target}: this holds another import, {what}; choose another name or remove it first.")
        return None
    return record if record.get("finished") else None


def write_source(
    source: Source, target: Path, settings: dict[str, Any], ignored: Sequence[str], copy: bool, num_workers: int
) -> Outcome:
    """
    Write a source, or what an interrupted run has left of it.

    Args:
        source: The source; its pictures' splits are final.
        target: A new folder, or one that [`find_finished`] has found to be interrupted.
        settings: From [`describe_import`].
        ignored: Names of classes to ignore.
        copy: Whether to copy pictures rather than to link them.
        num_workers: Number of processes.

    Raises:
        UsageError: If a class to ignore does not exist.
        InputError: If class names are blank or occur twice.
        OSError: If the target cannot be written.
    """
    if not source.items:
        first = "" if not source.skipped else f": {source.skipped[0].file}: {source.skipped[0].reason}"
        raise UsageError(f"no picture can be imported{first or '.'}")
    kept = split_classes(source.class_names, ignored=ignored, ignored_values=(65535,))
    names = [name for name in source.class_names if label_of(name) in kept.names]
    check_labels([label for name in names for label in ([name] if isinstance(name, str) else name)])
    table = np.full(len(source.class_names) + 2, kept.ignore_index)
    for index, name in enumerate(names):
        table[2 + source.class_names.index(name)] = index

    write_json(target / RECORD, {"finished": False, "settings": settings})
    remove_leftovers(target)
    outcome = Outcome(skipped=list(source.skipped), notes=list(source.notes))
    _write_names(target, names, outcome)
    journal = _read_journal(target)
    todo = [item for item in source.items if _key(item) not in journal]
    outcome.done_before = len(source.items) - len(todo)
    write = partial(_write_item, target=target, table=table, copy=copy)
    with (target / _JOURNAL).open("a", encoding="utf-8") as file:
        for item, written in zip(todo, call_each(write, todo, num_workers, "Importing")):
            journal[_key(item)] = written
            if not written.fault:
                file.write(json.dumps([_key(item), *written]) + "\n")
                file.flush()
    _sum_up(source, journal, outcome)
    report = {
        "finished": True,
        "settings": settings,
        "format": source.format,
        "classes": [label_of(name) for name in names],
        "splits": dict(outcome.splits),
        "pictures": {_LINKED: outcome.linked, _COPIED: outcome.copied},
        "pixels": dict(outcome.pixels),
        "notes": outcome.notes,
        "skipped": [skipped._asdict() for skipped in outcome.skipped],
    }
    write_json(target / RECORD, report)
    (target / _JOURNAL).unlink()
    return outcome


def outcome_of(record: Mapping[str, Any]) -> Outcome:
    """Return the outcome that the record of a finished import describes."""
    splits = Counter(record["splits"])
    return Outcome(
        splits=splits,
        linked=record["pictures"][_LINKED],
        copied=record["pictures"][_COPIED],
        pixels=Counter(record["pixels"]),
        skipped=[Skipped(**skipped) for skipped in record["skipped"]],
        notes=record["notes"],
        done_before=splits.total(),
    )


def _sum_up(source: Source, journal: Mapping[str, Written], outcome: Outcome) -> None:
    """Add the pictures to the outcome."""
    counts: Counter[str] = Counter()
    turned = 0
    for item in source.items:
        written = journal[_key(item)]
        if written.fault:
            outcome.skipped.append(Skipped(str(item.picture), written.fault))
            continue
        outcome.splits[item.split] += 1
        outcome.linked += written.how == _LINKED
        outcome.copied += written.how == _COPIED
        counts.update(written.pixels)
        turned += written.turned
    special = {str(UNLISTED): "unlisted", str(IGNORED): "ignored"}
    for number, count in counts.items():
        name = special.get(number) or label_of(source.class_names[int(number)])
        outcome.pixels[name if number in special else f"class {name}"] += count
    if turned:
        outcome.notes.append(
            f"{turned} masks had the size of their pictures before these are turned by their EXIF orientation, and "
            "were turned as well."
        )


def _key(item: Item) -> str:
    return f"{item.split}/{item.name}"


def _read_journal(target: Path) -> dict[str, Written]:
    """Return what an interrupted run has finished; a line that was cut off is left out."""
    found: dict[str, Written] = {}
    path = target / _JOURNAL
    if not path.is_file():
        return found
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    for line in whole.decode().split("\n")[:-1]:
        key, *values = json.loads(line)
        found[key] = Written(*values)
    with replacing(path) as part:  # The next line must not continue the one that was cut off.
        part.write_bytes(whole)
    return found


def _write_names(target: Path, names: Sequence[ClassName], outcome: Outcome) -> None:
    """Write `classes.txt`, or `id2label.json` where a text file would be read as other names."""
    text = "".join("/".join([name] if isinstance(name, str) else name) + "\n" for name in names)
    (target / "id2label.json").unlink(missing_ok=True)  # of an import that has found nothing
    with replacing(target / "classes.txt") as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    try:
        same = read_class_names(target / "classes.txt") == (list(names), list(range(len(names))))
    except InputError:
        same = False
    if not same:
        (target / "classes.txt").unlink()
        write_json(target / "id2label.json", {str(index): name for index, name in enumerate(names)})
        outcome.notes.append(
            "class names are in id2label.json, as classes.txt cannot hold them: there, '/' separates names of one "
            "class, and lines that begin with '#', or all of which have a number, are refused."
        )


def _write_item(item: Item, target: Path, table: np.ndarray, copy: bool) -> Written:
    """Write a picture and its mask; `table` has the new id of each of the source's, from `UNLISTED` on."""
    try:
        os.fsdecode(item.name).encode()
        orientation, stored = read_frame(item.picture)
        size = load_rgb(item.picture).size
        ids = item.read()
        turned = False
        shown = (ids.shape[1], ids.shape[0])
        if shown != size and shown == stored:
            ids, turned = _turn(ids, orientation), True
        check_sizes(str(item.picture), size, item.mask, (ids.shape[1], ids.shape[0]))
    except UnicodeEncodeError:
        return Written(fault="its name is not UTF-8 text.")
    except (InputError, OSError) as error:
        return Written(fault=one_line(str(error)))
    values, counts = np.unique(ids, return_counts=True)
    mask = table[ids + 2].astype(np.uint8 if len(table) and table.max() <= 255 else np.uint16)
    # Appended, not replaced: a name may contain dots.
    with replacing(target / "masks" / item.split / f"{item.name}.png") as part:
        Image.fromarray(mask).save(part, "PNG")
    place = target / "images" / item.split / f"{item.name}{item.picture.suffix}"
    with replacing(place) as part:
        how = _bring(item.picture, part, copy)
    return Written(how, dict(zip(map(str, values.tolist()), counts.tolist())), turned)


def _bring(picture: Path, place: Path, copy: bool) -> str:
    """Link a file or copy it. A hard link stays whole when the source is moved or deleted, unlike a symbolic one."""
    real = picture.resolve()
    if not copy:
        try:
            os.link(real, place)
            return _LINKED
        except OSError:  # another file system, or one without links
            pass
    shutil.copy2(real, place)
    return _COPIED


def _turn(ids: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a class map as an EXIF orientation says."""
    image = Image.fromarray(ids.astype(np.int32))
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(load_upright(image)).astype(np.int64)
