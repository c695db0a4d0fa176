"""The picture world as training and evaluation data: which classes exist where, and labels that stay honest."""

import numpy as np
import pytest
from PIL import Image

from zegclip.arguments import DataArguments
from zegclip.data import load_evaluation_data, load_training_data, picture_world_split, read_labels
from zegclip.picture_world.classes import CLASS_NAMES, SEEN, UNSEEN_TEST, UNSEEN_TUNING


@pytest.fixture
def arguments():
    return DataArguments(num_train_pictures=12, num_eval_pictures=4, crop_size=48)


def test_the_tuning_split_knows_nothing_of_the_test_classes():
    split = picture_world_split("tuning")
    assert not set(split.names) & set(UNSEEN_TEST)
    assert {split.names[index] for index in split.unseen_ids} == set(UNSEEN_TUNING)
    assert split.seen_names == list(SEEN)


def test_on_the_test_split_all_names_compete():
    split = picture_world_split("test")
    assert split.names == CLASS_NAMES
    assert {split.names[index] for index in split.unseen_ids} == set(UNSEEN_TEST)
    measured = {split.names[index] for index in (*split.seen_ids, *split.unseen_ids)}
    assert measured == set(SEEN) | set(UNSEEN_TEST)


def test_training_labels_are_of_seen_classes_only(arguments, processor):
    split = picture_world_split("test")
    data = load_training_data(arguments, processor, split)
    ids = set()
    for sample in data:
        assert sample["pixel_values"].shape == (3, 48, 48)
        assert sample["labels"].shape == (48, 48)
        ids |= set(sample["labels"].unique().tolist())
    assert ids <= {*range(len(SEEN)), 255}
    assert 255 in ids
    assert len(ids) > 5


def test_training_labels_do_not_depend_on_the_evaluated_split():
    mask = Image.fromarray(np.arange(len(CLASS_NAMES), dtype=np.uint8)[None])
    picture = Image.new("RGB", mask.size)
    labels = []
    for name in ("tuning", "test"):
        split = picture_world_split(name)
        labels.append(split.training_labels(read_labels(picture, mask, split.names)))
    assert np.array_equal(*labels)
    assert [SEEN[label] for label in labels[0][0] if label != 255] == list(SEEN)


def test_evaluation_keeps_pictures_whole(arguments, processor):
    split = picture_world_split("tuning")
    sample = load_evaluation_data(arguments, processor, split)[0]
    assert sample["labels"].shape == (96, 96)
    assert sample["pixel_values"].shape == (3, 32, 32)  # the processor's short side


def test_masks_that_do_not_fit():
    with pytest.raises(ValueError, match="A mask is 3x2 pixels, but its picture 4x2"):
        read_labels(Image.new("RGB", (4, 2)), Image.new("L", (3, 2)), CLASS_NAMES)
    with pytest.raises(ValueError, match="the id 77, outside of the class list"):
        read_labels(Image.new("RGB", (4, 2)), Image.new("L", (4, 2), 77), CLASS_NAMES)
