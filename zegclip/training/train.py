"""Training: from the arguments to the adapter, its figures and its model card in the output folder."""

import math
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from datasets import DatasetDict
from peft import get_peft_model
from transformers import TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from zegclip import DEFAULT_MODEL
from zegclip.errors import UsageError, as_usage_errors
from zegclip.loading import (
    check_adapter_path,
    config_of_base,
    load_adapter_into,
    load_base,
    load_processor,
    read_base_config,
)
from zegclip.modeling.stored_adapter import StoredAdapter
from zegclip.processing.class_split import ClassSplit, Setting
from zegclip.processing.names import UnknownWordsWarning, find_unknown_words, fold_name
from zegclip.sharing.cards import write_card
from zegclip.sharing.model_facts import record_evaluation, record_training
from zegclip.training.arguments import DEFAULT_CONFIG, DataArguments, ModelArguments, parse_arguments
from zegclip.training.checkpoints import is_whole
from zegclip.training.data import load_data, make_augmentation
from zegclip.training.pictures import SKIPPED_FILE, EvaluationPictures, TrainingPictures, print_skipped
from zegclip.training.run_folder import (
    claim_output_dir,
    describe_contents,
    describe_run,
    is_finished,
    lock_output_dir,
    refuse_other_run,
    stages_of,
)
from zegclip.training.survey import remark_on_data
from zegclip.training.tables import class_table, write_class_table
from zegclip.training.trainer import ZegClipTrainer
from zegclip.training.training_arguments import ZegClipTrainingArguments


def train(argv: Sequence[str] | None = None) -> dict[str, float]:
    """
    Train each stage, save its adapter in its output folder, and evaluate the last.

    Args:
        argv: `[NAME_OR_YAML] [--field value ...]`, by default the process's. Without a configuration it trains on the
            generated picture world, offline.

    Returns:
        The metrics of the last stage.

    Raises:
        UsageError, InputError, ModelError: If the arguments, the data or the output folder do not fit.
    """
    # PEFT asks transformers by an old name.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parse_arguments(words, DEFAULT_CONFIG, "zegclip train")
    if arguments[1].setting == "cross_dataset":
        raise UsageError(
            "setting: cross_dataset is for an evaluation alone: train on one data set and evaluate on another."
        )
    *earlier, last = stages_of(*arguments)
    if earlier and last[2].resume_from_checkpoint:
        raise UsageError(
            "resume_from_checkpoint applies to one stage, but this run has two: leave it out, they resume anyway."
        )
    metrics: dict[str, float] = {}
    with lock_output_dir(last[2].output_dir):
        for stage in (*earlier, last):
            _, data_args, training_args = stage
            if earlier:
                steps, folder = training_args.max_steps, training_args.output_dir
                PartialState().print(f"Stage {data_args.setting}: {steps} steps, in {folder}.")
            metrics = run_stage(*stage, evaluate=stage is last)
    _print_next_commands(words, str(last[2].output_dir))
    return metrics


def _print_next_commands(words: Sequence[str], folder: str) -> None:
    """Print how to evaluate and use what has been trained, with commands that work in any folder."""
    config = words[:1] if words and not words[0].startswith("-") else []
    config = [os.path.abspath(name) if os.path.isfile(name) else name for name in config]
    folder = os.path.abspath(folder)
    zegclip = ["zegclip"] if shutil.which("zegclip") else [sys.executable, "-m", "zegclip"]
    evaluate = shlex.join([*zegclip, "eval", *config, "--model", folder, "--output_dir", folder])
    segment = shlex.join([*zegclip, "segment", "PICTURE", "--labels", "NAMES", "--model", folder])
    PartialState().print(f"Next: {evaluate} (with the same data), or {segment}")


def run_stage(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: ZegClipTrainingArguments,
    *,
    evaluate: bool,
) -> dict[str, float]:
    """Train unless finished, from the last checkpoint if there is one, and evaluate if asked; return the metrics."""
    output_dir = Path(training_args.output_dir)
    record = describe_run(model_args, data_args, training_args)
    refuse_other_run(output_dir, record)
    with as_usage_errors():
        set_seed(training_args.seed)
    # What can be said about the models without their weights comes before the data, which may take minutes to draw.
    base = read_base_config(model_args.model or DEFAULT_MODEL)
    config_of_base(base, model_args.config_overrides())
    if model_args.init_adapter is not None:
        check_adapter_path(model_args.init_adapter)
    data, split = load_data(data_args, training=True)
    evaluated = data["validation"] if training_args.load_best_model_at_end else None
    record["contents"] = describe_contents(model_args, data_args, data["train"], split, evaluated)
    claim_output_dir(output_dir, record)
    finished = is_finished(output_dir)
    if finished and not evaluate:
        return {}
    if not finished:
        remark_on_data(data, split, data_args, training_args.dataloader_num_workers)
    trainer = build_trainer(model_args, data_args, training_args, data, split)
    checkpoint = find_checkpoint(training_args, record)
    if finished:
        load_finished(trainer, output_dir)
    else:
        if checkpoint is not None and is_finished(checkpoint):
            # It was interrupted between its last step and its end; the Trainer would add a step.
            load_finished(trainer, checkpoint)
            load_best(trainer, checkpoint)
        else:
            train_from(trainer, checkpoint)
        save_run(trainer)
    metrics = evaluate_run(trainer, data_args) if evaluate else {}
    if evaluate and training_args.push_to_hub:
        PartialState().print(f"Pushed: {trainer.push_to_hub()}")
    print_skipped(output_dir / SKIPPED_FILE)
    return metrics


