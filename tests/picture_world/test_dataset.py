"""The picture world as a data set: in memory, as a stream, as a folder."""

import json

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from zegclip.picture_world.classes import CLASS_NAMES, UNSEEN_TEST, UNSEEN_TUNING, class_ids
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
    new = class_ids(UNSEEN_TEST)
    how = {"train": {"rare": new}, "tuning": {"absent": new}, "test": {}}[split]
    scene = draw_scene(scene_seeds(split, 2)[1], pool, **how)
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


def count_scenes(data, names):
    return sum(not set(class_ids(names)).isdisjoint(np.unique(row["mask"])) for row in data)


def test_unseen_classes_are_rare_in_training_scenes_and_test_classes_unknown_to_tuning():
    often = {name: count_scenes(load_picture_world(name, 150), UNSEEN_TEST) for name in ("train", "test", "tuning")}
    assert 0 < 2 * often["train"] < often["test"]
    assert often["tuning"] == 0
    for_tuning = load_picture_world("train", 150, eval_split="tuning")
    assert count_scenes(for_tuning, UNSEEN_TEST) == 0
    assert 2 * count_scenes(for_tuning, UNSEEN_TUNING) < 3 * count_scenes(
        load_picture_world("tuning", 150), UNSEEN_TUNING
    )
    stream = load_picture_world("train", 20, streaming=True, eval_split="tuning")
    assert [_content(row) for row in stream] == [_content(row) for row in for_tuning.select(range(20))]


def test_test_scenes_are_not_for_tuning():
    with pytest.raises(InputError, match="'test'"):
        load_picture_world("test", 1, eval_split="tuning")


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
    export_picture_world(tmp_path / "world", "train", 4, seed=3, eval_split="tuning")
    rows = list(load_picture_world("train", 4, seed=3, eval_split="tuning"))
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
