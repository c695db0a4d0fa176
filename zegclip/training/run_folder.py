"""The output folder of one training run, and the settings that determine its weights."""

import errno
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from filelock import FileLock, Timeout
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_NAME

from zegclip import DEFAULT_MODEL
from zegclip.errors import UsageError
from zegclip.files import RECORD_NAME, read_json, write_json
from zegclip.identity import content_of_adapter, content_of_clip
from zegclip.processing.class_split import ClassSplit
from zegclip.training.arguments import NAMED_DATASETS, DataArguments, ModelArguments
from zegclip.training.pictures import content_of_rows
from zegclip.training.training_arguments import ZegClipTrainingArguments

LOCK_NAME = "training.lock"
"""Locked by a training in its output folder; the system releases the lock, however the training ends."""
_TRAINING_FIELDS = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "data_seed", "decay_norms_and_biases", "decode_head_lr_multiplier",
    "learning_rate", "lr_scheduler_kwargs", "lr_scheduler_type", "max_grad_norm", "max_steps", "num_train_epochs",
    "optim", "optim_args", "schedule_steps", "seed", "warmup_steps", "weight_decay",
)  # fmt: skip
_EVALUATION_FIELDS = (
    "background_threshold", "baseline", "eval_split", "num_eval_pictures", "refine", "results_dir",
    "save_predictions", "window_size", "window_stride",
)  # fmt: skip
_CHOICE_FIELDS = (
    "eval_steps", "eval_strategy", "greater_is_better", "metric_for_best_model", "save_steps", "seen_offset",
)  # fmt: skip
_CONTENTS = {
    "model": "model",
    "init_adapter": "init_adapter",
    "dataset": "pictures",
    "data_dir": "pictures",
    "classes_file": "class_names",
}
"""For each setting that is a path, the item of a record's `contents` that describes what is there."""


def describe_run(
    model_args: ModelArguments, data_args: DataArguments, training_args: ZegClipTrainingArguments
) -> dict[str, Any]:
    """
    Return the settings that determine the weights of a run, as plain JSON values.

    What is at the paths among them is described by [`describe_contents`].
    """
    record = asdict(model_args) | asdict(data_args)
    for name in _CONTENTS:
        if name != "dataset" or data_args.dataset not in NAMED_DATASETS:
            record[name] = _normalise_path(record[name], str(training_args.output_dir))
    # The window size is also the default of the crop size.
    record["crop_size"] = data_args.crop_size or data_args.window_size
    training = training_args.to_dict()
    record |= {name: training[name] for name in (*_TRAINING_FIELDS, "load_best_model_at_end")}
    left_out = set(_EVALUATION_FIELDS)
    if training_args.load_best_model_at_end:
        # Evaluations determine which step's weights are kept.
        left_out -= {"eval_split", "num_eval_pictures", "window_size", "window_stride"}
        record |= {name: training[name] for name in _CHOICE_FIELDS}
    for name in left_out:
        del record[name]
    # It may come from accelerate's launch configuration.
    record["mixed_precision"] = training_args.mixed_precision
    record["total_train_batch_size"] = (
        training_args.per_device_train_batch_size
        * training_args.world_size
        * training_args.gradient_accumulation_steps
    )
    return json.loads(json.dumps(record))


def _normalise_path(path: str | None, output_dir: str) -> str | None:
    """Return an existing path resolved, or relative to the output folder if it is inside, which may be moved."""
    if path is None or not os.path.exists(path):
        return path
    resolved, start = Path(path).resolve(), Path(output_dir).resolve()
    return str(resolved.relative_to(start) if resolved.is_relative_to(start) else resolved)


def describe_contents(
    model_args: ModelArguments,
    data_args: DataArguments,
    data: Dataset,
    split: ClassSplit,
    evaluated: Dataset | None = None,
) -> dict[str, Any]:
    """
    Return what is at the paths of a run's settings, as far as it determines the weights, as plain JSON values.

    Args:
        model_args: Their model and adapter; the model has been checked.
        data_args: Their data set.
        data: Its training pictures.
        split: Its classes.
        evaluated: Its pictures for evaluations, if these determine which step's weights are kept.
    """
    adapter = model_args.init_adapter
    contents = {
        "model": content_of_clip(model_args.model or str(DEFAULT_MODEL)),
        "init_adapter": None if adapter is None else content_of_adapter(adapter),
        # Drawn pictures are determined by the settings, and another version of Pillow may encode them otherwise.
        "pictures": None if data_args.dataset == "picture_world" else content_of_rows(data),
        "class_names": split.nested_names() if split.names_of else split.names,
        "seen_class_ids": split.seen_ids,
        "mask_values": split.mask_values,
        "ignored_mask_values": split.ignored_values,
    }
    if evaluated is not None and data_args.dataset != "picture_world":
        contents["evaluation_pictures"] = content_of_rows(evaluated)
    return json.loads(json.dumps(contents))


