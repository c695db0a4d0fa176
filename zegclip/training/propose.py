"""`zegclip init`: a configuration for a data set, with the reason for each value."""

import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from datasets import DatasetDict

from zegclip.errors import UsageError
from zegclip.modeling.configuration_zegclip import ZegClipConfig
from zegclip.processing.class_split import ClassSplit
from zegclip.training.config_file import CONFIGS
from zegclip.training.survey import Survey, survey_pictures

METHODS = {"zegclip": "ZegCLIP", "spt_seg": "SPT-SEG", "ldvc": "LDVC"}
SAYS_NOTHING = ("void", "unlabelled", "unlabeled", "ignore", "ignored", "undefined")
"""Names of classes that are no classes, in lower case: their pixels are ignored unless the user says otherwise."""
_NEVER_UNSEEN = (*SAYS_NOTHING, "background", "other", "others", "misc", "unknown", "none")
_EVALUATION_SPLITS = ("validation", "valid", "val", "dev", "tuning", "testing", "test")
_SAMPLED, _SECONDS = 200, 30  # Masks of a split that are read, and the longest that this takes.
_FEW_LAYERS = 8  # A vision tower with fewer is a small one, such as the embedded CLIP's.
_SHOWN = 20  # Names in a comment.


@dataclass
class Recipe:
    """
    What differs between a CLIP of the papers' size and a small one.

    Attributes:
        suffix: Of the configuration whose values are taken, behind the method's name.
        epochs: How often each picture is seen.
        steps: Smallest and largest number of steps.
        warmup: Share of the steps.
        stride: Of the windows, relative to their size, as numerator and denominator.
        schedule: Where the number of epochs comes from.
    """

    suffix: str
    epochs: int
    steps: tuple[int, int]
    warmup: float
    stride: tuple[int, int]
    schedule: str


_LARGE = Recipe("voc_fully_supervised", 30, (2000, 80_000), 0.075, (5, 6), "as the papers train on VOC")
_SMALL = Recipe("folder", 12, (1000, 20_000), 0.025, (5, 16), "as the embedded model was trained on its drawn world")


@dataclass
class Facts:
    """
    What a configuration depends on.

    Attributes:
        dataset: As it is given to `load_pictures`.
        arguments: Other fields of `DataArguments` that it was loaded with.
        split: The classes.
        sizes: Number of pictures in each split.
        surveys: Of a sample of each split.
        model: Folder or Hub id of the CLIP; `None`: the embedded one.
        base: Its configuration.
        unseen: Names of the classes to hold out, or how many.
    """

    dataset: str
    arguments: Mapping[str, Any]
    split: ClassSplit
    sizes: Mapping[str, int]
    surveys: Mapping[str, Survey]
    model: str | None
    base: ZegClipConfig
    unseen: Sequence[str] | int = 0


def survey_sample(data: DatasetDict, split: ClassSplit) -> dict[str, Survey]:
    """
    Read some masks of each split, evenly spread.

    Raises:
        UsageError: If none of them can be used.
    """
    surveys = {
        name: survey_pictures(
            name, rows, split, decode=False, most=_SAMPLED, seconds=_SECONDS, description=f"{name}: reading masks"
        )
        for name, rows in data.items()
        if len(rows)
    }
    if not any(survey.sizes for survey in surveys.values()):
        faults = [fault for survey in surveys.values() for fault in survey.broken.values()]
        raise UsageError(f"No picture can be used: {faults[0] if faults else 'there is none.'}")
    return surveys


def choose_splits(sizes: Mapping[str, int]) -> tuple[str, str, str]:
    """
    Choose the splits for training and evaluation.

    Args:
        sizes: Number of pictures of each split, of which at least one is not empty.

    Returns:
        Both names, which are equal if there is only one split, and why.
    """
    found = [name for name, size in sizes.items() if size]
    largest = max(found, key=lambda name: sizes[name])
    train = next((name for name in ("train", "training") if name in found), largest)
    others = [name for name in found if name != train]
    if not others:
        caution = (
            "CAUTION: this is the only split, so figures are those of pictures that were trained on, and say nothing "
            "about new ones. Move some pictures and their masks to another split, such as images/validation and "
            "masks/validation beside images/train and masks/train, and name it here."
        )
        return train, train, caution
    choice = next((name for name in _EVALUATION_SPLITS if name in others), max(others, key=lambda name: sizes[name]))
    reason = f"{sizes[choice]} pictures that are never trained on."
    if choice.startswith("test"):
        reason += (
            " There is no split for validation: if you choose settings by figures on this one, they are too good."
        )
    return train, choice, reason


