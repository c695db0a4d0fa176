"""The picture world as a data set: in memory, as a stream, as a folder."""

import json

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from zegclip.picture_world.classes import CLASS_NAMES
from zegclip.picture_world.dataset import draw_example, export_picture_world, load_picture_world, scene_seeds
from zegclip.picture_world.drawing import draw_scene
from zegclip.processing.input_error import InputError


def _content(row) -> tuple[bytes, bytes, str]:
    return row["image"].tobytes(), row["mask"].tobytes(), row["caption"]


@pytest.mark.parametrize(("split", "pool"), [("train", "train"), ("tuning", "train"), ("test", "test")])
def test_rows_are_the_drawn_scenes(split, pool):
    data = load_picture_world(split, 3, seed=2)
    assert data.column_names == ["image", "mask", "caption"]
    assert len(data) == 3
    scene = draw_scene(scene_seeds(split, 2)[1], pool)
    assert data[1]["image"].mode == "RGB"
    assert data[1]["mask"].mode == "L"
    np.testing.assert_array_equal(np.asarray(data[1]["image"]), np.asarray(scene.image))
    np.testing.assert_array_equal(np.asarray(data[1]["mask"]), np.asarray(scene.mask))


def test_splits_and_seeds_share_no_scene():
    pictures = {
        _content(draw_example(split, seed))[0]
        for split in ("train", "tuning", "test")
        for number in (0, 1)
        for seed in scene_seeds(split, number)[:2]
    }
    assert len(pictures) == 12
    assert scene_seeds("train", 2**20 - 1).stop <= scene_seeds("tuning").start


def test_stream_equals_the_data_in_memory():
    rows = [_content(row) for row in load_picture_world("test", 21, seed=1, streaming=True)]
    assert rows == [_content(row) for row in load_picture_world("test", 21, seed=1)]


def test_shards_of_an_endless_stream_share_no_scene():
    stream = load_picture_world("train", None, streaming=True)
    assert stream.num_shards == 16
    first = [_content(row) for row in stream.shard(2, 0).take(3)]
    second = [_content(row) for row in stream.shard(2, 1).take(3)]
    assert len({picture for picture, _, _ in first + second}) == 6


def test_export_equals_the_data_and_reads_back(tmp_path):
    export_picture_world(tmp_path / "world", "tuning", 4, seed=3)
    rows = list(load_picture_world("tuning", 4, seed=3))
    lines = [json.loads(line) for line in (tmp_path / "world" / "metadata.jsonl").read_text().splitlines()]
    for row, line in zip(rows, lines, strict=True):
        mask = Image.open(tmp_path / "world" / line["mask_file_name"])
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), np.asarray(row["mask"]))
        picture = Image.open(tmp_path / "world" / line["file_name"])
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(row["image"]))
        assert line["caption"] == row["caption"]
    assert (tmp_path / "world" / "classes.txt").read_text().split() == list(CLASS_NAMES)
    assert not list(tmp_path.rglob("*.part"))

    data = load_dataset("imagefolder", data_dir=str(tmp_path / "world"), cache_dir=str(tmp_path / "cache"))["train"]
    np.testing.assert_array_equal(np.asarray(data[2]["mask"]), np.asarray(rows[2]["mask"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("validation", 3), "validation"),
        (("train", 0), "num_scenes"),
        (("train", None), "num_scenes"),
        (("train", 3, -1), "seed"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        load_picture_world(*arguments)


def test_an_export_does_not_replace_another(tmp_path):
    export_picture_world(tmp_path, "train", 2)
    with pytest.raises(FileExistsError, match="export"):
        export_picture_world(tmp_path, "test", 1)
