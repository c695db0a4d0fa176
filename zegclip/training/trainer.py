"""The Trainer: what zero-shot segmentation adds to transformers' own."""

import errno
import math
import os
import pickle
import random
import shutil
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, get_last_checkpoint, rotate_checkpoints

from zegclip.drawing.curves import plot_training
from zegclip.drawing.samples import sample_sheet, sample_strip
from zegclip.errors import is_worker_death
from zegclip.files import remove_leftovers, replacing, writing_to
from zegclip.processing.class_split import ClassSplit, Setting
from zegclip.processing.metrics import class_counts, summarise
from zegclip.processing.windows import BatchSize, is_out_of_memory
from zegclip.training.evaluation import Protocol, default_offset, predict_map
from zegclip.training.pictures import EvaluationPictures, PictureSampler, TrainingPictures, spread_evenly
from zegclip.training.tables import format_evaluation

UNFINISHED_PREFIX = "_unfinished-checkpoint-"
"""Start of the names of checkpoints that are being written, or that an interruption left half written."""
SAMPLES_FOLDER = "samples"
"""Folder in the output folder for pictures with truth and prediction."""


_REFUSED = {
    "auto_find_batch_size": "pictures per step would not be those of total_train_batch_size",
    "average_tokens_across_devices": "losses are averaged over masks and pixels, always over all processes",
    "batch_eval_metrics": "pixels are counted picture by picture anyway",
    "bf16_full_eval": "it would leave the model in half precision; bf16 evaluates in it",
    "dataloader_drop_last": "an evaluation would leave pictures out; a training leaves incomplete batches out anyway",
    "dataloader_in_order": "a resumed run would differ from an undisturbed one",
    "dataloader_persistent_workers": "a resumed run would differ from an undisturbed one",
    "enable_jit_checkpoint": "a run that was stopped goes on from its last checkpoint",
    "eval_do_concat_batches": "the counts of all pictures belong together",
    "eval_use_gather_object": "counts are tensors",
    "fp16_full_eval": "it would leave the model in half precision; fp16 evaluates in it",
    "hub_always_push": "only what is finished is pushed",
    "ignore_data_skip": "a resumed run would differ from an undisturbed one",
    "include_for_metrics": "figures are made of counts alone",
    "label_names": "labels are called labels",
    "label_smoothing_factor": "the losses know no smoothed labels",
    "neftune_noise_alpha": "no token embedding is trained",
    "optim_target_modules": "prompts and decode head are trained whole",
    "prediction_loss_only": "an evaluation counts pixels",
    "use_cache": "nothing is generated",
    "use_liger_kernel": "it has no kernels for CLIP",
}
"""Fields of transformers' that would do nothing here or break a promise, and why; they are left at their defaults."""
_AT_LEAST = {
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "max_grad_norm": 0,
    "num_sample_pictures": 0,
    "schedule_steps": 1,
    "total_train_batch_size": 1,
    "warmup_steps": 0,
    "weight_decay": 0,
    "window_batch_size": 1,
}