def choose_unseen(facts: Facts, number: int | None = None) -> list[str]:
    """
    Propose classes to hold out: those that are neither rare nor the most frequent.

    Args:
        facts: Of which the sample counts: a class must occur in each split for training and evaluation.
        number: How many; `None`: a quarter of the classes, as the papers do on VOC, or none if there are too few.

    Raises:
        UsageError: If there are fewer classes than `number` to choose from.
    """
    train, evaluation, _ = choose_splits(facts.sizes)
    surveys = [facts.surveys[name] for name in dict.fromkeys((train, evaluation))]
    in_all = np.min([survey.pictures for survey in surveys], axis=0)
    total = np.sum([survey.pictures for survey in surveys], axis=0)
    names = facts.split.names
    usable = [index for index in range(len(names)) if in_all[index] and names[index].lower() not in _NEVER_UNSEEN]
    usable.sort(key=lambda index: (total[index], index))
    most = min(len(usable), len(names) - 1)
    if number is None:
        number = round(len(names) / 4) if most >= 3 else 0
        number = min(number, most)
    if number > most:
        where = " and ".join(dict.fromkeys((train, evaluation)))
        raise UsageError(
            f"Only {most} of the {len(names)} classes can be held out: a class must occur in {where} (in a sample of "
            f"up to {_SAMPLED} masks each), and one must remain to train on."
        )
    start = (len(usable) - number) // 2
    return [names[index] for index in sorted(usable[start : start + number])]


def propose(facts: Facts, method: str, file: str, output_dir: str) -> str:
    """
    Write a configuration.

    Args:
        facts: What it depends on.
        method: A key of [`METHODS`].
        file: Where it will be saved, for its own commands.
        output_dir: Folder of the training.

    Returns:
        YAML, in which a comment above each field says why it has this value.

    Raises:
        UsageError: As [`choose_unseen`].
    """
    layers = facts.base.clip_config.vision_config.num_hidden_layers
    recipe = _SMALL if layers < _FEW_LAYERS else _LARGE
    text = (CONFIGS / f"{method}_{recipe.suffix}.yaml").read_text(encoding="utf-8")
    taken = {"decoder_attention_heads": 8, **yaml.safe_load(text)}
    for name in ("dataset", "data_dir", "train_split", "eval_split", "setting", "unseen_classes", "ignored_classes",
                 "model", "double_class_embedding"):  # fmt: skip
        taken.pop(name, None)  # of the data, of the CLIP, or of the papers' experiments alone
    ours = {**_sizes(facts, recipe, taken), **_schedule(facts, recipe, taken, output_dir)}
    ours = {name: found for name, found in ours.items() if name in taken}
    ours["seen_offset"] = _seen_offset(facts, recipe)
    total = sum(facts.sizes.values())
    train, evaluate = ["zegclip", "train", file], ["zegclip", "eval", file, "--model", output_dir]
    lines = [
        *_comment(
            f"{METHODS[method]} on {_one_line(facts.dataset)}: {total} pictures, {len(facts.split.names)} classes. "
            "Written by zegclip init; change what you like. --help of these commands lists all fields, which can also "
            "be set on the command line, such as --max_steps 200 for a first try:"
        ),
        *(f"#   {_one_line(shlex.join(words))}" for words in (train, evaluate)),
    ]
    lines += _write_fields(_data(facts))
    lines += _remark(facts, recipe)
    lines += _write_fields({name: (value, _REASONS[name]) for name, value in taken.items()} | ours)
    return "\n".join(lines) + "\n"


def _write_fields(fields: Mapping[str, tuple[Any, str]]) -> list[str]:
    lines = []
    for name, (value, reason) in fields.items():
        lines += ["", *_comment(reason), f"{name}: {to_yaml(value)}"]
    return lines


