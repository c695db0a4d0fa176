"""Which pictures a process segments, and what their results are called."""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image
from tqdm import tqdm

from zegclip.errors import UsageError
from zegclip.identity import file_state
from zegclip.processing.image_reading import find_unread, is_picture, is_url, on_one_line
from zegclip.segmenting.processes import Processes

RESULT_SUFFIXES = {"overlay": "_overlay.png", "png": "_mask.png", "geojson": ".geojson", "scores": "_scores.npy"}
"""What follows the stem in the names of a picture's results, by format; its JSON file lies beside them."""
MARK = {"Software": "zegclip"}
"""Text in the PNG files of results, which tells them from others' where the JSON file is missing, as after a kill."""
_LONGEST_STEM = 200  # Bytes; with the suffixes, names stay below the 255 that file systems allow.


def find_pictures(sources: Iterable[str | Path], recursive: bool = False, without: Path | None = None) -> list[str]:
    """
    List pictures: the given files and URLs, and the picture files in the given folders, sorted by name.

    Duplicates are dropped. Files are not opened and need not exist.

    Args:
        sources: Files, URLs and folders.
        recursive: Whether to look into subfolders too, except for hidden ones; into each of them once, also if links
            lead to it.
        without: A folder not to look into, with a warning if it has pictures.

    Raises:
        UsageError: If a folder has no picture.
    """
    found: dict[str, str] = {}
    for source in sources:
        if is_url(str(source)):
            _check_url(str(source))
            inside = [(str(source), str(source))]
        elif not os.path.isdir(source):
            inside = [(os.path.realpath(source), str(Path(source)))]
        else:
            folders = list(_walk(Path(source), without)) if recursive else [Path(source)]
            inside = [pair for folder in folders for pair in _pictures_in(folder)]
            _warn_of_unread(folders)
            if recursive and without is not None and without.is_dir() and _is_inside(without, Path(source)):
                _warn_of_pictures(without)
            if not inside:
                hint = "" if recursive else " itself; --recursive looks into its subfolders too"
                raise UsageError(f"{source}: there is no picture in this folder{hint}.")
        for real_path, path in inside:
            found.setdefault(real_path, path)
    return list(found.values())


def _warn_of_unread(folders: Iterable[Path]) -> None:
    unread = [str(folder / name) for folder in folders for name in find_unread(os.listdir(folder))]
    if unread:
        warnings.warn(
            f"{on_one_line(unread[0])}: pictures of this format are not read and left out ({len(unread)} in all). "
            "Convert them, for example to JPEG.",
            stacklevel=3,
        )


def _is_inside(folder: Path, other: Path) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(other))


def _warn_of_pictures(output: Path) -> None:
    names = set(os.listdir(output))
    stems = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    results = {stem + suffix for stem in stems for suffix in RESULT_SUFFIXES.values()}
    if pictures := sorted(filter(is_picture, names - results)):
        warnings.warn(
            f"{on_one_line(str(output / pictures[0]))} lies in the folder for results, so it is left out "
            f"({len(pictures)} in all): choose another folder for results to have it segmented.",
            stacklevel=3,
        )


def _check_url(url: str) -> None:
    try:
        urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{on_one_line(url)} is no URL: {error}.") from error


def _walk(folder: Path, without: Path | None) -> Iterator[Path]:
    """
    Yield a folder and its subfolders, by name, each once, except for hidden ones and one folder.

    Those that links lead to come last: a link that is added later changes no path of a picture.
    """
    seen = set() if without is None else {os.path.realpath(without)}

    def fail(error: OSError) -> None:
        raise error

    starts = [str(folder)]
    for start in starts:
        for place, subfolders, _ in os.walk(start, onerror=fail):
            real_place = os.path.realpath(place)
            if real_place in seen:
                subfolders.clear()
                continue
            seen.add(real_place)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            starts += filter(os.path.islink, [os.path.join(place, name) for name in subfolders])
            yield Path(place)


