"""From data arguments to data sets, class split and processor."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from zegclip.arguments import DataArguments
from zegclip.picture_world.classes import CLASS_NAMES, OBJECT_NAMES, SEEN, UNSEEN_TEST, UNSEEN_TUNING, class_ids
from zegclip.picture_world.dataset import Split, load_picture_world
from zegclip.processing.augmentation_zegclip import random_crop_and_flip
from zegclip.processing.class_split_zegclip import ClassSplit
from zegclip.processing.processing_zegclip import ZegClipProcessor

IGNORE_INDEX = 255


def picture_world_split(eval_split: str) -> ClassSplit:
    """
    Return the classes that a split of the picture world is measured on.

    On the tuning split the classes kept for the test do not exist: neither as names nor as labels. On the test split
    all names compete; the tuning classes enter neither mean.
    """
    unseen = UNSEEN_TUNING if eval_split == "tuning" else UNSEEN_TEST
    names = tuple(name for name in CLASS_NAMES if eval_split == "test" or name not in UNSEEN_TEST)

    def ids(wanted: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(index for index, name in enumerate(names) if name in wanted)

    return ClassSplit(names=names, seen_ids=ids(SEEN), unseen_ids=ids(unseen), groups={"objects": ids(OBJECT_NAMES)})


def read_labels(image: Image.Image, mask: Image.Image, names: Sequence[str]) -> np.ndarray:
    """
    Turn a picture world mask into positions in `names`; classes that are not among them are ignored.

    Returns:
        `(height, width)` int64.

    Raises:
        ValueError: If the mask has another size than its picture, or holds an id that is no class.
    """
    if mask.size != image.size:
        raise ValueError(f"A mask is {mask.width}x{mask.height} pixels, but its picture {image.width}x{image.height}.")
    ids = np.asarray(mask).astype(np.int64)
    ClassSplit(names=CLASS_NAMES, seen_ids=()).check(ids)
    table = np.full(IGNORE_INDEX + 1, IGNORE_INDEX)
    table[class_ids(tuple(names))] = np.arange(len(names))
    return table[ids]


def load_training_data(arguments: DataArguments, processor: ZegClipProcessor, split: ClassSplit) -> Dataset:
    """
    Load the training pictures: random crops of one size, labels among the seen classes.

    Args:
        arguments: Which data.
        processor: Its image processor normalises; its window size is the default crop.
        split: The classes.
    """
    crop_size = arguments.crop_size or processor.image_processor.window_size

    def transform(batch: dict[str, list]) -> dict[str, list[torch.Tensor]]:
        result: dict[str, list[torch.Tensor]] = {"pixel_values": [], "labels": []}
        for image, mask in zip(batch["image"], batch["mask"]):
            labels = split.training_labels(read_labels(image, mask, split.names))
            image, mask = random_crop_and_flip(image, Image.fromarray(labels.astype(np.uint8)), crop_size)
            inputs = processor.image_processor(image, segmentation_maps=mask, do_resize=False, return_tensors="pt")
            result["pixel_values"].append(inputs["pixel_values"][0])
            result["labels"].append(inputs["labels"][0])
        return result

    data = load_picture_world("train", arguments.num_train_pictures, seed=arguments.scene_seed)
    return data.with_transform(transform)


def load_evaluation_data(arguments: DataArguments, processor: ZegClipProcessor, split: ClassSplit) -> Dataset:
    """Load the evaluation pictures, of any sizes, labels among all classes; arguments as for training."""

    def transform(batch: dict[str, list]) -> dict[str, list[torch.Tensor]]:
        result: dict[str, list[torch.Tensor]] = {"pixel_values": [], "labels": []}
        for image, mask in zip(batch["image"], batch["mask"]):
            result["pixel_values"].append(processor.image_processor(image, return_tensors="pt")["pixel_values"][0])
            result["labels"].append(torch.from_numpy(read_labels(image, mask, split.names)))
        return result

    eval_split = cast(Split, arguments.eval_split)
    data = load_picture_world(eval_split, arguments.num_eval_pictures, seed=arguments.scene_seed)
    return data.with_transform(transform)