def _data(facts: Facts) -> dict[str, tuple[Any, str]]:
    split = facts.split
    fields: dict[str, tuple[Any, str]] = {}
    dataset = "./picture_world" if facts.dataset == "picture_world" else facts.dataset
    fields["dataset"] = dataset, "Your data. A relative path starts where the commands are run."
    fields |= {name: (value, "As given to zegclip init.") for name, value in facts.arguments.items()}
    if "ignored_classes" in fields:
        why = "Their pixels are ignored, in training and evaluation: remove those that CLIP should find."
        fields["ignored_classes"] = facts.arguments["ignored_classes"], why
    train, evaluation, reason = choose_splits(facts.sizes)
    fields["train_split"] = train, f"{facts.sizes[train]} pictures. Splits of this data: {_list(list(facts.sizes))}."
    fields["eval_split"] = evaluation, reason
    if train == evaluation:
        fields["num_eval_pictures"] = min(facts.sizes[train], 100), "Enough to see that the training works."
    ignored = ", ".join(map(str, split.ignored_values))
    classes = f"{len(split.names)} classes: {_list(split.names)}. Mask values that are ignored: {ignored}. "
    if facts.unseen:
        unseen = facts.unseen if not isinstance(facts.unseen, int) else choose_unseen(facts, facts.unseen)
        reason = "Training sees neither names nor masks of the unseen classes."
        fields["setting"] = "inductive", classes + reason
        chosen = "As given to zegclip init."
        if isinstance(facts.unseen, int):
            chosen = "Proposed: classes that occur in both splits, neither rare nor the most frequent."
        fields["unseen_classes"] = list(unseen), f"{chosen} Their masks are used in evaluation alone."
    else:
        fields["setting"] = "fully_supervised", classes + "All have masks, so the training uses the masks of all."
    if facts.model is not None:
        fields["model"] = facts.model, "As given to zegclip init: the CLIP, which stays as it is."
    return fields


def _remark(facts: Facts, recipe: Recipe) -> list[str]:
    """Return what stands in the file, as comments, about a CLIP and about classes without masks."""
    lines = []
    if facts.model is None:
        text = (
            "Without a model, it is the embedded tiny CLIP, which knows a drawn world only. For photographs, write "
            "this file anew with zegclip init --model openai/clip-vit-base-patch16: sizes and steps are others then."
        )
        lines += ["", *_comment(text)]
    if not facts.unseen and (proposed := choose_unseen(facts)):
        text = (
            "The trained model can be asked for any other name. To measure how well it finds classes without masks, "
            "hold some out in a training of its own, with another output_dir, by these lines instead of the same "
            "fields above and below. They are classes that occur in both splits and are neither rare nor the most "
            "frequent."
        )
        lines += ["", *_comment(text), "#setting: inductive", f"#unseen_classes: {to_yaml(proposed)}"]
        lines += [] if recipe is _SMALL else ["#seen_offset: 0.1"]
    return lines


