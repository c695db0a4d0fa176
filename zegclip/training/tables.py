"""Figures of an evaluation as text: a table of the classes, a summary, and one line."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from zegclip.files import writing_to
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.metrics import FIGURE_TITLES, class_accuracies, class_ious


def class_table(counts: np.ndarray, split: ClassSplit) -> pd.DataFrame:
    """
    Say of each class how well it was found.

    Args:
        counts: `(3, classes)` pixels in the intersection, predicted, labelled, summed over pictures.
        split: The classes.

    Returns:
        A row for each class, by id: `class`, its name; `training`, one of `seen`, `unseen` and, for neither, `-`; and
        in per cent `IoU %`, `accuracy %` (share of its pixels that are found) and `pixels %` (its share of all
        labelled pixels). An IoU is `nan` where the class is neither labelled nor predicted, an accuracy where it is
        not labelled.
    """
    labelled = counts[2].astype(np.float64)
    return pd.DataFrame(
        {
            "class": list(split.names),
            "training": roles_in_training(split),
            "IoU %": 100 * class_ious(counts),
            "accuracy %": 100 * class_accuracies(counts),
            "pixels %": 100 * labelled / (labelled.sum() or math.nan),
        }
    )


def roles_in_training(split: ClassSplit) -> list[str]:
    """Return `seen`, `unseen` or, for neither, `-` for each class."""
    roles = dict.fromkeys(split.seen_ids, "seen") | dict.fromkeys(split.unseen_ids, "unseen")
    return [roles.get(index, "-") for index in range(len(split.names))]


def write_class_table(
    table: pd.DataFrame, summary: Mapping[str, float], folder: Path, stem: str = "per_class"
) -> None:
    """
    Write `stem.csv` (the classes with all digits), `stem.md` and `stem.txt` (the summary and the classes, rounded).

    What is there is replaced, and no file is ever there in part.

    Args:
        table: From [`class_table`].
        summary: From `summarise`.
        folder: Made if it does not exist.
        stem: What the files' names start with.

    Raises:
        OSError: If the files cannot be written.
    """
    with writing_to(folder) as part:
        table.to_csv(part / f"{stem}.csv", index=False)
        for suffix, style in (("md", "pipe"), ("txt", "simple")):
            blocks = [_format_table(block, style) for block in (_summary_table(summary), table)]
            (part / f"{stem}.{suffix}").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _summary_table(summary: Mapping[str, float]) -> pd.DataFrame:
    """Make a row for all classes and one for each group, and a column for each kind of figure that there is."""
    prefixes = [name.removesuffix("miou") for name in summary if name == "miou" or name.endswith("_miou")]
    columns: dict[str, list] = {"per cent": [prefix.rstrip("_") or "all classes" for prefix in prefixes]}
    for key, title in FIGURE_TITLES.items():
        if key in summary:
            columns[title] = [summary.get(prefix + key, math.nan) for prefix in prefixes]
    return pd.DataFrame(columns)


def _format_table(table: pd.DataFrame, style: str) -> str:
    """Align a table as text in one of tabulate's styles; numbers get two digits, and `-` stands for nan."""
    cells, sides = {}, []
    for name, column in table.items():
        is_number = pd.api.types.is_numeric_dtype(column)
        sides.append("right" if is_number else "left")
        if is_number:
            cells[name] = ["-" if math.isnan(value) else f"{value:.2f}" for value in column]
        else:
            cells[name] = [text.replace("|", r"\|") if style == "pipe" else text for text in column]
    return pd.DataFrame(cells).to_markdown(index=False, tablefmt=style, disable_numparse=True, colalign=sides)


def format_evaluation(metrics: Mapping[str, float]) -> str:
    """
    Say an evaluation's figures on one line: `step 400: pAcc 95.9 | mIoU seen 85.1, unseen 82.0 | hIoU 83.5`.

    Args:
        metrics: As `summarise` or the Trainer (`eval_` before each key) name them, per cent, and `step` if the line
            shall begin with it. Other entries do not matter.
    """
    figures = {name.removeprefix("eval_"): value for name, value in metrics.items()}

    def say(title: str, key: str) -> str:
        return f"{title} {figures[key]:.1f}" if not math.isnan(figures[key]) else f"{title} -"

    parts = [say("pAcc", "pacc")] if "pacc" in figures else []
    if "miou_seen" in figures:
        parts += [f"mIoU {say('seen', 'miou_seen')}, {say('unseen', 'miou_unseen')}", say("hIoU", "hiou")]
    elif "miou" in figures:
        parts += [say("mIoU", "miou")]
    return (f"step {figures['step']:.0f}: " if "step" in figures else "") + " | ".join(parts)
