"""From data arguments to pictures with masks, their classes, and the augmentation."""

from dataclasses import replace
from typing import cast

from accelerate import PartialState
from datasets import Dataset, DatasetDict, Image
from transformers.image_utils import PILImageResampling

from zegclip.picture_world.classes import CLASS_NAMES, OBJECT_NAMES, SEEN, UNSEEN_TEST, UNSEEN_TUNING
from zegclip.picture_world.dataset import Split, load_picture_world
from zegclip.processing.augmentation import TrainingAugmentation
from zegclip.processing.class_split import ClassSplit, split_classes
from zegclip.processing.datasets import load_pictures
from zegclip.processing.processing_zegclip import ZegClipProcessor
from zegclip.training.arguments import DataArguments
from zegclip.training.pictures import spread_evenly

NUM_TRAIN_SCENES = 4000
NUM_EVAL_SCENES = 300


def picture_world_split(eval_split: str) -> ClassSplit:
    """
    Return the classes that a split of the picture world is measured on.

    On the tuning split the classes kept for the test do not exist: neither as names nor as labels. On the test split
    all names compete; the tuning classes enter neither mean.
    """
    unseen, ignored = (UNSEEN_TUNING, UNSEEN_TEST) if eval_split == "tuning" else (UNSEEN_TEST, ())
    split = split_classes(CLASS_NAMES, seen=SEEN, unseen=unseen, ignored=ignored)
    objects = tuple(index for index, name in enumerate(split.names) if name in OBJECT_NAMES)
    return replace(split, groups={"objects": objects})


def load_data(arguments: DataArguments, *, training: bool) -> tuple[DatasetDict, ClassSplit]:
    """
    Load the pictures with their masks, and the classes of the setting.

    Args:
        arguments: Which data.
        training: Whether the training split is needed too.

    Returns:
        `validation` and, when training, `train`, whatever the data set calls them, of as many pictures as are asked
        for, evenly spread; and the classes. In the cross-data-set setting all of them count as seen. Where pictures
        are left out, one line is printed.

    Raises:
        ValueError: If a split or class does not exist, or there is nothing unseen where the setting needs it.
    """
    wanted = {"validation": (str(arguments.eval_split), arguments.num_eval_pictures)}
    if training:
        wanted["train"] = (arguments.train_split, arguments.num_train_pictures)
    if arguments.dataset == "picture_world":
        data, split = _load_scenes(arguments, training=training)
    else:
        data, split = load_pictures(
            arguments.dataset,
            data_dir=arguments.data_dir,
            classes_file=arguments.classes_file,
            seen=arguments.seen_classes,
            unseen=arguments.unseen_classes,
            ignored=arguments.ignored_classes or (),
            image_column=arguments.image_column,
            mask_column=arguments.mask_column,
            splits=[name for name, _ in wanted.values()],
        )
    missing = [name for name, _ in wanted.values() if name not in data]
    if missing:
        raise ValueError(
            f"{arguments.dataset} has no split {missing[0]!r}; it has {', '.join(map(repr, data))}. Say which with "
            "train_split and eval_split."
        )
    if arguments.setting == "cross_dataset":
        split = replace(split, seen_ids=tuple(range(len(split.names))), unseen_ids=())
    elif arguments.setting != "fully_supervised" and len(split.seen_ids) == len(split.names):
        raise ValueError(
            f"The setting {arguments.setting!r} needs classes without masks: name some in unseen_classes, or train on "
            "all with the setting fully_supervised."
        )
    for name, _ in wanted.values():
        if not len(data[name]):
            raise ValueError(f"{arguments.dataset}: the split {name!r} has no picture.")
    return DatasetDict({role: _some_undecoded(data[name], name, size) for role, (name, size) in wanted.items()}), split


def _load_scenes(arguments: DataArguments, *, training: bool) -> tuple[DatasetDict, ClassSplit]:
    for name in ("data_dir", "classes_file", "seen_classes", "unseen_classes", "ignored_classes"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"{name} is for other data sets: the picture world has its own classes and splits.")
    eval_split = cast(Split, arguments.eval_split)
    # Scenes are drawn one by one, each from a seed of its own: the first ones are the data set of that size.
    sizes = {eval_split: arguments.num_eval_pictures or NUM_EVAL_SCENES}
    if training:
        sizes["train"] = arguments.num_train_pictures or NUM_TRAIN_SCENES
    data = {name: load_picture_world(name, size, seed=arguments.scene_seed) for name, size in sizes.items()}
    return DatasetDict(data), picture_world_split(eval_split)


def _some_undecoded(data: Dataset, name: str, size: int | None) -> Dataset:
    """Take some rows, with the files themselves: reading them is ours, so that errors can name them."""
    if size is not None and size < len(data):
        PartialState().print(f"{name}: {size} of {len(data)} pictures, evenly spread.")
        data = data.select(spread_evenly(len(data), size))
    for column in ("image", "mask"):
        data = data.cast_column(column, Image(decode=False))
    return data


def make_augmentation(
    arguments: DataArguments, processor: ZegClipProcessor, split: ClassSplit
) -> TrainingAugmentation:
    """Build the augmentation that the arguments describe; sizes that they leave open are the processor's."""
    image_processor = processor.image_processor
    size = dict(image_processor.size)
    bilinear = image_processor.resample == PILImageResampling.BILINEAR
    if not image_processor.do_resize or not bilinear or size.get("shortest_edge") is None:
        raise ValueError(
            "A training resizes pictures bilinearly by their short side, as the official code does, but the processor "
            f"has do_resize={image_processor.do_resize}, resample={image_processor.resample}, size={size}."
        )
    short_side = size["shortest_edge"]
    crop_size = arguments.crop_size or image_processor.window_size
    if crop_size is None:
        raise ValueError("crop_size is missing: the processor has no window size that could take its place.")
    scale_range = arguments.scale_range or None
    if scale_range is not None and len(scale_range) != 2:
        raise ValueError(f"scale_range must have two numbers, or none to keep each picture's size, not {scale_range}.")
    return TrainingAugmentation(
        crop_size=crop_size,
        scale_range=None if scale_range is None else (scale_range[0], scale_range[1]),
        short_side=short_side,
        long_side=arguments.long_side,
        max_category_share=arguments.max_category_share,
        flip_probability=arguments.flip_probability,
        photometric_distortion=arguments.photometric_distortion,
        ignore_index=split.ignore_index,
    )
