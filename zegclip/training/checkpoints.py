"""A Trainer whose checkpoints are complete, finite and of this run, however training ends."""

import errno
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, rotate_checkpoints

from zegclip.errors import MachineError, UsageError, explain, find_worker_death
from zegclip.files import remove_leftovers, writing_to
from zegclip.processing.windows import is_out_of_memory

UNFINISHED_PREFIX = "_unfinished-checkpoint-"
"""Prefix of the names of checkpoints that are being written, or that an interruption left incomplete."""


class CheckpointTrainer(Trainer):
    """Writes checkpoints to a temporary folder and renames it; refuses damaged ones by name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unfinished: Path | None = None
        self.add_callback(_FindBestCheckpoint())
        if self.args.should_save:
            for unfinished in Path(self.args.output_dir).glob(f"{UNFINISHED_PREFIX}*"):
                shutil.rmtree(unfinished)
            remove_leftovers(Path(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _reading(resume_from_checkpoint):
            TrainerState.load_from_json(os.path.join(resume_from_checkpoint, TRAINER_STATE_NAME))
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and not is_whole(checkpoint):
            raise UsageError(
                f"{checkpoint} lacks part of the training's state (save_only_model), so training cannot resume from "
                "it: leave it out, or start from its weights with init_adapter."
            )
        with _reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        name = f"rng_state_{self.args.process_index}.pth" if self.args.world_size > 1 else "rng_state.pth"
        if checkpoint is not None and not Path(checkpoint, name).is_file():
            warnings.warn(
                f"{checkpoint} was saved by another number of processes: this run differs from an undisturbed one.",
                stacklevel=2,
            )
        with _reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def divergence(self, what: str) -> FloatingPointError:
        """Return the error that ends a diverged training, with the last checkpoint's name."""
        last = get_last_checkpoint(self.args.output_dir) if os.path.isdir(self.args.output_dir) else None
        return FloatingPointError(
            f"{what}. "
            + (f"{last} is the last good checkpoint" if last else "There is no checkpoint yet")
            + "; the same settings would come to the same end, so try a lower learning_rate or another precision."
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save as the parent.

        Raises:
            FloatingPointError: If a trained weight is not finite, so that every checkpoint is good to go on from.
        """
        self._check_weights()
        super().save_model(output_dir, _internal_call)

    def _check_weights(self) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not parameter.isfinite().all():
                raise self.divergence(f"After step {self.state.global_step} not all weights are finite ({name})")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save as the parent, each file whole, and without the empty form that PEFT leaves where there is no card."""
        if not self.args.should_save:
            return super()._save(output_dir, state_dict)
        with writing_to(Path(output_dir or self.args.output_dir)) as folder:
            super()._save(str(folder), state_dict)
            (folder / "README.md").unlink(missing_ok=True)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._unfinished or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save a checkpoint, renamed to its final name when every process has written its part."""
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        output_dir = Path(self.args.output_dir)
        self._unfinished = output_dir / f"{UNFINISHED_PREFIX}{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            if str(self.state.best_model_checkpoint).startswith(str(self._unfinished)):
                self.state.best_model_checkpoint = str(output_dir / name)
                if self.args.should_save:
                    self.state.save_to_json(str(self._unfinished / name / TRAINER_STATE_NAME))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                shutil.rmtree(output_dir / name, ignore_errors=True)
                os.replace(self._unfinished / name, output_dir / name)
                self._unfinished.rmdir()
            self.accelerator.wait_for_everyone()
        except (OSError, RuntimeError, SafetensorError) as error:
            if find_worker_death(error) is not None or explain(error) is None:
                raise
            last = get_last_checkpoint(str(output_dir))
            raise MachineError(
                f"{output_dir / name} could not be written ({str(error).splitlines()[0]}): "
                + (f"{last} is intact, and the same command goes on from there." if last else "there is none yet.")
            ) from error
        finally:
            shutil.rmtree(self._unfinished, ignore_errors=True)  # There is none, if all went well.
            self._unfinished = None
        if self.args.should_save:
            rotate_checkpoints(
                str(output_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )


def is_whole(checkpoint: str | os.PathLike) -> bool:
    """Return whether a training can resume from a checkpoint; one of `save_only_model` has the model alone."""
    optimizers = ("optimizer*", "global_step*")  # DeepSpeed has a folder
    return all(
        any(found for pattern in patterns for found in Path(checkpoint).glob(pattern))
        for patterns in (optimizers, ("scheduler*", "global_step*"), ("rng_state*",))
    )


@contextmanager
def _reading(checkpoint: str | None) -> Iterator[None]:
    """Raise a [`UsageError`] with the checkpoint's name if one of its files is damaged."""
    broken = (ValueError, TypeError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError)
    try:
        yield
    except (*broken, OSError) as error:
        # Damaged files cause EINVAL at a seek; other errors of the system are not the files' fault.
        of_system = isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.EINVAL, None)
        if of_system or is_out_of_memory(error):
            raise
        raise UsageError(
            f"{checkpoint} is damaged or not of this run, so the training cannot go on from it "
            f"({type(error).__name__}): move it away, and the same command goes on from the one before."
        ) from error


class _FindBestCheckpoint(TrainerCallback):
    """Looks for the best checkpoint in the present output folder: a run may have been moved since."""

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        best = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}")
        if best.is_dir():
            state.best_model_checkpoint = str(best)
