"""Tables and lines say what was counted."""

import math
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
