"""The results of `zegclip segment` as a data set."""

import json
import os
import warnings
from pathlib import Path

from datasets import DatasetDict

from zegclip.drawing.colours import NO_LABEL, NO_LABEL_16_BIT
from zegclip.errors import UsageError
from zegclip.identity import file_state
from zegclip.processing.class_split import ClassSplit, split_classes
from zegclip.processing.datasets import to_dataset
from zegclip.processing.image_reading import on_one_line

_MASK = "_mask.png"


def has_predictions(folder: Path) -> bool:
    """Return whether `zegclip segment` has written into a folder."""
    return any(_record_of(mask).is_file() for mask in folder.glob(f"*{_MASK}"))


def load_predictions(folder: Path) -> tuple[DatasetDict, ClassSplit]:
    """
    Load the masks that `zegclip segment` has written, with their pictures, as `load_pictures` loads a data set.

    Args:
        folder: Its output folder. Pictures lie where they were segmented.

    Returns:
        All pictures as the split `train`, and the labels as classes; pixels without a label are ignored.

    Warns:
        UserWarning: About pictures that were changed or have no mask there, and about several models or settings.

    Raises:
        UsageError: If a record is not one of `zegclip segment`, or pictures were segmented into different labels.
    """
    pairs: list[tuple[str, str]] = []
    labels: list[list[str]] = []
    changed: list[str] = []
    made: set[str] = set()
    others: list[Path] = []
    for mask in sorted(folder.glob(f"*{_MASK}")):
        record = _record_of(mask)
        if not record.is_file():
            others.append(mask)
            continue
        try:
            content = json.loads(record.read_text(encoding="utf-8"))
            synonyms = content.get("settings", {}).get("synonyms", {})
            found = [[label, *synonyms.get(label, [])] for label in (str(row["label"]) for row in content["labels"])]
            picture = str(content["image"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{record}: this is not the JSON file of a picture from zegclip segment.") from error
        if labels and found != labels:
            raise UsageError(
                f"{record} has other labels than {_record_of(Path(pairs[0][1]))}: segment all pictures into the "
                "same labels first."
            )
        labels = found
        if content.get("image_file") and os.path.isfile(picture) and content["image_file"] != file_state(picture):
            changed.append(picture)
        pairs.append((picture, str(mask)))
        made.add(json.dumps([content.get(name) for name in ("model", "model_files", "settings")], sort_keys=True))
    without_mask = [
        record
        for record in sorted(folder.glob("*.json"))
        if not record.with_name(f"{record.stem}{_MASK}").exists()
        and record.is_file()
        and b'"image_file"' in record.read_bytes()
    ]
    if others:
        warnings.warn(
            f"{len(others)} masks have no JSON file of zegclip segment and are left out, such as "
            f"{on_one_line(str(others[0]))}.",
            stacklevel=2,
        )
    if without_mask:
        warnings.warn(
            f"{len(without_mask)} pictures have no mask and are left out, such as that of "
            f"{on_one_line(str(without_mask[0]))}: segment them again with --format png.",
            stacklevel=2,
        )
    if len(made) > 1:
        warnings.warn(
            f"The masks are of {len(made)} different models or settings: zegclip segment with one of them does all "
            "pictures alike.",
            stacklevel=2,
        )
    if changed:
        warnings.warn(
            f"{len(changed)} pictures, such as {on_one_line(changed[0])}, were changed, moved or copied since they "
            "were segmented: if they do not show the same, run zegclip segment on them again.",
            stacklevel=2,
        )
    no_label = NO_LABEL_16_BIT if len(labels) > NO_LABEL else NO_LABEL
    split = split_classes(labels, ignored_values=[no_label])
    return to_dataset({"train": pairs}), split


def _record_of(mask: Path) -> Path:
    return mask.with_name(f"{mask.name.removesuffix(_MASK)}.json")