def _sizes(facts: Facts, recipe: Recipe, taken: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Sizes in pixels and patches, and what must fit the CLIP."""
    clip = facts.base.clip_config
    vision = clip.vision_config
    patch, own, layers = vision.patch_size, vision.image_size, vision.num_hidden_layers
    small = recipe is _SMALL

    def whole(pixels: float) -> int:
        return max(int(pixels) // patch, 1) * patch

    short = np.array([min(size) for survey in facts.surveys.values() for size in survey.sizes])
    median = float(np.median(short))
    usual = whole(2 * own if small else taken["image_size"])
    image_size = max(min(usual, whole(1.5 * median)), min(usual, whole(own)))
    crop = min(whole(own) if small else usual, image_size)
    stride = max(crop * recipe.stride[0] // recipe.stride[1], 1)
    resized = (
        f"Short side to which pictures are resized. That of the {len(short)} pictures that were looked at is "
        f"{short.min()} to {short.max()}, median {median:g}."
    )
    seen = f"{patch} pixels are a patch of this CLIP"
    usual_reason = "twice the size it was pretrained with" if small else "the papers' size"
    reason = f"{resized} This is {usual_reason}, in whole patches ({seen})."
    if image_size < usual:
        reason = (
            f"{resized} It would be {usual}, {usual_reason}, but no picture gains by being enlarged much: at most 1.5 "
            f"times the median, in whole patches ({seen}), and not below the CLIP's own {own} pixels."
        )
    elif median >= 2 * image_size:
        reason += f" For small things in these large pictures, try {whole(2 * image_size)}; crops and windows stay."
    windows = math.ceil(math.ceil(crop / patch) / taken.get("decoder_window_size", 1)) ** 2
    numbers = range(taken["decoder_attention_heads"], 0, -1)
    heads = next(number for number in numbers if clip.projection_dim % number == 0)
    first = max(layers - 2, 0) if small else 2 * layers // 3 - 1
    fits = f"Divides the {clip.projection_dim} dimensions of this CLIP."
    sizes: dict[str, tuple[Any, str]] = {
        "image_size": (image_size, reason),
        "crop_size": (crop, f"Side of training crops: {-(-crop // patch)}x{-(-crop // patch)} patches."),
        "window_size": (crop, "Side of the sliding windows in evaluation: that of the crops."),
        "window_stride": (stride, f"{recipe.stride[0]}/{recipe.stride[1]} of the windows, {recipe.schedule}."),
        "decoder_attention_heads": (heads, f"Heads of the decode head. {fits}"),
        "out_indices": (
            [first, layers - 1],
            f"Layers of the vision tower that the decode head reads, of {layers} counted from 0: the depth of LDVC's.",
        ),
    }
    if "decoder_top_k" in taken:
        top = max(min(taken["decoder_top_k"], windows // 4), 1)
        sizes["decoder_top_k"] = top, f"Windows that each attends to, of the {windows} of a crop."
    if "decoder_low_frequency_heads" in taken:
        low = max(heads - 1, 1)
        sizes["decoder_low_frequency_heads"] = low, "All heads but one see the means of windows, as in the paper."
    if small and "decoder_ffn_dim" in taken:
        sizes["decoder_ffn_dim"] = 4 * clip.projection_dim, "Four times the dimensions of this CLIP, as is usual."
    return sizes


def _schedule(facts: Facts, recipe: Recipe, taken: Mapping[str, Any], output_dir: str) -> dict[str, tuple[Any, str]]:
    """Steps, by the number of pictures."""
    number = facts.sizes[choose_splits(facts.sizes)[0]]
    batch = min(taken["total_train_batch_size"], number)
    least, most = recipe.steps
    steps = min(max(math.ceil(recipe.epochs * number / batch / 100) * 100, least), most)
    every = steps // 10
    few = f" There are only {number} pictures." if batch < taken["total_train_batch_size"] else ""
    return {
        "output_dir": (output_dir, "Adapter, figures and samples. Each training needs a folder of its own."),
        "max_steps": (
            steps,
            f"{recipe.epochs} times {number} pictures in batches of {batch}, {recipe.schedule}, in whole hundreds, "
            f"but at least {least} and at most {most}.",
        ),
        "total_train_batch_size": (
            batch,
            f"Pictures per step over all processes.{few} If they do not fit into memory: gradient_accumulation_steps.",
        ),
        "warmup_steps": (round(recipe.warmup * steps), f"{100 * recipe.warmup:g} % of the steps, {recipe.schedule}."),
        "logging_steps": (min(taken["logging_steps"], max(steps // 50, 1)), "Often enough for a curve."),
        "eval_steps": (every, "Ten evaluations, each of which draws samples and curves."),
        "save_steps": (every, "At most this many steps are lost when the training is interrupted."),
        "report_to": ("none", "Curves are drawn anyway; tensorboard or wandb log more."),
    }


def _seen_offset(facts: Facts, recipe: Recipe) -> tuple[float, str]:
    meaning = "Subtracted from the scores of seen classes in evaluation"
    if not facts.unseen:
        return 0.0, f"{meaning}. Nothing, because no class is unseen here."
    if recipe is _SMALL:
        return 0.0, f"{meaning}. Nothing, as for the embedded CLIP; the papers subtract 0.1."
    return 0.1, f"{meaning}, as in the papers."


_REASONS = {
    "num_prompt_tokens": "Prompts in each layer of the vision tower, the method's usual number.",
    "prompt_templates": "What CLIP reads: the class name replaces {}.",
    "text_prompts": "LDVC also trains prompts in the text tower, in place of the template's words.",
    "text_prompt_init": "They start as the words that they replace.",
    "spectral_prompt": "SPT-SEG adds a filter of frequencies to the patches.",
    "spectral_layers": "At the input of these layers, as in the paper.",
    "decode_head_type": "The decode head of the method.",
    "decode_head_init": "How the decode head starts: identity learns in hundreds of steps, but not every head has it.",
    "descriptor": "How the decode head compares names with the picture, as in ZegCLIP.",
    "num_decoder_layers": "Layers of the decode head, as in the paper.",
    "decoder_attention_heads": "Heads of the decode head.",
    "decoder_ffn_dim": "Width of the decode head's feed-forward layers.",
    "decoder_window_size": "Side of the decode head's windows, in patches.",
    "decoder_low_frequency_heads": "Heads that see low frequencies.",
    "decoder_top_k": "Windows that each window attends to.",
    "out_indices": "Layers of the vision tower that the decode head reads.",
    "image_size": "Short side to which pictures are resized.",
    "long_side": "Limit of the long side, for panoramas.",
    "scale_range": "Training resizes pictures by a random factor between these, the papers' ones; empty: it does not.",
    "crop_size": "Side of training crops.",
    "max_category_share": "A crop with a larger share of one class is drawn again; 1: never.",
    "flip_probability": "Half of the crops are mirrored. 0 where left and right matter.",
    "photometric_distortion": "Random brightness and colours in training. Off for drawings, or if colour decides.",
    "window_size": "Side of the sliding windows in evaluation.",
    "window_stride": "Stride of these windows.",
    "focal_weight": "Weight of the focal loss, as in the papers.",
    "dice_weight": "Weight of the dice loss, as in the method's paper.",
    "ssim_weight": "Weight of the structural similarity loss, as in the method's paper.",
    "ssim_of_probabilities": "This loss compares logits, as the authors' code does.",
    "ignored_pixels_as_negatives": "Ignored pixels count as negatives of every class, as in the official code.",
    "output_dir": "Folder of the training.",
    "max_steps": "Steps.",
    "total_train_batch_size": "Pictures per step.",
    "learning_rate": "The method's usual peak. Lower it if the loss jumps.",
    "weight_decay": "The papers' value.",
    "warmup_steps": "Steps in which the learning rate rises.",
    "lr_scheduler_type": "The papers' schedule.",
    "decode_head_lr_multiplier": "Learning rate of the decode head relative to that of the prompts.",
    "max_grad_norm": "0: gradients are not clipped, as in the papers.",
    "seen_offset": "Subtracted from the scores of seen classes.",
    "seed": "Of the decode head, the prompts and the crops: the same seed repeats the training.",
    "dataloader_num_workers": "Processes that read pictures; at most as many as there are CPU cores.",
    "logging_steps": "How often losses are logged.",
    "eval_strategy": "Evaluations during the training are counted in steps.",
    "eval_steps": "Steps between them.",
    "save_strategy": "So are checkpoints, from which the same command resumes.",
    "save_steps": "Steps between checkpoints.",
    "per_device_eval_batch_size": "Pictures at once in evaluation; lower it if memory is short.",
    "report_to": "Where figures are logged.",
}
"""Of the fields that configurations of this package have; what depends on the data replaces them."""


def to_yaml(value: Any) -> str:
    """Write a value on one line, so that YAML reads it back: text that looks like something else in quotes."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(to_yaml, value))}]"
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    # In a list, where fewer letters are allowed without quotes.
    text = yaml.safe_dump([value], default_flow_style=True, default_style=style, allow_unicode=True, width=math.inf)
    return text.strip()[1:-1]


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, width=108, break_long_words=False, break_on_hyphens=False)]


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(to_yaml, names[:_SHOWN])) + more


def _one_line(text: str) -> str:
    """Return a path as it can stand in a comment."""
    return text if text.isprintable() else to_yaml(text)