def build_trainer(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: ZegClipTrainingArguments,
    data: DatasetDict,
    split: ClassSplit,
) -> ZegClipTrainer:
    """Build model, augmentation and Trainer; `data` has the splits `train` and `validation`."""
    source = model_args.model or DEFAULT_MODEL
    processor = load_processor(
        source, model_args.prompt_templates, for_training=True, **data_args.image_processor_fields()
    )
    setting = cast(Setting, data_args.setting)
    augmentation = make_augmentation(data_args, processor, split)
    model, names = build_model(model_args, setting, split, processor, augmentation.crop_size)
    skipped_file = Path(training_args.output_dir) / SKIPPED_FILE if data_args.skip_bad_samples else None
    image_processor = processor.image_processor
    return ZegClipTrainer(
        model=model,
        args=training_args,
        train_dataset=TrainingPictures(
            data["train"], split, setting, augmentation, image_processor, training_args.seed, skipped_file
        ),
        eval_dataset=EvaluationPictures(data["validation"], split, image_processor, skipped_file),
        processing_class=processor,
        names=names,
        split=split,
        setting=setting,
    )


def build_model(
    model_args: ModelArguments, setting: Setting, split: ClassSplit, processor: Any, crop_size: int
) -> tuple[Any, dict[str, Any]]:
    """Return a CLIP with a fresh or given adapter, ready to train, and all class names as the Trainer takes them."""
    overrides = model_args.config_overrides()
    # The classes whose masks were trained on, and their other names.
    ids = range(len(split.names)) if setting == "fully_supervised" else split.seen_ids
    overrides["seen_class_names"] = list(
        dict.fromkeys([*(split.names[index] for index in ids), *split.all_names(ids)])
    )
    overrides["semantic_loss_ignore_index"] = split.ignore_index
    model = load_base(model_args.model or DEFAULT_MODEL, overrides)
    model.config.prompt_templates = list(processor.prompt_templates)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownWordsWarning)  # printed below, once for all processes
        model.set_class_names(split.names, processor)
    unknown = find_unknown_words(split.all_names(), model.config.vocabulary, processor.prompt_templates)
    if unknown is not None:
        PartialState().print(f"Warning: {unknown} Give another model with --model.")
    names = dict(processor(text=split.nested_names(), return_tensors="pt"))
    if model_args.text_prompts is None:
        with torch.no_grad():
            embeds = {"class_embeds": model.eval().get_class_embeds(**names)}
        names = embeds | {key: value for key, value in names.items() if key == "class_of_name"}
    # A CLIP from the Hub is configured for smaller pictures than the crops.
    grid_size = math.ceil(crop_size / model.config.clip_config.vision_config.patch_size)
    text_prompt_ids = None if model_args.text_prompts is None else processor.text_prompt_ids()
    if model.config.score_function == "softmax":
        unsuited = [name for name in ("focal_weight", "dice_weight", "ssim_weight") if getattr(model.config, name)]
        if unsuited or setting == "transductive":
            raise UsageError(
                f"decode_head_type {model.config.decode_head_type} compares names, so it is trained with "
                "cross_entropy_weight alone, not transductively: set the weights of other losses to 0."
            )
    model = get_peft_model(model, model_args.prompt_config(grid_size, text_prompt_ids))
    if model_args.dense_attention not in (None, "plain") and not model_args.has_dense_attention(model):
        raise UsageError(
            f"dense_attention: {model_args.dense_attention} has no effect on a vision tower with prompts: give "
            "num_prompt_tokens 0."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(
            f"There is nothing to train: decode_head_type {model_args.decode_head_type} has no weights, and there are "
            "no prompts."
        )
    if model_args.init_adapter is not None:
        stored = load_adapter_into(model, model_args.init_adapter)
        _take_over_seen_names(
            model.config, stored.get("seen_class_names") or (), model_args.init_adapter, split, setting
        )
    elif model_args.model is not None and StoredAdapter.find(model_args.model) is not None:
        PartialState().print(
            f"{model_args.model} has an adapter, which is left out: the training starts with a new one on its base. "
            f"--init_adapter {model_args.model} continues from it."
        )
    return model, names


def _take_over_seen_names(
    config: Any, trained_on: Sequence[str], init_adapter: str, split: ClassSplit, setting: Setting
) -> None:
    """Add what an initial adapter was trained on to what the model will be; warn of unseen classes among it."""
    known = set(map(fold_name, config.seen_class_names))
    config.seen_class_names += [name for name in trained_on if fold_name(name) not in known]
    leaked = split.classes_among(split.unseen_ids, trained_on)
    if leaked and setting != "fully_supervised":
        more = f" and {len(leaked) - 1} more" if len(leaked) > 1 else ""
        PartialState().print(
            f"Warning: {init_adapter} was trained on masks of {leaked[0]!r}{more}, which count as unseen here."
        )


def find_checkpoint(training_args: ZegClipTrainingArguments, record: dict[str, Any]) -> str | None:
    """
    Return the checkpoint to resume from: the given one, or else the last in the output folder.

    Raises:
        UsageError: If the given one does not exist, or is of another run than `record` describes.
    """
    output_dir = Path(training_args.output_dir)
    given = training_args.resume_from_checkpoint
    if given and Path(given).resolve().parent != output_dir.resolve():
        refuse_other_run(Path(given).parent, record)
    checkpoint = given or get_last_checkpoint(str(output_dir))
    if checkpoint is not None and not Path(checkpoint).is_dir():
        raise UsageError(f"{checkpoint}: there is no such checkpoint folder.")
    return checkpoint


def load_finished(trainer: ZegClipTrainer, folder: str | Path) -> None:
    """Load the weights and state of a finished training."""
    PartialState().print(f"{folder}: the training has finished before.")
    load_adapter_into(trainer.model, folder)
    trainer.state = TrainerState.load_from_json(str(Path(folder) / TRAINER_STATE_NAME))


def load_best(trainer: ZegClipTrainer, checkpoint: str) -> None:
    """Load the best checkpoint beside the last one, as the Trainer does at its end if `load_best_model_at_end`."""
    best = trainer.state.best_global_step
    if trainer.args.load_best_model_at_end and best is not None:
        load_adapter_into(trainer.model, Path(checkpoint).with_name(f"{PREFIX_CHECKPOINT_DIR}-{best}"))


def train_from(trainer: ZegClipTrainer, checkpoint: str | None) -> None:
    """Train, from a checkpoint or from the start."""
    if checkpoint is not None and not trainer.args.resume_from_checkpoint and not is_whole(checkpoint):
        PartialState().print(f"{checkpoint} lacks part of the training's state (save_only_model): it starts anew.")
        checkpoint = None
    model: Any = trainer.model
    trained, total = model.get_nb_trainable_parameters()
    PartialState().print(
        f"Resuming from {checkpoint}." if checkpoint else f"Training {trained:,} of {total:,} parameters."
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is None:
        metric = trainer.args.metric_for_best_model
        PartialState().print(f"Warning: no evaluation has given {metric}: the last weights are kept.")


def save_run(trainer: ZegClipTrainer) -> None:
    """Save adapter, configuration, card and, after everything else, the state that marks the run as finished."""
    args = trainer.args
    trainer.save_model(_internal_call=True)  # which does not push
    if args.should_save:
        # With it, Auto classes and the pipeline open the adapter's folder, whatever its base is.
        trainer.model.config.save_pretrained(args.output_dir)
        record_training(Path(args.output_dir), args.device, args.world_size)
    trainer.save_state()
    if args.should_save:
        write_card(Path(args.output_dir))


def evaluate_run(trainer: ZegClipTrainer, data_args: DataArguments) -> dict[str, float]:
    """Evaluate what was trained, unless its last evaluation did; write figures, tables and card."""
    output_dir = Path(trainer.args.output_dir)
    if trainer.is_fsdp_enabled:
        PartialState().print(f"Evaluate what FSDP has trained with eval.py --model {output_dir}.")
        return {}
    evaluated = [entry for entry in trainer.state.log_history if "eval_pacc" in entry]
    current = trainer.class_counts is not None and evaluated[-1]["step"] == trainer.state.global_step
    # The best model may be that of an earlier step.
    reuse = current and not trainer.args.load_best_model_at_end
    metrics = evaluated[-1] if reuse else trainer.evaluate()
    # Not combined: the Trainer would read the other metrics from a file that may be incomplete.
    trainer.save_metrics("eval", metrics, combined=False)
    if trainer.is_world_process_zero():
        assert trainer.class_counts is not None
        write_class_table(class_table(trainer.class_counts, trainer.split), trainer.summary, output_dir)
        print((output_dir / "per_class.txt").read_text(encoding="utf-8"))
        record_evaluation(
            output_dir,
            {"model, papers' protocol": trainer.summary},
            script="train.py",
            dataset=data_args.dataset,
            split=str(data_args.eval_split),
            setting=data_args.setting,
            pictures=trainer.num_counted,
            classes=(len(trainer.split.seen_ids), len(trainer.split.unseen_ids)),
            seen_offset=trainer.protocol.seen_offset,
            window=(trainer.protocol.window_size, trainer.protocol.window_stride),
            unseen_trained_on=len(
                trainer.split.classes_among(trainer.split.unseen_ids, trainer.model.config.seen_class_names)
            ),
        )
        print(f"The model card is {write_card(output_dir)}.")
    return metrics
