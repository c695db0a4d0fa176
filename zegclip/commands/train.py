"""
Train a zero-shot segmentation adapter: `python train.py [CONFIG.yaml] [--field value ...]`.

Also `accelerate launch train.py ...` or `torchrun ... train.py ...`. Without a configuration it trains on the
generated picture world, offline. The same command goes on where an interrupted run has stopped.
"""

import math
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_model
from transformers import TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from zegclip import DEFAULT_MODEL
from zegclip.loading import check_model_path, load_adapter_into, load_base, load_processor
from zegclip.modeling.stored_adapter import StoredAdapter
from zegclip.processing.class_split import ClassSplit, Setting
from zegclip.processing.processing_zegclip import find_unknown_words
from zegclip.sharing.cards import write_card
from zegclip.sharing.model_facts import record_evaluation, record_training
from zegclip.training.arguments import (
    DEFAULT_CONFIG,
    DataArguments,
    ModelArguments,
    ZegClipTrainingArguments,
    parse_arguments,
)
from zegclip.training.data import load_data, make_augmentation
from zegclip.training.pictures import SKIPPED_FILE, EvaluationPictures, TrainingPictures, read_skipped
from zegclip.training.run_folder import (
    alone_in,
    claim_output_dir,
    describe_contents,
    describe_run,
    is_finished,
    refuse_other_run,
    stages_of,
)
from zegclip.training.survey import remark_on_data
from zegclip.training.tables import class_table, write_class_table
from zegclip.training.trainer import ZegClipTrainer, is_whole


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train each stage, save its adapter in its output folder, and return the figures of the last."""
    logging.disable_progress_bar()  # for the weights of a model
    # PEFT asks transformers under an old name.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    arguments = parse_arguments(argv, DEFAULT_CONFIG)
    if arguments[1].setting == "cross_dataset":
        raise ValueError("setting cross_dataset is for eval.py: train on one data set and evaluate on another.")
    *earlier, last = stages_of(*arguments)
    if earlier and last[2].resume_from_checkpoint:
        raise ValueError(
            "resume_from_checkpoint is of one stage, but this run has two: leave it out, they resume anyway."
        )
    with alone_in(last[2].output_dir):
        for stage in earlier:
            say(f"First the {stage[1].setting} stage, {stage[2].max_steps} steps, in {stage[2].output_dir}.")
            run_stage(*stage, evaluate=False)
            say(f"Now the {last[1].setting} stage, {last[2].max_steps} steps, in {last[2].output_dir}.")
        metrics = run_stage(*last, evaluate=True)
    words = list(sys.argv[1:] if argv is None else argv)
    config = words[:1] if words and not words[0].startswith("-") else []
    folder = str(last[2].output_dir)
    measure = shlex.join(["python", "eval.py", *config, "--model", folder, "--output_dir", folder])
    segment = shlex.join(["zegclip", "segment", "PICTURE", "--labels", "cat, tree", "--model", folder])
    say(f"Next: {measure} (with the same data), or {segment}")
    return metrics


def run_stage(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: ZegClipTrainingArguments,
    *,
    evaluate: bool,
) -> dict[str, float]:
    """Train unless finished, going on from the last checkpoint if there is one, and evaluate if asked."""
    record = describe_run(model_args, data_args, training_args)
    refuse_other_run(training_args.output_dir, record)
    set_seed(training_args.seed)
    source = check_model_path(model_args.model or DEFAULT_MODEL)
    # Before the model: a missing folder is known at once, a missing model perhaps only after asking the Hub.
    data, split = load_data(data_args, training=True)
    record["contents"] = describe_contents(model_args, data_args, data["train"], split)
    claim_output_dir(training_args.output_dir, record)
    finished = training_args.output_dir if is_finished(training_args.output_dir) else None
    if finished and not evaluate:
        return {}
    if not finished:
        remark_on_data(data, split, data_args, training_args.dataloader_num_workers)
    processor = load_processor(source, model_args.prompt_templates, **data_args.image_processor_fields())
    setting = cast(Setting, data_args.setting)
    augmentation = make_augmentation(data_args, processor, split)
    model, names = build_model(model_args, setting, split, processor, augmentation.crop_size)

    output_dir = Path(training_args.output_dir)
    skipped_file = output_dir / SKIPPED_FILE if data_args.skip_bad_samples else None
    image_processor = processor.image_processor
    trainer = ZegClipTrainer(
        model=model,
        args=training_args,
        train_dataset=TrainingPictures(
            data["train"],
            split,
            setting,
            augmentation,
            image_processor,
            training_args.seed,
            skipped_file,
        ),
        eval_dataset=EvaluationPictures(data["validation"], split, image_processor, skipped_file),
        processing_class=processor,
        names=names,
        split=split,
        setting=setting,
    )
    given = training_args.resume_from_checkpoint
    if given and Path(given).resolve().parent != output_dir.resolve():
        refuse_other_run(Path(given).parent, record)
    checkpoint = given or get_last_checkpoint(str(output_dir))
    if checkpoint is not None and not Path(checkpoint).is_dir():
        raise ValueError(f"{checkpoint}: there is no such checkpoint folder.")
    if not finished and checkpoint is not None and is_finished(checkpoint):
        # It ended between its last step and its end; the Trainer would add a step.
        finished = checkpoint
    if finished:
        say(f"{finished}: the training has finished before.")
        load_adapter_into(model, finished)
        trainer.state = TrainerState.load_from_json(str(Path(finished) / TRAINER_STATE_NAME))
    else:
        if checkpoint is not None and not training_args.resume_from_checkpoint and not is_whole(checkpoint):
            say(f"{checkpoint} holds no whole state of a training (save_only_model): it starts anew.")
            checkpoint = None
        say(f"Resuming from {checkpoint}." if checkpoint else trained_parameters(model))
        trainer.train(resume_from_checkpoint=checkpoint)
    if finished != training_args.output_dir:
        trainer.save_model(_internal_call=True)  # which does not push
        if training_args.should_save:
            # With it, Auto classes and pipeline open the adapter's folder, whatever its base is.
            model.config.save_pretrained(training_args.output_dir)
            record_training(output_dir, training_args.device, training_args.world_size)
        trainer.save_state()
        if training_args.should_save:
            write_card(output_dir)
    metrics: dict[str, float] = {}
    if evaluate and trainer.is_fsdp_enabled:
        say(f"Evaluate what FSDP has trained with eval.py --model {output_dir}.")
    elif evaluate:
        evaluated = [entry for entry in trainer.state.log_history if "eval_pacc" in entry]
        current = trainer.class_counts is not None and evaluated[-1]["step"] == trainer.state.global_step
        # The best model may be that of an earlier step.
        if current and not training_args.load_best_model_at_end:
            metrics = evaluated[-1]
        else:
            metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics, combined=False)  # with others' it would read a file that may be torn
        if trainer.is_world_process_zero():
            report(trainer, output_dir)
            record_evaluation(
                output_dir,
                {"model, papers' protocol": trainer.summary},
                script="train.py",
                dataset=data_args.dataset,
                split=str(data_args.eval_split),
                setting=data_args.setting,
                pictures=len(data["validation"]),
                seen_offset=trainer.protocol.seen_offset,
                window=(trainer.protocol.window_size, trainer.protocol.window_stride),
            )
            print(f"The model card is {write_card(output_dir)}.")
    if evaluate and training_args.push_to_hub:
        say(f"Pushed: {trainer.push_to_hub()}")
    skipped = read_skipped(output_dir / SKIPPED_FILE)
    if skipped:
        say(f"Skipped and listed in {output_dir / SKIPPED_FILE}: {len(skipped)}; the first: {skipped[0]}")
    return metrics


def build_model(
    model_args: ModelArguments, setting: Setting, split: ClassSplit, processor: Any, crop_size: int
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a CLIP with a fresh or given adapter, ready to train, and all class names as the Trainer takes them."""
    overrides = model_args.config_overrides()
    # The classes whose masks were trained on.
    overrides["seen_class_names"] = list(split.names) if setting == "fully_supervised" else split.seen_names
    overrides["semantic_loss_ignore_index"] = split.ignore_index
    model = load_base(model_args.model or DEFAULT_MODEL, overrides)
    model.config.id2label = dict(enumerate(split.names))
    model.config.label2id = {name: index for index, name in enumerate(split.names)}
    model.config.prompt_templates = processor.prompt_templates
    unknown = find_unknown_words(split.names, model.config.vocabulary, processor.prompt_templates)
    if unknown is not None:
        say(f"Warning: {unknown} Give another model with --model.")
    names = dict(processor(text=list(split.names), return_tensors="pt"))
    if model_args.text_prompts is None:
        with torch.no_grad():
            names = {"class_embeds": model.eval().get_class_embeds(**names)}
    # A CLIP from the Hub is configured for smaller pictures than the crops.
    grid_size = math.ceil(crop_size / model.config.clip_config.vision_config.patch_size)
    text_prompt_ids = None if model_args.text_prompts is None else processor.text_prompt_ids()
    model = get_peft_model(model, model_args.prompt_config(grid_size, text_prompt_ids))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"There is nothing to train: decode_head_type {model_args.decode_head_type} has no weights, and "
            "there are no prompts."
        )
    if model_args.init_adapter is not None:
        load_adapter_into(model, model_args.init_adapter)
    elif model_args.model is not None and StoredAdapter.find(model_args.model) is not None:
        say(
            f"{model_args.model} holds an adapter, which is left out: the training starts afresh on its base. "
            f"--init_adapter {model_args.model} goes on from it."
        )
    return model, names


def say(sentence: str) -> None:
    """Print it once, however many processes there are."""
    PartialState().print(sentence)


def trained_parameters(model: PeftModel) -> str:
    """Say how much of a model is trained."""
    trained, total = model.get_nb_trainable_parameters()
    return f"Training {trained:,} of {total:,} parameters."


def report(trainer: ZegClipTrainer, output_dir: Path) -> None:
    """Print the last evaluation's table of classes and save it as text, CSV and Markdown."""
    counts = trainer.class_counts
    assert counts is not None
    table = class_table(counts, trainer.split)
    write_class_table(table, trainer.summary, output_dir)
    print((output_dir / "per_class.txt").read_text(encoding="utf-8"))