def refuse_other_run(output_dir: str | os.PathLike, record: dict[str, Any]) -> None:
    """
    Check that an output folder with weights belongs to this run, as far as `record` says; nothing is written.

    Args:
        output_dir: The folder.
        record: From [`describe_run`], with `contents` from [`describe_contents`] as soon as they are known.

    Raises:
        UsageError: If it has another run, or a model without a record.
    """
    folder = Path(output_dir)
    if not _holds_weights(folder):
        return
    stored = read_json(folder / RECORD_NAME)
    if not stored:
        raise UsageError(f"{folder} holds a model of another origin: choose another output_dir.")
    # A field that did not exist yet had no effect, like its default.
    before = asdict(ModelArguments()) | asdict(DataArguments()) | {"load_best_model_at_end": False} | stored
    contents = stored.get("contents", {})
    # First what decides which other settings are in a record.
    for name in sorted(record, key=lambda name: name != "load_best_model_at_end"):
        value = record[name]
        # If the content is known, it decides, and the path may differ.
        if name != "contents" and _CONTENTS.get(name) not in contents and before.get(name) != value:
            raise UsageError(
                f"{folder} holds a run with {name} {before.get(name)!r}, but it is {value!r} now: choose another "
                "output_dir, or remove that one."
            )
    for name, value in record.get("contents", {}).items():
        if contents.get(name, value) != value:
            raise UsageError(
                f"{folder} holds a run whose {name.replace('_', ' ')} had another content ({contents[name]!r} then, "
                f"{value!r} now): choose another output_dir, or remove that one. To go on with it all the same, take "
                f"{name!r} out of the contents in {folder / RECORD_NAME}."
            )


def claim_output_dir(output_dir: str | os.PathLike, record: dict[str, Any]) -> None:
    """
    Write the record of a run into its output folder.

    Raises:
        UsageError: As [`refuse_other_run`].
    """
    refuse_other_run(output_dir, record)
    stored = read_json(Path(output_dir) / RECORD_NAME)
    state = PartialState()
    state.wait_for_everyone()
    if stored != record and state.is_main_process:
        write_json(Path(output_dir) / RECORD_NAME, record)
    state.wait_for_everyone()  # From here on the folder is there for every process.


@contextmanager
def lock_output_dir(output_dir: str | os.PathLike) -> Iterator[None]:
    """
    Create an output folder if it is missing, and keep every other training out of it.

    Raises:
        UsageError: If another training is running there.
    """
    if not PartialState().is_main_process:
        yield
        return
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UsageError(f"{folder}: another training is at work there; choose another output_dir.") from error
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        warnings.warn(f"{folder} cannot be locked: make sure that no other training uses it.", stacklevel=3)
    try:
        yield
    finally:
        lock.release()


def _holds_weights(folder: Path) -> bool:
    """Return whether something would be lost: a run without a checkpoint may be changed."""
    if any((folder / name).exists() for name in (ADAPTER_SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_NAME)):
        return True
    return folder.is_dir() and get_last_checkpoint(str(folder)) is not None


def is_finished(output_dir: str | os.PathLike) -> bool:
    """Return whether a run has saved its last state, which it does after everything else of the training."""
    try:
        state = json.loads((Path(output_dir) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        return state["global_step"] >= state["max_steps"] > 0
    except (OSError, ValueError, KeyError):
        return False


def stages_of(
    model_args: ModelArguments, data_args: DataArguments, training_args: ZegClipTrainingArguments
) -> list[tuple[ModelArguments, DataArguments, ZegClipTrainingArguments]]:
    """
    Split a transductive run into its two stages; any other run is one stage.

    The papers train the inductive setting, take its half-way checkpoint, and start self-training from there with a new
    optimiser and schedule (ZegCLIP section 4.1, official configurations). The first stage therefore follows the
    schedule of `max_steps`, stops where the self-training begins, and lies in the folder `inductive` of the output
    folder. With `init_adapter`, such as `checkpoint-10000` of an inductive run, there is the second stage alone.

    Raises:
        UsageError: If no step is left for one of the stages, or epochs are given instead of steps.
    """
    if data_args.setting != "transductive":
        return [(model_args, data_args, training_args)]
    if training_args.max_steps < 2:
        raise UsageError("The transductive setting is counted in steps: give max_steps, for both stages together.")
    second_steps = data_args.self_training_steps or training_args.max_steps // 2
    first_steps = training_args.max_steps - second_steps
    if first_steps < 1 and model_args.init_adapter is None:
        raise UsageError(
            f"self_training_steps {second_steps} leave nothing of max_steps {training_args.max_steps} for the "
            "inductive stage; give fewer, or an init_adapter to start from."
        )
    first_dir = os.path.join(training_args.output_dir, "inductive")
    second = (
        replace(model_args, init_adapter=model_args.init_adapter or first_dir),
        data_args,
        _change(training_args, max_steps=second_steps, schedule_steps=None),
    )
    if model_args.init_adapter is not None:
        return [second]
    schedule_steps = training_args.schedule_steps or training_args.max_steps
    first = (
        model_args,
        replace(data_args, setting="inductive"),
        _change(training_args, output_dir=first_dir, max_steps=first_steps, schedule_steps=schedule_steps),
    )
    return [first, second]


def _change(training_args: ZegClipTrainingArguments, **fields: Any) -> ZegClipTrainingArguments:
    # A type checker that does not read transformers knows none of the fields by name.
    return replace(training_args, **fields)
