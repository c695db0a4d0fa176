"""A validation split where the source has none: even, the same for the same seed, groups kept together."""

import hashlib
import re
from collections import defaultdict
from dataclasses import replace

from zegclip.errors import UsageError
from zegclip.importing.sources import Item


def split_off_validation(items: list[Item], share: float, seed: int, group_by: str | None) -> list[Item]:
    """
    Move a share of the training pictures to the split `validation`.

    Each folder gives its share. Which pictures move follows from their names and the seed alone, so that most of them
    stay where they are when pictures are added.

    Args:
        items: All pictures.
        share: Share to move, between 0 and 1.
        seed: Another number gives another choice.
        group_by: Regular expression; pictures in whose names its first group, or else all of it, is the same stay
            together. `None`: each picture is a group.

    Raises:
        UsageError: If there is a validation split already, no picture can move, or a picture is in no group.
    """
    if any(item.split == "validation" for item in items):
        raise UsageError("the source has a validation split already: omit --validation.")
    training = [item for item in items if item.split == "train"]
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in training:
        groups[_group_of(item.name, group_by)].append(item)
    if len(groups) < 2:
        raise UsageError(f"{len(groups)} group of pictures cannot be divided; --validation needs at least two.")
    wanted = max(1, round(share * len(training)))
    moved: set[str] = set()
    folders: dict[str, list[str]] = defaultdict(list)
    for name in sorted(
        groups, key=lambda name: hashlib.blake2b(f"{seed}\0{name}".encode(errors="surrogatepass")).digest()
    ):
        folders["" if group_by else groups[name][0].name.rpartition("/")[0]].append(name)
    # In turn by how far each folder is from its share, so that the split is even over folders.
    ranked = sorted(
        ((place + 0.5) / len(names), folder, name)
        for folder, names in folders.items()
        for place, name in enumerate(names)
    )
    count = 0
    for _, _, name in ranked[:-1]:  # One group stays.
        size = len(groups[name])
        if count and abs(count + size - wanted) > abs(count - wanted):
            continue
        moved.add(name)
        count += size
        if count >= wanted:
            break
    return [
        replace(item, split="validation")
        if item.split == "train" and _group_of(item.name, group_by) in moved
        else item
        for item in items
    ]


def _group_of(name: str, group_by: str | None) -> str:
    if group_by is None:
        return name
    match = re.search(group_by, name)
    if match is None:
        raise UsageError(f"the pattern {group_by!r} of --group-by does not occur in the name {name!r}.")
    return match[0] if match.re.groups == 0 else match[1] or ""
