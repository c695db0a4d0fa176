"""What `zegclip export-data` writes comes back by `zegclip import` as it was."""

import numpy as np
import pytest
from PIL import Image

from zegclip.commands.main import main
from zegclip.processing.datasets import load_pictures, read_sample

NAMES = ("wall", "traffic light", "50% a-tag-b", "Küche")


@pytest.fixture
def folder(tmp_path):
    """Two splits with a class that is in no picture, ignored pixels, and one picture of a single class."""
    rng = np.random.default_rng(0)
    source = tmp_path / "source"
    for split, count in (("train", 3), ("validation", 2)):
        for kind in ("images", "masks"):
            (source / kind / split).mkdir(parents=True)
        for number in range(count):
            ids = rng.choice([0, 1, 3, 255], size=(17 + number, 23)).astype(np.uint8)
            if number == 1:
                ids[:] = 3
            colours = rng.integers(256, size=(*ids.shape, 3), dtype=np.uint8)
            Image.fromarray(colours).save(source / "images" / split / f"picture {number}.png")
            Image.fromarray(ids).save(source / "masks" / split / f"picture {number}.png")
    (source / "classes.txt").write_text("\n".join(NAMES), encoding="utf-8")
    return source


def read(folder):
    data, split = load_pictures(str(folder))
    rows = {}
    for name, pictures in data.items():
        for row in pictures:
            picture, labels = read_sample(row, split)
            named = np.array([*split.names, "ignored"])[np.where(labels == split.ignore_index, -1, labels)]
            rows[name, picture.tobytes()] = named.tolist()
    return split.names, rows


@pytest.mark.parametrize("kind", ["coco", "colours", "binary"])
def test_a_round_trip_changes_nothing(folder, tmp_path, kind):
    assert main(["export-data", str(folder), str(tmp_path / "exported"), "--to", kind]) == 0
    words = ["import", str(tmp_path / "exported"), str(tmp_path / "back"), "--ignore", "background", "--workers", "0"]
    assert main(words) == 0
    names, rows = read(folder)
    names_back, rows_back = read(tmp_path / "back")
    assert names_back == names
    assert rows_back == rows