@dataclass
class ZegClipTrainingArguments(TrainingArguments):
    """
    transformers' `TrainingArguments` with the papers' defaults, and what the method adds.

    Raises:
        ValueError: For a value that cannot be right, or a field that would do nothing here; one sentence.
    """

    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate of all trained tensors."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay."})
    warmup_steps: float = field(default=1500, metadata={"help": "Steps of linear warm-up; below 1: share of all."})
    lr_scheduler_type: str = field(default="polynomial", metadata={"help": "`polynomial` is the papers' schedule."})
    lr_scheduler_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": "Of the polynomial schedule: power (none: 0.9), and lr_end, the absolute floor (1e-6)."},
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; the papers have none."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Off: every trained tensor is used in every step."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Off: a loss that is not finite ends the training instead."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Off: transforms need every column."})
    decode_head_lr_multiplier: float = field(
        default=1.0, metadata={"help": "Learning rate of the decode head relative to the prompts'."}
    )
    decay_norms_and_biases: bool = field(
        default=True, metadata={"help": "Weight decay on norms and biases too, as the official training."}
    )
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Pictures per pass and process."})
    total_train_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Pictures per step over all processes and accumulation steps; per_device_train_batch_size follows."
        },
    )
    schedule_steps: int | None = field(
        default=None, metadata={"help": "Length of the learning rate's schedule; none: max_steps."}
    )
    seen_offset: float | None = field(
        default=None,
        metadata={
            "help": "Subtracted from the scores of seen classes in evaluation; none: as in the papers, 0.1 in the "
            "inductive setting and 0 in the others."
        },
    )
    hub_strategy: HubStrategy | str = field(
        default="end", metadata={"help": "end: what is finished is pushed; transformers' others are not for us."}
    )
    window_batch_size: int = field(default=16, metadata={"help": "Windows per forward pass in evaluation."})
    num_sample_pictures: int = field(
        default=4, metadata={"help": "Evaluation pictures drawn with truth and prediction at each evaluation."}
    )

    def __post_init__(self) -> None:
        defaults = {item.name: item.default for item in fields(self)} | {"include_for_metrics": []}
        for name, reason in _REFUSED.items():
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} is not for this training: {reason}. Leave it out.")
        for name, smallest in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not smallest <= value < math.inf:
                raise ValueError(f"{name} must be at least {smallest}, not {value}.")
        if not 0 < self.decode_head_lr_multiplier < math.inf:
            raise ValueError(f"decode_head_lr_multiplier must be above 0, not {self.decode_head_lr_multiplier}.")
        if self.seen_offset is not None and not math.isfinite(self.seen_offset):
            raise ValueError(f"seen_offset must be a number, not {self.seen_offset}.")
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, or -1 to train num_train_epochs, not {self.max_steps}.")
        if self.max_steps == -1 and not 0 < self.num_train_epochs < math.inf:
            raise ValueError(f"num_train_epochs must be above 0, not {self.num_train_epochs}.")
        if self.optim_args and str(self.optim).startswith("adamw_torch"):
            raise ValueError("optim_args would do nothing with this optim: weight_decay, adam_beta1 and so on do.")
        plateau = self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        if (self.load_best_model_at_end or plateau) and self.metric_for_best_model is None:
            name = "load_best_model_at_end" if self.load_best_model_at_end else "lr_scheduler_type"
            raise ValueError(f"{name}={getattr(self, name)} needs a metric_for_best_model, such as hiou or miou.")
        super().__post_init__()
        if plateau:  # which would take a rising figure for no improvement
            mode = {"mode": "max" if self.greater_is_better else "min"}
            given: Any = self.lr_scheduler_kwargs or {}
            self.lr_scheduler_kwargs = mode | given
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # which only warns that there is nothing to pin for
            if self.fp16:
                raise ValueError("fp16 would do nothing on a CPU, which knows bf16.")
        if self.include_num_input_tokens_seen not in ("no", False):
            raise ValueError("include_num_input_tokens_seen is not for this training: pictures have no tokens.")
        accelerator_config: Any = self.accelerator_config
        if accelerator_config.dispatch_batches or not accelerator_config.even_batches:
            raise ValueError("accelerator_config: dispatch_batches and even_batches are not for this training.")
        if "num_steps" in (accelerator_config.gradient_accumulation_kwargs or {}):
            raise ValueError("accelerator_config: gradient_accumulation_steps says num_steps; leave that out.")
        if accelerator_config.split_batches:
            # It means that per_device_train_batch_size is for all processes together.
            accelerator_config.split_batches = False
            if self.total_train_batch_size is None:
                self.total_train_batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if self.total_train_batch_size is not None:
            parts = self.world_size * self.gradient_accumulation_steps
            if self.total_train_batch_size % parts:
                raise ValueError(
                    f"total_train_batch_size={self.total_train_batch_size} cannot be shared out: processes times "
                    f"accumulation steps is {self.world_size} x {self.gradient_accumulation_steps}."
                )
            self.per_device_train_batch_size = self.total_train_batch_size // parts
        if self.push_to_hub and self.hub_strategy != HubStrategy.END:
            raise ValueError(
                f"hub_strategy={HubStrategy(self.hub_strategy).value}: only what is finished is pushed; leave it out."
            )


