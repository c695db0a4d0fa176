"""What `zegclip check` writes about a data set: its classes, its broken files, and a contact sheet."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict
from PIL import Image as PILImage

from zegclip.drawing.contact_sheet import draw_contact_sheet
from zegclip.files import writing_to
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.datasets import read_sample
from zegclip.training.pictures import spread_evenly
from zegclip.training.survey import Survey, remark_on_number, remark_on_overlaps, survey_pictures
from zegclip.training.tables import roles_in_training

_MOST_SHOWN = 12  # Pictures of the contact sheet.
_MOST_PRINTED = 20  # Broken files; the report has all.


def check_pictures(
    data: DatasetDict,
    split: ClassSplit,
    output: Path,
    num_workers: int = 0,
    num_expected: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """
    Read every picture with its mask; print a table of the classes, and write what was found.

    Args:
        data: Splits with `image` and `mask`, from [`zegclip.processing.datasets.load_pictures`].
        split: The classes.
        output: Folder for `classes.csv` (pictures and pixels of each class in each split), `report.json` and
            `contact_sheet.png` (some pictures beside their masks); made if missing, replaced if present.
        num_workers: Processes that read; 0: this one.
        num_expected: How many pictures a benchmark has in each split, according to the papers.

    Returns:
        What `report.json` holds: `remarks`, one sentence each on what is unexpected; `num_broken`; `classes`, the rows
        of `classes.csv`; and for each of `splits` `pictures`, `broken` (a sentence for each broken picture),
        `ignored_share` of the readable pixels (in [0, 1]), and `width` and `height` (`min`, `median`, `max`, in
        pixels), `None` where no picture can be read.

    Raises:
        OSError: If the results cannot be written.
    """
    table = pd.DataFrame(
        {
            "id": range(len(split.names)),
            "class": split.names,
            "mask_value": range(len(split.names)) if split.mask_values is None else split.mask_values,
            "training": roles_in_training(split),
        }
    )
    ids = (*split.seen_ids, *split.unseen_ids)
    remarks: list[str] = []
    for name, expected in (num_expected or {}).items():
        remarks += remark_on_number(name, len(data.get(name, ())), expected)
    splits: dict[str, dict[str, Any]] = {}
    faults: list[str] = []  # One sentence for each broken file, and for all masks with values that have no name.
    shown: list[tuple[str, Dataset, int]] = []
    surveys: list[Survey] = []
    for number, (name, rows) in enumerate(data.items()):
        survey = survey_pictures(name, rows, split, decode=True, num_workers=num_workers)
        surveys.append(survey)
        table[f"{name}_pictures"], table[f"{name}_pixels"] = survey.pictures, survey.pixels
        remarks += survey.find_remarks(ids)
        unnamed = survey.describe_unnamed()
        faults += [] if unnamed is None else [unnamed]
        faults += [fault for index, fault in survey.broken.items() if index not in survey.unnamed]
        splits[name] = {"pictures": len(rows), "broken": list(survey.broken.values()), **_describe_pixels(survey)}
        share = _MOST_SHOWN * (number + 1) // len(data) - _MOST_SHOWN * number // len(data)
        whole = [index for index in range(len(rows)) if index not in survey.broken]
        shown += [(name, rows, whole[place]) for place in spread_evenly(len(whole), share)]
    remarks += remark_on_overlaps(surveys)

    report = {
        "num_broken": sum(len(found["broken"]) for found in splits.values()),
        "remarks": remarks,
        "splits": splits,
        "classes": table.to_dict(orient="records"),
    }
    with writing_to(output) as folder:
        table.to_csv(folder / "classes.csv", index=False)
        if shown:
            draw_contact_sheet(_read_shown(shown, split), split).save(folder / "contact_sheet.png")
        text = json.dumps(report, indent=2, ensure_ascii=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    _print_report(table, report, faults, output)
    return report


def _read_shown(
    shown: Iterable[tuple[str, Dataset, int]], split: ClassSplit
) -> Iterator[tuple[str, PILImage.Image, np.ndarray]]:
    """Read the contact sheet's pictures, one at a time, with their captions."""
    for name, rows, index in shown:
        row = rows[index]
        image, labels = read_sample(row, split, index)
        labels[labels == split.ignore_index] = -1
        yield f"{name}: {os.path.basename(row['image']['path'] or str(index))}", image, labels


def _describe_pixels(survey: Survey) -> dict[str, Any]:
    """Describe the readable pictures of a split."""
    if not survey.sizes:
        return {"ignored_share": None, "width": None, "height": None}
    widths, heights = np.array(survey.sizes, dtype=np.int64).T
    return {
        "ignored_share": sum(survey.ignored.values()) / survey.num_pixels,
        **{
            side: {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
            for side, values in {"width": widths, "height": heights}.items()
        },
    }


def _print_report(table: pd.DataFrame, report: Mapping[str, Any], faults: Sequence[str], output: Path) -> None:
    width = max(len(name) for name in table["class"])
    readable = table.drop(columns="mask_value")
    for name in report["splits"]:
        total = max(table[f"{name}_pixels"].sum(), 1)
        readable[f"{name}_pixels"] = [f"{100 * pixels / total:.2f} %" for pixels in table[f"{name}_pixels"]]
    print(readable.to_string(index=False, formatters={"class": lambda name: name.ljust(width)}))
    print()
    for name, found in report["splits"].items():
        print(f"{name}: {_count(found['pictures'])}, {len(found['broken'])} broken", end="")
        if found["width"] is not None:
            sides = (
                f"{side} {found[side]['min']} to {found[side]['max']}, median {found[side]['median']:g}"
                for side in ("width", "height")
            )
            print(f"; {'; '.join(sides)}; {100 * found['ignored_share']:.1f} % of the pixels ignored", end="")
        print()
    for remark in report["remarks"]:
        print(f"note: {remark}")
    for fault in faults[:_MOST_PRINTED]:
        print(f"broken: {fault}")
    if len(faults) > _MOST_PRINTED:
        print(f"broken: {len(faults) - _MOST_PRINTED} more, see {output / 'report.json'}")
    num_pictures = sum(found["pictures"] for found in report["splits"].values())
    sheet = ", contact_sheet.png" if report["num_broken"] < num_pictures else ""
    print(f"{output} has classes.csv, report.json{sheet}.")


def _count(number: int) -> str:
    return f"{number} picture{'' if number == 1 else 's'}"
