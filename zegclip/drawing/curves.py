"""A training's curves: loss, learning rate and evaluations."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from zegclip.files import writing_to

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
