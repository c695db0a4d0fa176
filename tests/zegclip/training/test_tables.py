"""Tables and lines say what was counted."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from zegclip.processing.class_split import ClassSplit
from zegclip.processing.metrics import summarise
from zegclip.training.tables import class_table, format_evaluation, write_class_table

SPLIT = ClassSplit(
    names=("cat", "sky | cloud", "boat", "umbrella", "lamp"),
    seen_ids=(0, 1),
    unseen_ids=(3, 2),
    groups={"objects": (0, 2, 3)},
)
# Of 100 labelled pixels; "umbrella" is nowhere, "lamp" is predicted only.
COUNTS = np.array([[30, 20, 0, 0, 0], [35, 45, 0, 0, 20], [40, 50, 10, 0, 0]])


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


def test_written_tables_hold_the_figures(tmp_path):
    table, summary = class_table(COUNTS, SPLIT), summarise(COUNTS, SPLIT)
    write_class_table(table, summary, tmp_path / "new" / "folder", stem="figures")
    texts = {path.name: path.read_text() for path in (tmp_path / "new" / "folder").iterdir()}
    assert set(texts) == {"figures.csv", "figures.md", "figures.txt"}
    stored = pd.read_csv(tmp_path / "new" / "folder" / "figures.csv")
    pd.testing.assert_frame_equal(stored, table, check_exact=True)
    rows = [
        ["all", "classes", "50.00", "31.11", "46.67", "0.00", "0.00"],
        ["objects", "-", "33.33", "66.67", "0.00", "0.00"],
        ["cat", "seen", "66.67", "75.00", "40.00"],
        ["boat", "unseen", "0.00", "0.00", "10.00"],
        ["umbrella", "unseen", "-", "-", "0.00"],
        ["lamp", "-", "0.00", "-", "0.00"],
    ]
    for name in ("figures.md", "figures.txt"):
        found = [line.replace("|", " ").split() for line in texts[name].splitlines()]
        assert all(row in found for row in rows), name
    assert r"sky \| cloud" in texts["figures.md"]


def test_a_summary_without_unseen_classes_has_two_columns(tmp_path):
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


@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_an_evaluation_in_one_line(prefix):
    figures = {"pacc": 95.91, "miou": 84.0, "miou_seen": 85.06, "miou_unseen": math.nan, "hiou": 83.52, "runtime": 3.0}
    metrics = {f"{prefix}{name}": value for name, value in figures.items()}
    assert re.findall(r"-|[\d.]+", format_evaluation(metrics)) == ["95.9", "85.1", "-", "83.5"]
    assert "400" in format_evaluation({**metrics, "step": 400})
    whole = {f"{prefix}pacc": 95.91, f"{prefix}miou": 84.0}
    assert re.findall(r"[\d.]+", format_evaluation(whole)) == ["95.9", "84.0"]
