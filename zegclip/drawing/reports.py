"""What people look at during and after training: a table of classes, curves, pictures beside their classes, a line."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from PIL import Image, ImageDraw

from zegclip.drawing.overlay import load_font, make_colours, shorten, tint
from zegclip.files import writing_to
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.metrics import FIGURE_TITLES, class_accuracies, class_counts, class_ious

"""Keys of `summarise` and how the papers write them; `miou` is the mean over seen and unseen classes together."""

# Okabe and Ito's colours, which colour-blind people can tell apart. Marks and dashes differ as well.
_CURVES = {
    "pacc": ("pAcc", "#000000", "s", ":"),
    "miou": ("mIoU", "#e69f00", "v", "-"),
    "miou_seen": ("mIoU seen", "#0072b2", "o", "-"),
    "miou_unseen": ("mIoU unseen", "#d55e00", "^", "-"),
    "hiou": ("hIoU", "#009e73", "D", "--"),
}
_TERM_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_TERM_DASHES = ("--", "-.", ":")
_MOST_MARKED = 40  # Points of a curve that are marked one by one.

_SMALLEST_PANE, _LARGEST_PANE = 360, 512  # The longer side of a strip's pictures in pixels.
_LETTER = 14
_LINE = 22
_GAP = 8
_FEWEST_ROWS = 16  # Of a legend's columns.
_MOST_ENTRIES = 30  # Classes of a legend: two columns hold them, how many more there are, and "ignored".
_STRIPES = ((255, 255, 255), (150, 150, 150))


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
    kinds = dict.fromkeys(split.seen_ids, "seen") | dict.fromkeys(split.unseen_ids, "unseen")
    return pd.DataFrame(
        {
            "class": list(split.names),
            "training": [kinds.get(index, "-") for index in range(len(split.names))],
            "IoU %": 100 * class_ious(counts),
            "accuracy %": 100 * class_accuracies(counts),
            "pixels %": 100 * labelled / (labelled.sum() or math.nan),
        }
    )


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


def plot_training(log_history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """
    Draw a training's curves as a PNG file: loss and its terms, learning rate, and evaluations if there were any.

    Values that are not finite, and losses that are not positive, are gaps.

    Args:
        log_history: What the Trainer logged, as in `trainer_state.json`: entries with `step` and any of `loss`,
            `loss_*`, `learning_rate`, `eval_pacc`, `eval_miou`, `eval_miou_seen`, `eval_miou_unseen`, `eval_hiou`.
        path: The file, replaced if it exists; its folder is made.

    Raises:
        OSError: If the file cannot be written.
    """
    terms = sorted({name for entry in log_history for name in entry if name.startswith("loss_")})
    figures = [name for name in _CURVES if _points(log_history, f"eval_{name}")[0]]
    if "miou_seen" in figures and "miou" in figures:
        figures.remove("miou")  # It lies between the two.

    heights = [3, 1.4, 3] if figures else [3, 1.4]
    figure = Figure(figsize=(8, sum(heights) + 1), dpi=120, layout="constrained")
    axes = figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)[:, 0]

    axes[0].set_title("Training loss" + (" and its weighted terms" if terms else ""))
    axes[0].set_ylabel("loss (log scale)")
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[0].yaxis.set_minor_locator(LogLocator(subs=()))
    _draw_curve(axes[0], *_points(log_history, "loss", positive=True), label="loss", color="#000000")
    for index, name in enumerate(terms):
        colour, dashes = _TERM_COLOURS[index % len(_TERM_COLOURS)], _TERM_DASHES[index % len(_TERM_DASHES)]
        points = _points(log_history, name, positive=True)
        _draw_curve(axes[0], *points, label=name.removeprefix("loss_"), color=colour, linestyle=dashes)

    axes[1].set_title("Learning rate")
    axes[1].set_ylabel("rate")
    axes[1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    _draw_curve(axes[1], *_points(log_history, "learning_rate"), color="#000000")

    if figures:
        axes[2].set_title("Evaluation")
        axes[2].set_ylabel("per cent")
        for name in figures:
            title, colour, mark, dashes = _CURVES[name]
            steps, values = _points(log_history, f"eval_{name}")
            label = f"{title}  {values[-1]:.1f}" if math.isfinite(values[-1]) else title
            _draw_curve(axes[2], steps, values, label=label, color=colour, marker=mark, linestyle=dashes)

    for axis, legend_title in zip(axes, (None, None, "at the end:")):
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            # Beside the curves, which it would hide otherwise.
            place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
            axis.legend(title=legend_title, alignment="left", frameon=False, **place)
        if not axis.lines:
            axis.tick_params(left=False, labelleft=False)
            axis.text(0.5, 0.5, "nothing to draw", transform=axis.transAxes, ha="center", va="center", color="grey")
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    with writing_to(path.parent) as folder:
        figure.savefig(folder / path.name, format="png")


def _points(
    log_history: Sequence[Mapping[str, Any]], name: str, *, positive: bool = False
) -> tuple[list[float], list[float]]:
    """Steps and values of one kind, in order; of several at one step the last; nan for what cannot be drawn."""
    values = {entry["step"]: float(entry[name]) for entry in log_history if name in entry}
    steps = sorted(values)
    drawn = [values[step] for step in steps]
    return steps, [value if math.isfinite(value) and (value > 0 or not positive) else math.nan for value in drawn]


def _draw_curve(axis: Axes, steps: Sequence[float], values: Sequence[float], **style: Any) -> None:
    """Draw a line; its points are marked where they are few, since a point alone has no line."""
    if any(map(math.isfinite, values)):
        marked = sum(map(math.isfinite, values)) <= _MOST_MARKED
        axis.plot(steps, values, **{"marker": "o", "markersize": 4 if marked else 0, "linewidth": 1.5} | style)


def sample_strip(
    picture: Image.Image, truth: np.ndarray, predicted: np.ndarray, split: ClassSplit, alpha: float = 0.55
) -> Image.Image:
    """
    Put a picture, its true classes and its predicted classes side by side, with one legend for both.

    The legend lists the classes that occur, those of the truth first, the largest first, with their IoU in this
    picture; it says which ones training had no masks of. Pixels that the truth ignores are striped there, and tinted
    like all others in the prediction.

    Args:
        picture: RGB. It is shown with a longer side of about 360 to 512 pixels.
        truth: `(height, width)` ids of the picture's size, or the split's ignore index.
        predicted: `(height, width)` ids.
        split: The classes.
        alpha: Share of the class colours, in [0, 1].

    Returns:
        RGB.

    Raises:
        ValueError: If sizes differ, or if an id is not in the class list.
    """
    for title, ids in (("truth", truth), ("prediction", predicted)):
        if ids.shape != picture.size[::-1]:
            size = "x".join(map(str, ids.shape[::-1]))
            raise ValueError(f"The {title} is {size} pixels, but its picture {picture.width}x{picture.height}.")
    truth, predicted = truth.astype(np.int64), predicted.astype(np.int64)
    split.check(truth)
    wrong = predicted[(predicted < 0) | (predicted >= len(split.names))]
    if wrong.size:
        raise ValueError(f"A prediction holds the id {wrong[0]}, outside of the classes 0 to {len(split.names) - 1}.")

    maps = (torch.from_numpy(predicted), torch.from_numpy(truth))
    counts = class_counts(*maps, len(split.names), split.ignore_index).numpy()
    accuracy = counts[0].sum() / counts[2].sum() if counts[2].sum() else math.nan
    shown = _order_classes(truth[truth != split.ignore_index], predicted, len(split.names))
    # By rank and not by id, so that what is seen together is told apart; the first colours differ most.
    colours = np.zeros((len(split.names), 3), dtype=np.uint8)
    colours[shown] = make_colours(len(shown))
    panes = [
        _title("picture", _fit(picture)),
        _title("truth", _tint(picture, np.where(truth == split.ignore_index, -1, truth), colours, alpha)),
        _title(f"prediction (pAcc {_per_cent(accuracy)})", _tint(picture, predicted, colours, alpha)),
    ]
    entries: list[tuple[Image.Image | None, str, str]] = []
    for index, iou in zip(shown[:_MOST_ENTRIES], class_ious(counts)[shown]):
        swatch = Image.new("RGB", (_LETTER, _LETTER), tuple(colours[index].tolist()))
        text = shorten(split.names[index], load_font(_LETTER), 16 * _LETTER)
        entries.append((swatch, f"{text} (unseen)" if index in split.unseen_ids else text, _per_cent(iou)))
    if len(shown) > _MOST_ENTRIES:
        entries.append((None, f"{len(shown) - _MOST_ENTRIES} more", ""))
    if (truth == split.ignore_index).any():
        entries.append((_stripes(_LETTER, _LETTER), "ignored", ""))
    return _side_by_side([*panes, _legend(entries, panes[0].height)])


def sample_sheet(strips: Sequence[Image.Image], title: str) -> Image.Image:
    """
    Stack strips under a title.

    Args:
        strips: From [`sample_strip`], at least one.
        title: One line of text.

    Returns:
        RGB, as wide as the widest strip.

    Raises:
        ValueError: If there is no strip.
    """
    if not strips:
        raise ValueError("A sheet of samples needs at least one strip.")
    font = load_font(_LETTER * 3 // 2)
    width = max(strip.width for strip in strips)
    top = 2 * _LINE
    sheet = Image.new("RGB", (width, top + sum(strip.height for strip in strips)), "white")
    text = shorten(title, font, width - 2 * _GAP)
    ImageDraw.Draw(sheet).text((_GAP, top // 2), text, fill="black", font=font, anchor="lm")
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _pane_size(width: int, height: int) -> tuple[int, int]:
    """Return the size at which a picture is shown; small ones are enlarged, by a whole number where that fits."""
    longer = max(width, height)
    scale = min(_LARGEST_PANE / longer, max(math.ceil(_SMALLEST_PANE / longer), 1))
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _fit(picture: Image.Image) -> Image.Image:
    return picture.resize(_pane_size(*picture.size), Image.Resampling.BICUBIC)


def _tint(picture: Image.Image, ids: np.ndarray, colours: np.ndarray, alpha: float) -> Image.Image:
    """Show classes over a faded picture, at the size of a pane, with stripes where the id is -1."""
    width, height = _pane_size(*picture.size)
    rows, columns = np.arange(height) * ids.shape[0] // height, np.arange(width) * ids.shape[1] // width
    ids = ids[rows[:, None], columns]
    return tint(_fit(picture), ids, colours, alpha, unlabelled=_stripes(width, height))


def _stripes(width: int, height: int) -> Image.Image:
    """Draw what stands for ignored pixels."""
    diagonal = np.add.outer(np.arange(height), np.arange(width)) // 4 % 2
    return Image.fromarray(np.array(_STRIPES, dtype=np.uint8)[diagonal])


def _title(text: str, pane: Image.Image) -> Image.Image:
    """Put a line of text above a pane."""
    font = load_font(_LETTER)
    titled = Image.new("RGB", (max(pane.width, math.ceil(font.getlength(text))), _LINE + pane.height), "white")
    ImageDraw.Draw(titled).text((0, _LINE // 2), text, fill="black", font=font, anchor="lm")
    titled.paste(pane, (0, _LINE))
    return titled


def _side_by_side(parts: Sequence[Image.Image]) -> Image.Image:
    size = (sum(part.width + _GAP for part in parts) + _GAP, max(part.height for part in parts) + 2 * _GAP)
    strip, left = Image.new("RGB", size, "white"), _GAP
    for part in parts:
        strip.paste(part, (left, _GAP))
        left += part.width + _GAP
    return strip


def _order_classes(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> list[int]:
    """List the classes that occur: those of the truth, then those only predicted, each kind the largest first."""
    in_truth = np.bincount(truth.ravel(), minlength=num_classes)
    in_prediction = np.bincount(predicted.ravel(), minlength=num_classes)
    order = np.lexsort((-in_prediction, -in_truth))
    return order[(in_truth + in_prediction)[order] > 0].tolist()


def _legend(entries: Sequence[tuple[Image.Image | None, str, str]], height: int) -> Image.Image:
    """Draw a line for each swatch, text and IoU, in as many columns as `height` pixels ask for."""
    font = load_font(_LETTER)
    rows = min(max(height // _LINE - 1, _FEWEST_ROWS), len(entries))
    text_width = math.ceil(max(font.getlength(text) for _, text, _ in entries))
    column = _LETTER + text_width + math.ceil(font.getlength("100.0")) + 4 * _GAP
    legend = Image.new("RGB", (math.ceil(len(entries) / rows) * column, (rows + 1) * _LINE), "white")
    draw = ImageDraw.Draw(legend)
    for index, (image, text, value) in enumerate(entries):
        left, middle = index // rows * column, (index % rows + 1) * _LINE + _LINE // 2
        if index % rows == 0:
            draw.text((left + column - _GAP, _LINE // 2), "IoU %", fill="black", font=font, anchor="rm")
        if image is not None:
            corner = (left + _GAP, middle - _LETTER // 2)
            legend.paste(image, corner)
            draw.rectangle((*corner, corner[0] + _LETTER, corner[1] + _LETTER), outline="grey")
        draw.text((left + _LETTER + 2 * _GAP, middle), text, fill="black", font=font, anchor="lm")
        draw.text((left + column - _GAP, middle), value, fill="black", font=font, anchor="rm")
    return legend


def _per_cent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"
