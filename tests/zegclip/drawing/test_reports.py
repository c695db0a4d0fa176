"""Tables, curves, strips and lines: what they say is what was counted, and no history or picture breaks them."""

import math
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from zegclip.drawing.overlay import FIRST_COLOURS
from zegclip.drawing.reports import (
    class_table,
    format_evaluation,
    plot_training,
    sample_sheet,
    sample_strip,
    write_class_table,
)
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.metrics import summarise

SPLIT = ClassSplit(
    names=("cat", "sky | cloud", "boat", "umbrella", "lamp"),
    seen_ids=(0, 1),
    unseen_ids=(3, 2),
    groups={"objects": (0, 2, 3)},
)
# Of 100 labelled pixels; "umbrella" is nowhere, "lamp" is predicted only.
COUNTS = np.array([[30, 20, 0, 0, 0], [35, 45, 0, 0, 20], [40, 50, 10, 0, 0]])
GREY = (100, 100, 100)
GAP, LINE = 8, 22  # Around a strip's parts, and of its headings.


def test_class_table():
    table = class_table(COUNTS, SPLIT)
    assert table["class"].tolist() == list(SPLIT.names)
    assert table["training"].tolist() == ["seen", "seen", "unseen", "unseen", "-"]
    nan = math.nan
    np.testing.assert_allclose(table["IoU %"], [100 * 30 / 45, 100 * 20 / 75, 0, nan, 0])
    np.testing.assert_allclose(table["accuracy %"], [75, 40, 0, nan, nan])
    np.testing.assert_allclose(table["pixels %"], [40, 50, 10, 0, 0])


def test_class_table_of_nothing():
    table = class_table(np.zeros((3, 5), dtype=np.int64), SPLIT)
    assert table[["IoU %", "accuracy %", "pixels %"]].isna().all(axis=None)


def cells_of(lines, divider):
    return [[cell.strip() for cell in line.strip("|").split(divider)] for line in lines]


def test_written_tables_hold_the_figures(tmp_path):
    table, summary = class_table(COUNTS, SPLIT), summarise(COUNTS, SPLIT)
    write_class_table(table, summary, tmp_path / "new" / "folder", stem="figures")
    files = {path.name: path for path in (tmp_path / "new" / "folder").iterdir()}
    assert set(files) == {"figures.csv", "figures.md", "figures.txt"}
    pd.testing.assert_frame_equal(pd.read_csv(files["figures.csv"]), table, check_exact=True)

    overall, classes = files["figures.md"].read_text().strip().split("\n\n")
    rows = cells_of(overall.splitlines(), "|")
    assert rows[0] == ["per cent", "pAcc", "mIoU", "mIoU(S)", "mIoU(U)", "hIoU"]
    assert rows[2] == ["all classes", "50.00", "31.11", "46.67", "0.00", "0.00"]
    assert rows[3] == ["objects", "-", "33.33", "66.67", "0.00", "0.00"]
    rows = cells_of(classes.replace(r"\|", "/").splitlines(), "|")
    assert rows[2:] == [
        ["cat", "seen", "66.67", "75.00", "40.00"],
        ["sky / cloud", "seen", "26.67", "40.00", "50.00"],
        ["boat", "unseen", "0.00", "0.00", "10.00"],
        ["umbrella", "unseen", "-", "-", "0.00"],
        ["lamp", "-", "0.00", "-", "0.00"],
    ]

    for text_block, block in zip(files["figures.txt"].read_text().strip().split("\n\n"), (overall, classes)):
        lines = text_block.splitlines()
        assert len({len(line) for line in lines}) == 1  # aligned
        assert [line.split() for line in lines[2:]] == [
            line.replace(r"\|", "PIPE").replace("|", " ").replace("PIPE", "|").split()
            for line in block.splitlines()[2:]
        ]


def test_a_summary_without_unseen_classes(tmp_path):
    split = ClassSplit(names=("cat", "sky"), seen_ids=(0, 1))
    counts = np.array([[5, 0], [5, 0], [5, 0]])
    write_class_table(class_table(counts, split), summarise(counts, split), tmp_path)
    assert (tmp_path / "per_class.txt").read_text().splitlines()[0].split() == ["per", "cent", "pAcc", "mIoU"]