def poly_schedule(
    optimizer: torch.optim.Optimizer, *, num_steps: int, warmup_steps: int, power: float = 0.9, lr_end: float = 1e-6
) -> LambdaLR:
    """
    Build the official schedule: polynomial decay to an absolute floor, times a linear warm-up.

    At step i of T the rate is `((lr - floor) (1 - i/T)^power + floor)`, and for `i < warmup` this times
    `1 - (1 - i/warmup)(1 - 1e-6)`. (transformers' own starts to decay only after the warm-up.)

    Args:
        optimizer: Its groups' `lr` are the peaks.
        num_steps: T.
        warmup_steps: Steps of warm-up.
        power: Exponent of the decay.
        lr_end: The floor, an absolute rate for every group.

    Raises:
        ValueError: If the rate would rise instead of decaying; one sentence.
    """
    if power < 0:
        raise ValueError(f"The power of the polynomial schedule must not be negative, as {power} is.")
    for group in optimizer.param_groups:
        if not 0 <= lr_end <= group["lr"]:
            raise ValueError(
                f"lr_end={lr_end} of the polynomial schedule must lie between 0 and the learning rate, which is "
                f"{group['lr']}."
            )

    def of_group(peak: float) -> Callable[[int], float]:
        def multiplier(step: int) -> float:
            decay = (1 - min(step / num_steps, 1.0)) ** power
            rate = (peak - lr_end) * decay + lr_end
            if step < warmup_steps:
                rate *= 1 - (1 - step / warmup_steps) * (1 - 1e-6)
            return rate / peak

        return multiplier

    return LambdaLR(optimizer, [of_group(group["lr"]) for group in optimizer.param_groups])


