"""Which pictures a process segments, and what their results are called."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from zegclip.errors import UsageError
from zegclip.processing.image_reading import PICTURE_SUFFIXES
from zegclip.segmenting.processes import Processes

_LONGEST_STEM = 200  # Bytes; with the suffixes, names stay below the 255 that file systems allow.


def find_pictures(sources: Iterable[str | Path]) -> list[str]:
    """
    List pictures: the given files, and the picture files directly in the given folders, sorted by name.

    Duplicates are dropped. Files are not opened and need not exist.

    Raises:
        UsageError: If a folder has no picture.
    """
    found: dict[str, str] = {}
    for source in map(Path, sources):
        if not source.is_dir():
            found.setdefault(os.path.realpath(source), str(source))
            continue
        with os.scandir(source) as entries:
            # The folder's own entries save one system call per file.
            pictures = [
                (entry.name, entry.is_symlink())
                for entry in entries
                if entry.name.lower().endswith(PICTURE_SUFFIXES)
                and not entry.name.startswith(".")
                # A broken link is reported later, as a picture that cannot be read.
                and (entry.is_file(follow_symlinks=False) or (entry.is_symlink() and not os.path.isdir(entry)))
            ]
        if not pictures:
            raise UsageError(f"{source}: there is no picture in this folder.")
        place, real_place = str(source / "_")[:-1], os.path.join(os.path.realpath(source), "")
        for name, is_link in sorted(pictures):
            path = place + name
            found.setdefault(os.path.realpath(path) if is_link else real_place + name, path)
    return list(found.values())


def name_results(pictures: Iterable[str]) -> Iterator[tuple[str, str]]:
    """
    Choose the stem of each picture's results: its own, or `stem_2`, `stem_3`, ... if that is taken already.

    Case is ignored, as some file systems do. Very long stems are truncated.

    Yields:
        A picture and the stem of its results.
    """
    taken: dict[str, int] = {}  # With the last number tried: many folders may have files of the same names.
    for path in pictures:
        stem = Path(path).stem
        if len(os.fsencode(stem)) > _LONGEST_STEM:
            stem = os.fsencode(stem)[:_LONGEST_STEM].decode(errors="ignore")
        name, number = stem, taken.get(stem.lower(), 1)
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken[stem.lower()] = number
        taken.setdefault(name.lower(), 1)
        yield path, name


def take_share(pictures: Sequence[str], processes: Processes) -> dict[str, str]:
    """
    Return this process's share of the pictures, every N-th, with the stems of their results.

    Raises:
        UsageError: If the processes do not see the same pictures.
        OSError: As [`Processes.gather`].
    """
    if processes.count > 1:
        digest = hashlib.blake2b()
        for path in pictures:
            digest.update(os.fsencode(path) + b"\0")
        if len(set(processes.gather(digest.digest()))) > 1:
            raise UsageError("The processes see different lists of pictures; did the folders change just now?")
    return dict(islice(name_results(pictures), processes.rank, None, processes.count))
