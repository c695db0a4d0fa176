"""The data sets, classes and augmentation that data arguments describe."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from accelerate import PartialState
from datasets import Dataset, DatasetDict, Image
from transformers.image_utils import PILImageResampling

from zegclip.errors import UsageError
from zegclip.picture_world.classes import CLASS_NAMES, GROUND_NAMES, OBJECT_NAMES, SEEN, UNSEEN_TEST, UNSEEN_TUNING
from zegclip.picture_world.dataset import EvalSplit, Split, load_picture_world
from zegclip.processing.augmentation import TrainingAugmentation
from zegclip.processing.class_split import ClassSplit, split_classes
from zegclip.processing.datasets import load_pictures
from zegclip.processing.processing_zegclip import ZegClipProcessor
from zegclip.training.arguments import DataArguments
from zegclip.training.pictures import spread_evenly

NUM_TRAIN_SCENES = 4000
NUM_EVAL_SCENES = 300


def picture_world_split(eval_split: str, unseen: Sequence[str] | None = None) -> ClassSplit:
    """
    Return the classes that are evaluated on a split of the picture world.

    On the tuning split the test classes do not exist, neither as names nor as labels. On the test split the tuning
    classes are seen.

    Args:
        eval_split: "tuning" or "test".
        unseen: Names of some of its unseen classes; the others are seen then.

    Raises:
        UsageError: If a name is not one of its unseen classes.
    """
    seen, all_unseen, ignored = (
        (SEEN, UNSEEN_TUNING, UNSEEN_TEST) if eval_split == "tuning" else (SEEN + UNSEEN_TUNING, UNSEEN_TEST, ())
    )
    unseen = all_unseen if unseen is None else tuple(unseen)
    if others := set(unseen) - set(all_unseen):
        raise UsageError(
            f"unseen_classes: {min(others)!r} is not unseen for {eval_split!r}, but {', '.join(all_unseen)} are."
        )
    seen += tuple(name for name in all_unseen if name not in unseen)
    split = split_classes(CLASS_NAMES, seen=seen, unseen=unseen, ignored=ignored)
    groups = {"objects": OBJECT_NAMES, "grounds": GROUND_NAMES}
    ids = {title: tuple(i for i, name in enumerate(split.names) if name in names) for title, names in groups.items()}
    return replace(split, groups=ids)


def load_data(arguments: DataArguments, *, training: bool) -> tuple[DatasetDict, ClassSplit]:
    """
    Load the pictures with their masks, and the classes of the setting.

    Args:
        arguments: Which data.
        training: Whether the training split is needed as well.

    Returns:
        The evaluation split as `validation` and, when training, the training split as `train`, each with as many
        pictures as the arguments say, evenly spread (then one line is printed); and the classes. In the
        cross-data-set setting all classes are seen. Rows are files, not decoded, as [`read_sample`] takes them.

    Raises:
        UsageError: If a split does not exist or is empty, or no class is unseen although the setting requires it.
        InputError: As [`load_pictures`].
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
    for name, _ in wanted.values():
        if name not in data:
            raise UsageError(
                f"{arguments.dataset} has no split {name!r}, but {', '.join(map(repr, data))}: set train_split and "
                "eval_split."
            )
        if not len(data[name]):
            raise UsageError(f"{arguments.dataset}: the split {name!r} has no picture.")
    if arguments.setting == "cross_dataset":
        split = replace(split, seen_ids=tuple(range(len(split.names))), unseen_ids=())
    elif arguments.setting != "fully_supervised" and len(split.seen_ids) == len(split.names):
        raise UsageError(
            f"The setting {arguments.setting!r} requires unseen_classes; to train on the masks of all classes, use "
            "fully_supervised."
        )
    return DatasetDict({role: _select(data[name], name, size) for role, (name, size) in wanted.items()}), split


def _load_scenes(arguments: DataArguments, *, training: bool) -> tuple[DatasetDict, ClassSplit]:
    for name in ("data_dir", "classes_file", "seen_classes", "ignored_classes"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"{name} is not an argument of the picture world, which has its own classes and splits.")
    eval_split, unseen = cast(EvalSplit, arguments.eval_split), arguments.unseen_classes
    split = picture_world_split(eval_split, unseen)
    # Each scene has its own seed, so the first scenes are the data set of that size.
    sizes: dict[Split, int] = {eval_split: arguments.num_eval_pictures or NUM_EVAL_SCENES}
    if training:
        sizes["train"] = arguments.num_train_pictures or NUM_TRAIN_SCENES
    data = {
        name: load_picture_world(name, size, seed=arguments.scene_seed, eval_split=eval_split, unseen=unseen)
        for name, size in sizes.items()
    }
    undecoded = DatasetDict(data).cast_column("image", Image(decode=False)).cast_column("mask", Image(decode=False))
    return undecoded, split


def _select(data: Dataset, name: str, size: int | None) -> Dataset:
    if size is None or size >= len(data):
        return data
    PartialState().print(f"{name}: {size} of {len(data)} pictures, evenly spread.")
    return data.select(spread_evenly(len(data), size))


def make_augmentation(
    arguments: DataArguments, processor: ZegClipProcessor, split: ClassSplit
) -> TrainingAugmentation:
    """
    Build the augmentation that the arguments describe; sizes that they do not set are the processor's.

    Raises:
        UsageError: If the processor resizes in another way than training does, or a size is missing or malformed.
    """
    image_processor = processor.image_processor
    size = dict(image_processor.size)
    bilinear = image_processor.resample == PILImageResampling.BILINEAR
    if not image_processor.do_resize or not bilinear or size.get("shortest_edge") is None:
        raise UsageError(
            "Training resizes the short side of pictures bilinearly, as the official code does, but the processor has "
            f"do_resize={image_processor.do_resize}, resample={image_processor.resample}, size={size}."
        )
    crop_size = arguments.crop_size or image_processor.window_size
    if crop_size is None:
        raise UsageError("Set crop_size: the processor has no window_size to use instead.")
    scale_range = arguments.scale_range or ()
    if len(scale_range) not in (0, 2):
        raise UsageError(f"scale_range must have two numbers, or none to keep the size of pictures: {scale_range}.")
    return TrainingAugmentation(
        crop_size=crop_size,
        scale_range=(scale_range[0], scale_range[1]) if scale_range else None,
        short_side=size["shortest_edge"],
        long_side=arguments.long_side,
        max_category_share=arguments.max_category_share,
        flip_probability=arguments.flip_probability,
        photometric_distortion=arguments.photometric_distortion,
        ignore_index=split.ignore_index,
    )