class ZegClipTrainer(Trainer):
    """
    Trains an adapter on the classes of a setting and evaluates on all.

    Args:
        names: All class names of `split` as inputs of the model: their `class_embeds` `(names, dim)`, or, where the
            text tower is trained, the processor's `input_ids` and `attention_mask` `(names * templates, length)`,
            which are encoded anew in each step, and once for each evaluation.
        split: The classes.
        setting: Which of them training sees, and how (ZegCLIP section 4.1; see [`ClassSplit.training_labels`]).
        **kwargs: `Trainer`'s own; the windows of the evaluation are those of `processing_class`'s image processor.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        *args: Any,
        names: Mapping[str, torch.Tensor],
        split: ClassSplit,
        setting: Setting = "inductive",
        **kwargs: Any,
    ):
        super().__init__(*args, compute_metrics=self._summarise_counts, data_collator=collate, **kwargs)
        # Several devices in one process would be DataParallel, which splits the class embeddings like pictures.
        self.args._n_gpu = min(self.args.n_gpu, 1)
        self.split = split
        self.names = {name: tensor.to(self.args.device) for name, tensor in names.items()}
        self.train_ids = split.training_ids(setting)
        self.train_names = _select_names(self.names, self.train_ids, len(split.names))
        self.class_embeds: Any = self.names.get("class_embeds")
        self.pseudo_label_ids: list[int] | None = None
        if setting == "transductive":
            if self.args.gradient_accumulation_steps > 1:
                raise ValueError(
                    "gradient_accumulation_steps: in the transductive setting each pass fills its labels itself, so "
                    "that the masks of a whole step cannot be counted before: take more processes, or smaller batches."
                )
            self.pseudo_label_ids = [i for i in range(len(split.names)) if i not in split.seen_ids]
        image_processor = self.processing_class.image_processor
        self.protocol = Protocol(
            image_processor.window_size,
            image_processor.window_stride,
            default_offset(setting) if self.args.seen_offset is None else self.args.seen_offset,
        )
        self._window_batch = BatchSize(self.args.window_batch_size)
        self.class_counts: np.ndarray | None = None
        self.summary: dict[str, float] = {}
        self._loss_sums: dict[str, torch.Tensor] = {}
        self._loss_steps = 0
        self._step_passes = 1
        self._step_counts: dict[str, torch.Tensor] | None = None
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()  # Updates are too small for half precision.
        self._unfinished: Path | None = None
        self.add_callback(_FindBestCheckpoint())
        if self.args.should_save:
            for unfinished in Path(self.args.output_dir).glob(f"{UNFINISHED_PREFIX}*"):
                shutil.rmtree(unfinished)
            for folder in (Path(self.args.output_dir), Path(self.args.output_dir, SAMPLES_FOLDER)):
                remove_leftovers(folder)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the parent; also after an evaluation, which would otherwise leave processes on their own."""
        if self.model_wrapped is self.model:
            # `evaluate` prepares the model without DistributedDataParallel, and accelerate never prepares one twice.
            self.model._is_accelerate_prepared = False
        try:
            return super().train(*args, **kwargs)
        finally:
            self._step_passes, self._step_counts = 1, None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _reading(resume_from_checkpoint):
            TrainerState.load_from_json(os.path.join(resume_from_checkpoint, TRAINER_STATE_NAME))
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and not is_whole(checkpoint):
            raise ValueError(
                f"{checkpoint} holds no whole state of a training (save_only_model leaves none), so that none can go "
                "on from there: leave it out, or start from its weights with init_adapter."
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

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, TrainingPictures):
            return super()._get_train_sampler(train_dataset)
        if self.args.train_sampling_strategy != "random":
            raise ValueError("train_sampling_strategy is not for this training: the order is always random.")
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batch = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        if len(dataset) < batch:
            raise ValueError(
                f"There are {len(dataset)} training pictures, fewer than a batch of {batch}: give a smaller "
                "total_train_batch_size."
            )
        sampler = PictureSampler(len(dataset), seed, batch)
        self.add_callback(_SetEpoch(sampler))
        return sampler

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Build AdamW with prompts and decode head in groups of their own."""
        if self.optimizer is None:
            model = model or self.model
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = defaultdict(list)
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    decay = self.args.decay_norms_and_biases or name in decayed
                    groups["decode_head" in name, decay].append(parameter)
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(
                [
                    {
                        "params": parameters,
                        "lr": self.args.learning_rate * (self.args.decode_head_lr_multiplier if in_head else 1.0),
                        "weight_decay": self.args.weight_decay if decay else 0.0,
                    }
                    for (in_head, decay), parameters in groups.items()
                ],
                **kwargs,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Build the official polynomial schedule; any other kind is transformers' own."""
        num_training_steps = self.args.schedule_steps or num_training_steps
        if self.args.lr_scheduler_type != "polynomial":
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = poly_schedule(
                optimizer or self.optimizer,
                num_steps=num_training_steps,
                warmup_steps=self.args.get_warmup_steps(num_training_steps),
                **(self.args.lr_scheduler_kwargs or {}),
            )
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As the parent; where a step has several passes, also count what its losses are averaged over."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step_passes, self._step_counts = len(batches), None
        if len(batches) > 1:
            num_names = len(self.train_ids)
            counts = [self.model.count_labels(batch["labels"].to(device), num_names) for batch in batches]
            sums = {name: torch.stack([count[name] for count in counts]).sum() for name in counts[0]}
            self._step_counts = self._over_processes(sums)
        return batches, num_items

    def _over_processes(self, counts: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return sums over all processes."""
        sums = self.accelerator.reduce(torch.stack(list(counts.values())), "sum")
        return dict(zip(counts, sums, strict=True))

    def _average_over_step(
        self, terms: dict[str, torch.Tensor], counts: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """
        Divide a pass's loss terms by the counts of its step instead of its own.

        The official code counts over the whole batch. What passes and processes compute is averaged afterwards, so
        that each has its part of the step's loss times their number. (Of several processes the official code takes the
        mean count, at least 1, which differs for steps with fewer masks than processes.)
        """
        passes = self._step_passes * self.args.world_size
        if passes == 1:
            return terms
        step_counts = self._step_counts or self._over_processes(counts)
        return {
            name: term * (counts[name].clamp(min=1) * passes) / step_counts[name].clamp(min=1)
            for name, term in terms.items()
        }

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """
        Run the model on the names of the setting and remember each loss term for the log.

        Raises:
            FloatingPointError: If the loss is not finite; it names the step, the pictures of the batch and the last
                checkpoint.
        """
        rows = inputs.pop("row", None)
        outputs = model(**inputs, **self.train_names, pseudo_label_ids=self.pseudo_label_ids)
        outputs.loss_dict = self._average_over_step(outputs.loss_dict, outputs.loss_counts)
        outputs.loss = torch.stack(list(outputs.loss_dict.values())).sum()
        if not outputs.loss.isfinite():
            self._check_weights()  # Where they are to blame, these pictures are not.
            terms = ", ".join(f"{name} {term.item():g}" for name, term in outputs.loss_dict.items())
            pictures = ""
            if rows is not None:
                pictures = f" of {', '.join(self.train_dataset.name(row) for row in rows.tolist())}"
            raise self._breakdown(f"In step {self.state.global_step + 1} the loss{pictures} is not finite ({terms})")
        for name, term in outputs.loss_dict.items():
            self._loss_sums[name] = self._loss_sums.get(name, 0) + term.detach()
        self._loss_steps += 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the parent, with the mean of each loss term since the last time."""
        if "loss" in logs:
            for name, total in self._loss_sums.items():
                logs[name] = self.accelerator.gather(total / self._loss_steps).mean().item()
            self._loss_sums, self._loss_steps = {}, 0
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run as the parent, with the class embeddings of the text tower as it is now."""
        if "class_embeds" not in self.names:
            model: Any = self.accelerator.unwrap_model(self.model).eval()
            with torch.no_grad(), self.compute_loss_context_manager():
                self.class_embeds = model.get_class_embeds(**self.names)
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """
        Segment each picture into all classes, at the size of its label map.

        Args:
            model: The model.
            inputs: `pixel_values` and `labels`, `(3, height, width)` and `(height, width)` each, of any sizes.
            prediction_loss_only: Must be false: a loss on seen classes alone says little.
            ignore_keys: Unused.

        Returns:
            No loss, class counts `(batch, 3, classes)`, and a placeholder for the labels.
        """
        inputs = self._prepare_inputs(inputs)
        counts = []
        with torch.no_grad(), self.compute_loss_context_manager():
            for pixel_values, labels in zip(inputs["pixel_values"], inputs["labels"]):
                if not labels.numel():  # A picture that could not be read.
                    counts.append(torch.zeros(3, len(self.split.names), dtype=torch.long, device=labels.device))
                    continue
                predicted = self._predict(model, pixel_values, tuple(labels.shape))
                counts.append(class_counts(predicted, labels, len(self.split.names), self.split.ignore_index))
        stacked = torch.stack(counts)
        return None, stacked, torch.zeros(len(stacked), device=stacked.device)

    def _predict(self, model: torch.nn.Module, pixel_values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return predict_map(
            model,
            pixel_values,
            self.class_embeds,
            self.protocol,
            size,
            seen_ids=self.split.seen_ids,
            batch_size=self._window_batch,
        )

    def _summarise_counts(self, prediction: EvalPrediction) -> dict[str, float]:
        self.class_counts = np.asarray(prediction.predictions).sum(axis=0)
        self.summary = summarise(self.class_counts, self.split)
        return self.summary

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Evaluate as the parent, then draw sample pictures and training curves into the output folder."""
        if self.is_fsdp_enabled:
            # Pictures have different numbers of windows, but all processes must call a sharded model as often.
            raise ValueError(
                "A model that FSDP has sharded cannot be evaluated while it is trained: set eval_strategy to no, and "
                "evaluate the saved adapter with eval.py."
            )
        pictures = self.eval_dataset if eval_dataset is None else eval_dataset
        with self._random_state_kept():
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            if isinstance(pictures, dict):
                return metrics  # Each of the data sets has come here on its own.
            if isinstance(pictures, str):
                pictures = self.eval_dataset[pictures]
            if isinstance(pictures, EvaluationPictures):
                self._draw_samples(pictures, metric_key_prefix.removeprefix("eval").lstrip("_"))
        if self.is_world_process_zero():
            plot_training(self.state.log_history, Path(self.args.output_dir) / "curves.png")
            figures = {name.removeprefix(f"{metric_key_prefix}_"): value for name, value in metrics.items()}
            title = "" if metric_key_prefix == "eval" else f" ({metric_key_prefix})"
            print(f"Step {self.state.global_step}{title}: {format_evaluation(figures)}", file=sys.stderr)
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent; what is trained afterwards does not depend on it."""
        with self._random_state_kept():
            return super().predict(*args, **kwargs)

    @contextmanager
    def _random_state_kept(self) -> Iterator[None]:
        """Leave the global random state as it was: data loaders draw from it, and so does the training's dropout."""
        python, numpy = random.getstate(), np.random.get_state()
        device = self.args.device
        try:
            with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)

    @torch.no_grad()
    def _draw_samples(self, pictures: EvaluationPictures, title: str = "") -> None:
        """Draw some pictures with truth and prediction, evenly spread; `title` begins the file's name."""
        strips = []
        self.model.eval()
        for index in spread_evenly(len(pictures), self.args.num_sample_pictures):
            try:
                image, labels = pictures.read(index)
            except ValueError:
                if pictures.skipped_file is None:
                    raise
                continue
            # Every process takes part, as a sharded model asks for; one writes.
            with self.compute_loss_context_manager():
                predicted = self._predict(self.model, pictures.prepare(image).to(self.args.device), labels.shape)
            if self.is_world_process_zero():
                strips.append(sample_strip(image, labels, predicted.cpu().numpy(), self.split))
        if strips:
            name = f"step_{self.state.global_step:06d}.png"
            path = Path(self.args.output_dir) / SAMPLES_FOLDER / (f"{title}_{name}" if title else name)
            with replacing(path) as part:
                sample_sheet(strips, f"step {self.state.global_step}").save(part, format="PNG")

    def _breakdown(self, what: str) -> FloatingPointError:
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
                raise self._breakdown(f"After step {self.state.global_step} not all weights are finite ({name})")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save as the parent, each file whole, and without the empty form that PEFT leaves where there is no card."""
        if not self.args.should_save:
            return super()._save(output_dir, state_dict)
        with writing_to(Path(output_dir or self.args.output_dir)) as folder:
            super()._save(str(folder), state_dict)
            (folder / "README.md").unlink(missing_ok=True)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Save the model into the output folder, and share it as [`zegclip.sharing.publishing.push`] does.

        Args:
            commit_message: Of the commit.
            blocking: Without effect: it returns when the Hub has all.
            token: By default `hub_token`, or the one of `hf auth login`.
            revision: By default `hub_revision`.
            private: By default `hub_private_repo`.
            **kwargs: `whole`, whether an adapter's base goes with it.

        Returns:
            The address of the commit, in the main process.
        """
        from zegclip.loading import load_model
        from zegclip.sharing.publishing import push

        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        return push(
            load_model(self.args.output_dir),
            str(self.hub_model_id),
            processor=self.processing_class,
            run=self.args.output_dir,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message or "End of training",
            **kwargs,
        )

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._unfinished or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save a checkpoint that appears under its name only when every process has written its part."""
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
            if is_worker_death(error):
                raise
            last = get_last_checkpoint(str(output_dir))
            raise OSError(
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
    """Tell whether a training can go on from a checkpoint; one of `save_only_model` holds the model alone."""
    optimizers = ("optimizer*", "global_step*")  # DeepSpeed has a folder
    return all(
        any(found for pattern in patterns for found in Path(checkpoint).glob(pattern))
        for patterns in (optimizers, ("scheduler*", "global_step*"), ("rng_state*",))
    )


@contextmanager
def _reading(checkpoint: str | None) -> Iterator[None]:
    """Name the checkpoint whatever is wrong with its files; what they would run, were they trusted, is never run."""
    broken = (ValueError, TypeError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError)
    try:
        yield
    except (*broken, OSError) as error:
        # Of what broken files make, EINVAL is that of a seek; other errors of the system are not the files' fault.
        of_system = isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.EINVAL, None)
        if of_system or is_out_of_memory(error):
            raise
        raise ValueError(
            f"{checkpoint} is damaged or not of this run, so the training cannot go on from it "
            f"({type(error).__name__}): move it away, and the same command goes on from the one before."
        ) from error


class _FindBestCheckpoint(TrainerCallback):
    """Looks for the best checkpoint where a resumed run lies now: its state has the path of where it lay."""

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        best = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}")
        if best.is_dir():
            state.best_model_checkpoint = str(best)


class _SetEpoch(TrainerCallback):
    """Tells the sampler its epoch directly: through accelerate it does not always arrive."""

    def __init__(self, sampler: PictureSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # At the start of an epoch this is a whole number, or the share of it done before an interruption is added.
        self.sampler.set_epoch(int(state.epoch or 0))


def _select_names(names: Mapping[str, torch.Tensor], ids: Sequence[int], num_names: int) -> dict[str, torch.Tensor]:
    """Select some names, whose rows are all templates of each, and cut off the columns that are padding for all."""
    selected = {name: tensor.unflatten(0, (num_names, -1))[list(ids)].flatten(0, 1) for name, tensor in names.items()}
    if "attention_mask" in selected:
        used = selected["attention_mask"].any(dim=0)
        selected = {name: tensor[:, used] for name, tensor in selected.items()}
    return selected


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """Stack tensors of one shape; keep those of different shapes apart, as pictures in evaluation may be."""
    batch: dict[str, torch.Tensor | list[torch.Tensor]] = {}
    for name in samples[0]:
        tensors = [sample[name] for sample in samples]
        batch[name] = torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors
    return batch