def _pictures_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the real path and the path of each picture directly in a folder, by name, except for our own results."""
    with os.scandir(folder) as entries:
        # The folder's own entries save one system call per file.
        pictures = [
            (entry.name, entry.is_symlink())
            for entry in entries
            if is_picture(entry.name)
            and not _is_result(folder, entry.name)
            # A broken link is reported later, as a picture that cannot be read.
            and (entry.is_file(follow_symlinks=False) or (entry.is_symlink() and not os.path.isdir(entry)))
        ]
    place, real_place = str(folder / "_")[:-1], os.path.join(os.path.realpath(folder), "")
    for name, is_link in sorted(pictures):
        path = place + name
        yield (os.path.realpath(path) if is_link else real_place + name), path


def read_record(output: Path, name: str) -> dict[str, Any]:
    """Return the content of a picture's JSON file, empty if there is none or it is something else."""
    try:
        with open(os.path.join(output, f"{name}.json"), "rb") as file:
            record = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def name_results(
    pictures: Sequence[str], output: Path | None = None, show_progress: bool = False
) -> Iterator[tuple[str, str]]:
    """
    Choose the stem of each picture's results: its own, or `stem_2`, `stem_3`, ... if that is taken already.

    A picture that has results in `output` keeps their stem, also if it was moved; those of other pictures are taken.
    Case is ignored, as some file systems do. Very long stems are truncated.

    Args:
        pictures: Their paths.
        output: Folder of the results, which need not exist.
        show_progress: Whether to show a progress bar for reading earlier results, after some seconds.

    Yields:
        A picture and the stem of its results.
    """
    earlier = {} if output is None else _find_owners(output, {_stem(path).lower() for path in pictures}, show_progress)
    own = {record["image"]: name for name, record in earlier.items()}
    # Of pictures that were moved: the same file under another path.
    here = {absolute(path) for path in pictures} if own else set()
    moved = {
        (_without_number(name), str(record["image_file"])): name
        for name, record in earlier.items()
        if record["image"] not in here and not os.path.exists(record["image"])
    }
    # With the last number tried: many folders may have files of the same names.
    taken = {name.lower(): 1 for name in earlier}
    for path in pictures:
        stem = _stem(path)
        name = own.get(absolute(path)) if own else None
        if name is None and moved and os.path.exists(path):
            name = moved.pop((stem.lower(), str(file_state(path))), None)
        if name is None:
            name, number = stem, taken.get(stem.lower(), 1)
            while name.lower() in taken:
                number += 1
                name = f"{stem}_{number}"
            taken[stem.lower()] = number
        taken.setdefault(name.lower(), 1)
        yield path, name


def _is_result(folder: Path, name: str) -> bool:
    return any(
        name.endswith(suffix) and "image_file" in read_record(folder, name.removesuffix(suffix))
        for suffix in RESULT_SUFFIXES.values()
    )


def absolute(path: str) -> str:
    """Return a picture's absolute path, or its URL."""
    return path if is_url(path) else os.path.abspath(path)


def _without_number(name: str) -> str:
    return re.sub(r"_\d+$", "", name.lower())


def _stem(path: str) -> str:
    stem = Path(path).stem
    if is_url(path):
        stem = re.sub(r"[\x00-\x1f]", "_", Path(unquote(urlsplit(path).path)).stem) or "picture"
    if len(os.fsencode(stem)) > _LONGEST_STEM:
        stem = os.fsencode(stem)[:_LONGEST_STEM].decode(errors="ignore")
    return stem


def _find_owners(output: Path, stems: set[str], show_progress: bool) -> dict[str, dict[str, Any]]:
    """
    Read of which pictures the results in a folder are, as far as they are called like one of `stems` (lower case).

    Returns:
        By the stem of the results, the picture's path, `image`, and the state of its file, `image_file`; the path is
        empty for files of others. A damaged JSON file is left out.
    """
    suffixes = (".json", *RESULT_SUFFIXES.values())
    found: dict[str, list[str]] = {}
    try:
        with os.scandir(output) as entries:
            for entry in entries:
                if suffix := next(filter(entry.name.endswith, suffixes), None):
                    found.setdefault(entry.name.removesuffix(suffix), []).append(suffix)
    except FileNotFoundError:
        return {}
    names = sorted(name for name in found if not stems.isdisjoint((name.lower(), _without_number(name))))
    owners: dict[str, dict[str, Any]] = {}
    disable = None if show_progress else True
    for name in tqdm(names, desc="Reading earlier results", unit="picture", delay=3, leave=False, disable=disable):
        if ".json" not in found[name]:
            if not any(_has_mark(f"{output / name}{suffix}") for suffix in found[name]):
                owners[name] = {"image": "", "image_file": None}
            continue
        try:
            record = json.loads(Path(output, f"{name}.json").read_bytes())
        except (OSError, ValueError):
            continue
        record = record if isinstance(record, dict) else {}
        owners[name] = {"image": str(record.get("image", "")), "image_file": record.get("image_file")}
    return owners


def _has_mark(path: str) -> bool:
    try:
        with Image.open(path) as image:
            return MARK.items() <= image.info.items()
    except (OSError, ValueError, SyntaxError):  # It is no picture.
        return False


def take_share(pictures: Sequence[str], processes: Processes, output: Path) -> dict[str, str]:
    """
    Return this process's share of the pictures, every N-th, with the stems of their results in a folder.

    Raises:
        UsageError: If the processes do not see the same pictures and results.
        OSError: As [`Processes.gather`].
    """
    digest = hashlib.blake2b()
    share = {}
    for index, (path, name) in enumerate(name_results(pictures, output, show_progress=processes.is_main)):
        digest.update(os.fsencode(f"{path}\0{name}\0"))
        if index % processes.count == processes.rank:
            share[path] = name
    # None has written a result yet.
    if len(set(processes.gather(digest.digest()))) > 1:
        raise UsageError("The processes see different lists of pictures; did the folders change just now?")
    return share
