"""Data sets and classes from arguments: the picture world and folders, and arguments that are refused."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zegclip.errors import UsageError
from zegclip.picture_world.classes import CLASS_NAMES, SEEN, UNSEEN_TEST, UNSEEN_TUNING, class_ids
from zegclip.picture_world.dataset import export_picture_world
from zegclip.processing.datasets import read_sample
from zegclip.processing.image_reading import load_class_ids
from zegclip.training.arguments import DataArguments, parse_arguments
from zegclip.training.data import load_data, make_augmentation, picture_world_split
from zegclip.training.pictures import EvaluationPictures

ROOT = Path(__file__).parents[3]
WORLD = {"seen_classes": list(SEEN), "unseen_classes": list(UNSEEN_TUNING), "ignored_classes": list(UNSEEN_TEST)}


def test_the_tuning_split_knows_nothing_of_the_test_classes():
    split = picture_world_split("tuning")
    assert not set(split.names) & set(UNSEEN_TEST)
    assert {split.names[index] for index in split.unseen_ids} == set(UNSEEN_TUNING)
    assert split.seen_names == list(SEEN)
    # As the papers report it: all masks are trained on, the means are those of the zero-shot split.
    assert split.training_ids("fully_supervised") == tuple(range(len(split.names)))


def test_on_the_test_split_all_names_compete():
    split = picture_world_split("test")
    assert split.names == CLASS_NAMES
    assert {split.names[index] for index in split.unseen_ids} == set(UNSEEN_TEST)
    assert set(split.seen_names) == set(SEEN) | set(UNSEEN_TUNING)


def test_some_of_the_unseen_classes_of_the_tuning_split_may_be_seen():
    unseen = ["fish", "sand"]
    arguments = DataArguments(num_train_pictures=150, num_eval_pictures=2, unseen_classes=unseen)
    data, split = load_data(arguments, training=True)
    assert {split.names[index] for index in split.unseen_ids} == set(unseen)
    assert set(split.seen_names) == set(SEEN) | set(UNSEEN_TUNING) - set(unseen)

    def scenes_with(rows, names):
        return sum(
            not set(class_ids(names)).isdisjoint(np.unique(load_class_ids(row["mask"]["bytes"]))) for row in rows
        )

    others = [name for name in UNSEEN_TUNING if name not in unseen]
    all_rare = load_data(replace(arguments, unseen_classes=None), training=True)[0]
    assert scenes_with(data["train"], others) > 1.5 * scenes_with(all_rare["train"], others)
    with pytest.raises(ValueError, match="'house' is not unseen for 'tuning'"):
        load_data(replace(arguments, unseen_classes=["fish", "house"]), training=True)


@pytest.mark.parametrize("name", ["tuning", "test"])
def test_training_labels_are_of_the_seen_classes(name):
    split = picture_world_split(name)
    labels = split.training_labels(split.labels_of(np.arange(len(CLASS_NAMES))))
    assert [split.seen_names[label] for label in labels if label != 255] == split.seen_names
    assert set(split.groups["objects"]) | set(split.groups["grounds"]) == set(range(len(split.names)))


def test_scenes_come_in_the_numbers_asked_for(image_processor):
    arguments = DataArguments(num_train_pictures=3, num_eval_pictures=2)
    data, split = load_data(arguments, training=True)
    assert {name: len(rows) for name, rows in data.items()} == {"validation": 2, "train": 3}
    assert load_data(arguments, training=False)[0].keys() == {"validation"}
    sample = EvaluationPictures(data["validation"], split, image_processor)[0]
    assert sample["labels"].shape == (96, 96)
    assert sample["pixel_values"].shape == (3, 32, 32)  # the processor's short side


def test_a_folder_export_is_the_picture_world(tmp_path):
    for name, count in (("train", 3), ("tuning", 2)):
        export_picture_world(tmp_path / name, name, count, eval_split="tuning")
    direct = load_data(DataArguments(num_train_pictures=3, num_eval_pictures=2), training=True)
    folder = load_data(DataArguments(dataset=str(tmp_path), eval_split="tuning", **WORLD), training=True)
    assert (folder[1].names, folder[1].seen_ids, folder[1].unseen_ids) == (
        direct[1].names, direct[1].seen_ids, direct[1].unseen_ids,
    )  # fmt: skip
    for name in ("train", "validation"):
        assert len(folder[0][name]) == len(direct[0][name])
        for ours, theirs in zip(folder[0][name], direct[0][name]):
            for left, right in zip(read_sample(ours, folder[1]), read_sample(theirs, direct[1])):
                assert np.array_equal(left, right)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"eval_split": "nowhere"}, "'nowhere'"),
        ({}, "unseen_classes"),
        ({"setting": "transductive"}, "unseen_classes"),
        ({"unseen_classes": ["cat"], "seen_classes": ["cat", "tree"]}, "cat"),
        ({"unseen_classes": ["cot"]}, "cot"),
        ({"dataset": "picture_world", "eval_split": "tuning", "unseen_classes": ["cat"]}, "unseen_classes"),
    ],
)
def test_wrong_choices_are_refused(tmp_path, fields, named):
    export_picture_world(tmp_path / "world", "train", 2)
    arguments = DataArguments(**{"dataset": str(tmp_path / "world"), "eval_split": "train"} | fields)
    with pytest.raises(ValueError, match=named):
        load_data(arguments, training=True)


@pytest.mark.parametrize("setting", ["cross_dataset", "fully_supervised"])
def test_all_classes_of_another_data_set_are_seen(tmp_path, setting):
    export_picture_world(tmp_path, "train", 2)
    arguments = DataArguments(dataset=str(tmp_path), setting=setting, eval_split="train")
    _, split = load_data(arguments, training=False)
    assert split.seen_ids == tuple(range(len(CLASS_NAMES)))


def test_the_augmentation_has_the_processors_sizes_by_default(processor):
    split = picture_world_split("tuning")
    augmentation = make_augmentation(DataArguments(), processor, split)
    assert (augmentation.crop_size, augmentation.short_side, augmentation.long_side) == (32, 32, 2048)
    own = make_augmentation(DataArguments(crop_size=48, scale_range=[], flip_probability=0.0), processor, split)
    assert (own.crop_size, own.scale_range, own.flip_probability) == (48, None, 0.0)
    with pytest.raises(UsageError, match="scale_range"):
        make_augmentation(DataArguments(scale_range=[1.0]), processor, split)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("do_resize", False, "do_resize"),
        ("resample", 3, "resample"),
        ("size", {"height": 32, "width": 32}, "size"),
        ("window_size", None, "crop_size"),
    ],
)
def test_processors_that_do_not_fit_training_are_refused(processor, name, value, named):
    setattr(processor.image_processor, name, value)
    with pytest.raises(UsageError, match=named):
        make_augmentation(DataArguments(), processor, picture_world_split("tuning"))


def test_one_split_can_be_trained_and_evaluated_on(tmp_path):
    export_picture_world(tmp_path, "train", 4)
    fields = {"setting": "fully_supervised", "eval_split": "train", "num_train_pictures": 3, "num_eval_pictures": 1}
    data, _ = load_data(DataArguments(dataset=str(tmp_path), **fields), training=True)
    assert {name: len(rows) for name, rows in data.items()} == {"train": 3, "validation": 1}


def test_a_limit_takes_pictures_from_all_over_the_data_set(tmp_path, capsys):
    """A folder is often sorted by class or place: its first pictures are not representative."""
    export_picture_world(tmp_path, "train", 9)
    fields = {"dataset": str(tmp_path), "setting": "fully_supervised", "eval_split": "train"}
    data, _ = load_data(DataArguments(**fields, num_train_pictures=3, num_eval_pictures=1), training=True)
    names = {role: [Path(row["image"]["path"]).stem for row in rows] for role, rows in data.items()}
    assert names == {"train": ["000001", "000004", "000007"], "validation": ["000004"]}
    assert re.findall(r"\d of \d pictures", capsys.readouterr().out) == ["1 of 9 pictures", "3 of 9 pictures"]
    for size in (None, 9, 20):
        assert len(load_data(DataArguments(**fields, num_eval_pictures=size), training=False)[0]["validation"]) == 9
    assert not capsys.readouterr().out


def test_a_limit_on_the_picture_world_is_its_size(capsys):
    """Each scene has its own seed, so the first scenes are the data set of that size."""
    few, many = (load_data(DataArguments(num_eval_pictures=size), training=False)[0]["validation"] for size in (2, 4))
    for left, right in zip(few, many):
        assert left["image"]["bytes"] == right["image"]["bytes"]
    assert not capsys.readouterr().out


@pytest.mark.parametrize("template", sorted((ROOT / "configs").glob("*_folder.yaml")), ids=lambda path: path.stem)
def test_templates_leave_no_picture_out(template):
    _, arguments, _ = parse_arguments([str(template), "--use_cpu"])
    assert (arguments.num_train_pictures, arguments.num_eval_pictures) == (None, None)
