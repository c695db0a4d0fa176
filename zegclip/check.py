"""`zegclip check`: read a data set through, count its classes, list its broken files, and show some of it."""

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict, Image
from PIL import Image as PILImage
from PIL import ImageDraw
from torch.utils.data import DataLoader
from tqdm import tqdm

from zegclip.files import remove_leftovers, writing_to
from zegclip.overlay import load_font, make_colours, overlay, shorten
from zegclip.processing.benchmarks_zegclip import read_class_lists
from zegclip.processing.class_split_zegclip import ClassSplit
from zegclip.processing.datasets_zegclip import load_pictures
from zegclip.processing.picture_files_zegclip import read_sample

_MOST_SHOWN = 12  # Pictures of the contact sheet.
_MOST_PRINTED = 20  # Broken files; the report has all.
_SIDE = 480  # The longer side of a picture in the contact sheet, for which its legend is made.
_COLUMNS = 3
_GAP = 16
_LETTER = 18


class Sample(NamedTuple):
    """What is known of one picture after reading it: its size and pixels of each class, or why it is broken."""

    width: int = 0
    height: int = 0
    counts: np.ndarray | None = None
    fault: str = ""


class Samples(torch.utils.data.Dataset):
    """
    Reads pictures and masks and counts pixels.

    Args:
        data: Rows with `image` and `mask`, of which the files are read here.
        split: The classes.
    """

    def __init__(self, data: Dataset, split: ClassSplit) -> None:
        for column in ("image", "mask"):
            data = data.cast_column(column, Image(decode=False))
        self.data = data
        self.split = split

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int) -> tuple[PILImage.Image, np.ndarray]:
        """Read a picture, RGB, and its labels, `(height, width)` int64; errors as [`read_sample`]."""
        return read_sample(self.data[index], self.split, index)

    def path(self, index: int) -> str:
        """Return the path of a picture, or its number where it has none."""
        return self.data[index]["image"]["path"] or str(index)

    def __getitem__(self, index: int) -> Sample:
        try:
            image, labels = self.read(index)
        except (ValueError, OSError) as error:
            return Sample(fault=str(error))
        counts = np.bincount(labels[labels != self.split.ignore_index], minlength=len(self.split.names))
        return Sample(image.width, image.height, counts)


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
        data: Splits with `image` and `mask`, from [`load_pictures`].
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
            "training": [_role(index, split) for index in range(len(split.names))],
        }
    )
    splits: dict[str, dict[str, Any]] = {}
    shown: list[tuple[str, Samples, int]] = []
    for number, (name, rows) in enumerate(data.items()):
        samples = Samples(rows, split)
        broken: list[str] = []
        sizes: list[tuple[int, int]] = []
        readable: list[int] = []
        pictures, pixels = np.zeros((2, len(table)), dtype=np.int64)
        loader = DataLoader(samples, batch_size=None, num_workers=num_workers, collate_fn=_unchanged)
        for index, sample in enumerate(tqdm(loader, desc=name, unit="picture", disable=None)):
            if sample.counts is None:
                broken.append(sample.fault)
                continue
            readable.append(index)
            sizes.append((sample.width, sample.height))
            pictures += sample.counts > 0
            pixels += sample.counts
        table[f"{name}_pictures"], table[f"{name}_pixels"] = pictures, pixels
        splits[name] = {"pictures": len(samples), "broken": broken, **_describe_pixels(sizes, int(pixels.sum()))}
        share = _MOST_SHOWN * (number + 1) // len(data) - _MOST_SHOWN * number // len(data)
        shown += [(name, samples, index) for index in _spread(readable, share)]

    report = {
        "num_broken": sum(len(found["broken"]) for found in splits.values()),
        "remarks": _find_remarks(table, splits, num_expected or {}),
        "splits": splits,
        "classes": table.to_dict(orient="records"),
    }
    names = [f"{name} (unseen)" if index in split.unseen_ids else name for index, name in enumerate(split.names)]
    with writing_to(output) as folder:
        table.to_csv(folder / "classes.csv", index=False)
        if shown:
            draw_contact_sheet(_read_shown(shown), names).save(folder / "contact_sheet.png")
        text = json.dumps(report, indent=2, ensure_ascii=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    _print_report(table, report, output)
    return report


def draw_contact_sheet(
    pictures: Iterable[tuple[str, PILImage.Image, np.ndarray]], labels: Sequence[str]
) -> PILImage.Image:
    """
    Draw pictures in a grid, each beside itself under its classes in colour with their names.

    Args:
        pictures: At least one; caption, RGB picture, and `(height, width)` ids, or -1 for no label.
        labels: Class names.

    Returns:
        RGB.
    """
    colours = make_colours(len(labels))
    font = load_font(_LETTER)
    tiles = []
    for caption, image, ids in pictures:
        scale = _SIDE / max(image.size)
        size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
        image = image.resize(size, PILImage.Resampling.BICUBIC)
        rows, columns = (np.arange(new) * old // new for new, old in zip(size[::-1], ids.shape))
        coloured = overlay(image, ids[rows[:, None], columns], labels, colours)
        top, left = 2 * _LETTER, image.width + _GAP // 4
        tile = PILImage.new("RGB", (left + coloured.width, top + coloured.height), "white")
        text = shorten(caption, font, tile.width)
        ImageDraw.Draw(tile).text((0, top // 2), text, fill="black", font=font, anchor="lm")
        tile.paste(image, (0, top))
        tile.paste(coloured, (left, top))
        tiles.append(tile)

    widths = [
        max(tile.width for tile in tiles[column::_COLUMNS]) + _GAP for column in range(min(_COLUMNS, len(tiles)))
    ]
    lines = [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)]
    heights = [max(tile.height for tile in line) + _GAP for line in lines]
    sheet = PILImage.new("RGB", (sum(widths) + _GAP, sum(heights) + _GAP), "white")
    for row, line in enumerate(lines):
        for column, tile in enumerate(line):
            sheet.paste(tile, (_GAP + sum(widths[:column]), _GAP + sum(heights[:row])))
    return sheet


def run_check(arguments: argparse.Namespace) -> int:
    """
    Run `zegclip check`.

    Returns:
        1 if a picture or mask is broken, else 0.

    Raises:
        ValueError: As [`load_pictures`].
        OSError: If the results cannot be written.
    """
    if arguments.output.exists() and not arguments.output.is_dir():
        raise ValueError(f"{arguments.output}: the output must be a folder, but this is a file.")
    if arguments.workers < 0:
        raise ValueError(f"--workers must not be negative, as {arguments.workers} is.")
    remove_leftovers(arguments.output)
    data, split = load_pictures(
        arguments.dataset,
        data_dir=arguments.data_dir,
        classes_file=arguments.classes_file,
        unseen=arguments.unseen_classes,
        ignored=arguments.ignored_classes,
        image_column=arguments.image_column,
        mask_column=arguments.mask_column,
    )
    num_expected = read_class_lists().get(arguments.dataset, {}).get("num_pictures")
    report = check_pictures(data, split, arguments.output, arguments.workers, num_expected)
    return 1 if report["num_broken"] else 0


def _unchanged(sample: Any) -> Any:
    """Keep the loader from making tensors."""
    return sample


def _spread(items: Sequence[int], count: int) -> list[int]:
    """Take items evenly, in order; all if there are fewer."""
    count = min(count, len(items))
    return [items[(2 * place + 1) * len(items) // (2 * count)] for place in range(count)]


def _read_shown(shown: Iterable[tuple[str, Samples, int]]) -> Iterator[tuple[str, PILImage.Image, np.ndarray]]:
    """Read the contact sheet's pictures, one at a time, with their captions."""
    for name, samples, index in shown:
        image, labels = samples.read(index)
        labels[labels == samples.split.ignore_index] = -1
        yield f"{name}: {os.path.basename(samples.path(index))}", image, labels


def _role(index: int, split: ClassSplit) -> str:
    return "seen" if index in split.seen_ids else "unseen" if index in split.unseen_ids else "-"


def _describe_pixels(sizes: Sequence[tuple[int, int]], labelled: int) -> dict[str, Any]:
    """Describe the readable pictures of a split, of which so many pixels have a class."""
    if not sizes:
        return {"ignored_share": None, "width": None, "height": None}
    widths, heights = np.array(sizes, dtype=np.int64).T
    return {
        "ignored_share": 1 - labelled / int((widths * heights).sum()),
        **{
            side: {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
            for side, values in {"width": widths, "height": heights}.items()
        },
    }


def _find_remarks(
    table: pd.DataFrame, splits: Mapping[str, Mapping[str, Any]], num_expected: Mapping[str, int]
) -> list[str]:
    """Say what is unexpected beside broken files."""
    remarks = []
    for name, expected in num_expected.items():
        found = splits.get(name, {}).get("pictures", 0)
        if found != expected:
            remarks.append(f"{name} has {found} pictures, but {expected} in the papers.")
    for name in splits:
        absent = table.loc[(table[f"{name}_pixels"] == 0) & (table["training"] != "-"), "class"].tolist()
        if absent:
            remarks.append(f"{name} has no pixel of {', '.join(absent)}.")
    return remarks


def _print_report(table: pd.DataFrame, report: Mapping[str, Any], output: Path) -> None:
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
    faults = [fault for found in report["splits"].values() for fault in found["broken"]]
    for fault in faults[:_MOST_PRINTED]:
        print(f"broken: {fault}")
    if len(faults) > _MOST_PRINTED:
        print(f"broken: {len(faults) - _MOST_PRINTED} more, see {output / 'report.json'}")
    sheet = (
        ", contact_sheet.png" if len(faults) < sum(found["pictures"] for found in report["splits"].values()) else ""
    )
    print(f"{output} has classes.csv, report.json{sheet}.")


def _count(number: int) -> str:
    return f"{number} picture{'' if number == 1 else 's'}"
