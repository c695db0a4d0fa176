"""Curves show what was logged, and no history breaks them."""

import math
import warnings

import matplotlib
import numpy as np
import pytest
from PIL import Image

from zegclip.drawing.curves import plot_training


def history(num_steps=400, every=20, evaluate_every=100):
    entries = []
    for step in range(every, num_steps + 1, every):
        focal, dice = 100 * math.exp(-step / 100) + 2, 0.8 - step / 1000
        rate = 2e-4 * (1 - step / num_steps)
        terms = {"loss": focal + dice, "loss_focal": focal, "loss_dice": dice}
        entries.append({"step": step, "epoch": step / 100, "learning_rate": rate, "grad_norm": 3.0, **terms})
        if step % evaluate_every == 0:
            figures = {"pacc": 60.0, "miou": 41.0, "miou_seen": 45.0, "miou_unseen": 37.0, "hiou": 40.6}
            entries.append({"step": step, **{f"eval_{name}": value + step / 20 for name, value in figures.items()}})
    return entries


def draw(log_history, path):
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of matplotlib, about what it uses itself
        plot_training(log_history, path)
    assert dict(matplotlib.rcParams) == before
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def has_colour(pixels, colour):
    return (pixels == colour).all(axis=-1).any()


def without(log_history, *names):
    return [{name: value for name, value in entry.items() if name not in names} for entry in log_history]


def test_curves_show_what_was_logged(tmp_path):
    colours = {"miou_seen": (0, 114, 178), "miou_unseen": (213, 94, 0), "hiou": (0, 158, 115), "pacc": (0, 0, 0)}
    plain = without(history(), "loss_focal", "loss_dice")
    everything = draw(plain, tmp_path / "curves.png")
    lower = len(everything) // 2
    for name, colour in colours.items():
        assert has_colour(everything[lower:], colour), name
        rest = draw(without(plain, f"eval_{name}"), tmp_path / "curves.png")
        assert name == "pacc" or not has_colour(rest[lower:], colour), name  # black is also the colour of text
        assert rest.shape != everything.shape or (rest != everything).any()
    training = draw([entry for entry in plain if "loss" in entry], tmp_path / "curves.png")
    assert len(training) < len(everything)
    assert not has_colour(training, colours["hiou"])
    assert has_colour(draw(history(), tmp_path / "curves.png")[:lower], colours["miou_seen"])  # a term of the loss


def test_the_mean_over_all_classes_is_drawn_where_it_is_not_split(tmp_path):
    entries = without(history(), "loss_focal", "loss_dice")
    expected = draw(without(entries, "eval_miou"), tmp_path / "curves.png")
    np.testing.assert_array_equal(draw(entries, tmp_path / "curves.png"), expected)
    entries = without(entries, "eval_miou_seen", "eval_miou_unseen", "eval_hiou")
    assert has_colour(draw(entries, tmp_path / "curves.png"), (230, 159, 0))


def test_what_a_logarithmic_axis_cannot_show_is_a_gap(tmp_path):
    first, *rest = history(100)
    expected = draw([{**first, "loss": math.nan}, *rest], tmp_path / "curves.png")
    for value in (math.inf, 0.0, -1.0):
        found = draw([{**first, "loss": value}, *rest], tmp_path / "curves.png")
        np.testing.assert_array_equal(found, expected, err_msg=str(value))


def test_the_order_of_the_entries_does_not_matter_but_the_last_of_a_step_does(tmp_path):
    entries = history()
    expected = draw(entries, tmp_path / "curves.png")
    shuffled = [entries[index] for index in np.random.default_rng(0).permutation(len(entries))]
    np.testing.assert_array_equal(draw(shuffled, tmp_path / "curves.png"), expected)
    wrong = {**entries[-1], "eval_hiou": 99.0}
    np.testing.assert_array_equal(draw([*entries[:-1], wrong, entries[-1]], tmp_path / "curves.png"), expected)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        history()[:1],
        history(20, evaluate_every=20)[1:],
        [{"step": 5, "eval_pacc": 50.0, "eval_miou": 20.0}],
        [{"step": 1, "loss": math.nan, "learning_rate": 0.0}, {"step": 2, "loss": math.inf, "eval_hiou": math.nan}],
        [{"step": 1, "loss": 0.0, "loss_other": -1.0}, {"step": 2, "loss": 1e-30, "loss_other": 1e30}],
        [{"step": 1500, "train_loss": 3.0, "train_runtime": 10.0}],
        [{"step": step, **{f"loss_{index}": 1.0 + index for index in range(20)}} for step in range(1, 2000)],
    ],
    ids=["empty", "one", "evaluation", "no unseen", "nan", "not positive", "only the end", "many"],
)
def test_every_history_can_be_drawn(entries, tmp_path):
    pixels = draw(entries, tmp_path / "new" / "curves.png")
    assert pixels.std() > 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curves.png"]