def test_what_fails_leaves_the_old_tables_as_they_were(tmp_path, monkeypatch):
    table, summary = class_table(COUNTS, SPLIT), summarise(COUNTS, SPLIT)
    write_class_table(table, summary, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(self, text, encoding):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_class_table(table[::-1], summary, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


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
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of matplotlib, about what it uses itself
        plot_training(log_history, path)
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


def test_the_legend_says_the_last_figures(tmp_path):
    entries = history()
    others = [*entries[:-1], {**entries[-1], "eval_hiou": entries[-1]["eval_hiou"] + 0.1}]
    first, second = (draw(log_history, tmp_path / "curves.png") for log_history in (entries, others))
    beside = first.shape[1] * 4 // 5  # right of the curves
    assert (first[:, beside:] != second[:, beside:]).any()


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


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    plot_training(history(), tmp_path / "curves.png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_an_evaluation_in_one_line(prefix):
    figures = {"pacc": 95.91, "miou": 84.0, "miou_seen": 85.06, "miou_unseen": 82.0, "hiou": 83.52}
    metrics = {f"{prefix}{name}": value for name, value in figures.items()} | {f"{prefix}runtime": 3.0}
    line = "pAcc 95.9 | mIoU seen 85.1, unseen 82.0 | hIoU 83.5"
    assert format_evaluation(metrics) == line
    assert format_evaluation({**metrics, "step": 400}) == f"step 400: {line}"
    metrics |= {f"{prefix}miou_unseen": math.nan, f"{prefix}hiou": math.nan}
    assert format_evaluation(metrics) == "pAcc 95.9 | mIoU seen 85.1, unseen - | hIoU -"
    assert format_evaluation({f"{prefix}pacc": 95.91, f"{prefix}miou": 84.0}) == "pAcc 95.9 | mIoU 84.0"


def grey_picture(ids):
    return Image.new("RGB", ids.shape[::-1], GREY)


def scene():
    """A truth of three classes and ignored pixels, and a prediction that has another class at its right edge."""
    truth = np.zeros((96, 96), dtype=np.int64)
    truth[48:] = 3
    truth[48:, :40] = 1
    truth[:16] = 255
    predicted = np.where(truth == 255, 0, truth)
    predicted[:, 80:] = 2
    return truth, predicted


def panes_of(strip, width=384, height=384):
    pixels = np.asarray(strip)
    top, lefts = GAP + LINE, [GAP + index * (width + GAP) for index in range(4)]
    panes = [pixels[top : top + height, left : left + width] for left in lefts[:3]]
    return *panes, pixels[:, lefts[3] :]


def blend(colour):
    return (0.5 * np.array(colour) + 0.5 * np.array(GREY)).round()


def test_a_strip_shows_picture_truth_and_prediction():
    truth, predicted = scene()
    picture, shown_truth, shown_prediction, _ = panes_of(
        sample_strip(grey_picture(truth), truth, predicted, SPLIT, alpha=0.5)
    )
    assert (picture == GREY).all()
    # Colours go by the size of the true classes, 96x32, 56x48 and 40x48 pixels, then by what is only predicted.
    colours = dict(zip((0, 3, 1, 2), FIRST_COLOURS))
    for row, column in ((30, 30), (90, 20), (90, 60), (30, 90), (90, 90)):
        for shown, ids in ((shown_truth, truth), (shown_prediction, predicted)):
            found = shown[4 * row, 4 * column]
            np.testing.assert_allclose(found, blend(colours[ids[row, column]]), atol=1)
    stripes = shown_truth[4:56].reshape(-1, 3)
    assert {tuple(pixel) for pixel in stripes.tolist()} == {(255, 255, 255), (150, 150, 150)}
    np.testing.assert_allclose(shown_prediction[30, 30], blend(colours[0]), atol=1)
    assert (shown_truth[4 * 48 - 1, 200] == 255).all()  # a boundary


def test_a_right_prediction_looks_as_the_truth():
    truth = np.random.default_rng(0).integers(4, size=(24, 24)).repeat(4, axis=0).repeat(4, axis=1)
    picture = Image.fromarray(np.random.default_rng(1).integers(256, size=(96, 96, 3), dtype=np.uint8))
    first, shown_truth, shown_prediction, _ = panes_of(sample_strip(picture, truth, truth, SPLIT))
    np.testing.assert_array_equal(first, picture.resize((384, 384), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(shown_truth, shown_prediction)


def test_the_legend_lists_what_occurs_and_marks_unseen_classes():
    truth, predicted = scene()
    legend = panes_of(sample_strip(grey_picture(truth), truth, predicted, SPLIT))[3]
    for colour in FIRST_COLOURS[:4]:
        assert has_colour(legend, colour)
    assert not has_colour(legend, FIRST_COLOURS[4])
    everything_labelled = np.where(truth == 255, 0, truth)
    rest = panes_of(sample_strip(grey_picture(truth), everything_labelled, predicted, SPLIT))[3]
    # Half of the striped swatch beside "ignored".
    striped, unstriped = ((part == 150).all(axis=-1).sum() for part in (legend, rest))
    assert striped > unstriped + 60

    # The longest name is marked or not.
    all_seen = ClassSplit(names=SPLIT.names, seen_ids=(0, 1, 2, 3))
    only_seen = panes_of(sample_strip(grey_picture(truth), truth, predicted, all_seen))[3]
    assert legend.shape[1] > only_seen.shape[1] + 40


def test_ids_beyond_8_bits_and_another_ignore_index():
    names = tuple(f"class {index}" for index in range(300))
    split = ClassSplit(names=names, seen_ids=(0,), unseen_ids=(299,), ignore_index=65535, ignored_values=(65535,))
    truth = np.full((96, 96), 299, dtype=np.uint16)
    truth[:48], truth[:, :48] = 65535, 255
    _, shown_truth, _, legend = panes_of(sample_strip(grey_picture(truth), truth, truth * 0, split, alpha=0.5))
    np.testing.assert_allclose(shown_truth[-10, -10], blend(FIRST_COLOURS[1]), atol=1)
    assert has_colour(legend, FIRST_COLOURS[2])


@pytest.mark.parametrize("size", [(1, 1), (900, 3), (3, 900), (300, 200), (2000, 1500)])
@pytest.mark.parametrize("num_classes", [1, 60])
def test_pictures_of_any_size_and_number_of_classes(size, num_classes):
    split = ClassSplit(names=tuple(f"class with a long name {index}" for index in range(num_classes)), seen_ids=(0,))
    ids = np.arange(size[0] * size[1]).reshape(size[::-1]) % num_classes
    strip = sample_strip(grey_picture(ids), ids, ids, split)
    assert 360 <= max(strip.size) <= 2600
    assert not has_colour(np.asarray(strip)[:, -GAP:], (0, 0, 0))  # no text is cut off
    assert np.asarray(strip.crop((0, 0, *strip.size))).min() < 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda truth, predicted: (truth[1:], predicted), "The truth is 96x95 pixels, but its picture 96x96."),
        (lambda truth, predicted: (truth, predicted[:, 1:]), "The prediction is 95x96 pixels, but its picture 96x96."),
        (lambda truth, predicted: (truth + 3, predicted), "A label map holds the id 258"),
        (
            lambda truth, predicted: (truth, predicted + 3),
            "A prediction holds the id 5, outside of the classes 0 to 4.",
        ),
        (lambda truth, predicted: (truth, predicted - 1), "A prediction holds the id -1, outside"),
    ],
)
def test_a_strip_of_what_does_not_belong_together(change, message):
    truth, predicted = scene()
    with pytest.raises(ValueError, match=message):
        sample_strip(grey_picture(truth), *change(truth, predicted), SPLIT)


def test_a_sheet_stacks_strips_under_its_title():
    strips = [Image.new("RGB", size, colour) for size, colour in (((400, 50), "red"), ((300, 70), "blue"))]
    sheet = np.asarray(sample_sheet(strips, "step 400"))
    top = len(sheet) - 120
    assert sheet.shape[1] == 400
    assert (sheet[:top] < 100).any()  # the title
    assert (sheet[top : top + 50] == (255, 0, 0)).all()
    assert (sheet[top + 50 :, :300] == (0, 0, 255)).all()
    assert (sheet[top + 50 :, 300:] == 255).all()
    cut = np.asarray(sample_sheet(strips, "a very long title " * 100))
    assert cut.shape == sheet.shape
    assert (cut[:top, -GAP:] == 255).all()  # with an ellipsis before
    with pytest.raises(ValueError, match="at least one strip"):
        sample_sheet([], "step 400")
