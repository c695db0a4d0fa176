"""The Trainer: what zero-shot segmentation adds to transformers' own."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import EvalPrediction, Trainer, TrainingArguments

from zegclip.processing.class_split_zegclip import ClassSplit
from zegclip.processing.metrics_zegclip import class_counts, summarise
from zegclip.processing.sliding_window_zegclip import merge_masks, predict_windows


@dataclass
class ZegClipTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the papers' defaults, and what the method adds."""

    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate of all trained tensors."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay."})
    warmup_steps: float = field(default=1500, metadata={"help": "Steps of linear warm-up; below 1: share of all."})
    lr_scheduler_type: str = field(default="polynomial", metadata={"help": "`polynomial` is the papers' schedule."})
    lr_scheduler_kwargs: dict | str | None = field(
        default_factory=lambda: {"power": 0.9, "lr_end": 1e-6},
        metadata={"help": "Of the polynomial schedule: power, and lr_end, the absolute floor."},
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; the papers have none."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Off: every trained tensor is used in every step."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Off: transforms need every column."})
    decode_head_lr_multiplier: float = field(
        default=1.0, metadata={"help": "Learning rate of the decode head relative to the prompts'."}
    )
    decay_norms_and_biases: bool = field(
        default=True, metadata={"help": "Weight decay on norms and biases too, as the official training."}
    )
    seen_offset: float = field(
        default=0.1,
        metadata={"help": "Subtracted from the scores of seen classes in evaluation (inductive protocol)."},
    )
    window_batch_size: int = field(default=16, metadata={"help": "Windows per forward pass in evaluation."})


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
    """

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
    Trains an adapter on seen classes and evaluates on all.

    Args:
        class_embeds: `(names, dim)` embeddings of all class names of `split`.
        split: The classes; training uses the rows of the seen ones.
        **kwargs: `Trainer`'s own; the windows of the evaluation are those of `processing_class`'s image processor.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *args: Any, class_embeds: torch.Tensor, split: ClassSplit, **kwargs: Any):
        super().__init__(*args, compute_metrics=self._summarise_counts, data_collator=collate, **kwargs)
        # Several devices in one process would be DataParallel, which splits the class embeddings like pictures.
        self.args._n_gpu = min(self.args.n_gpu, 1)
        self.split = split
        self.class_embeds = class_embeds.to(self.args.device)
        self.train_class_embeds = self.class_embeds[list(split.seen_ids)]
        self._loss_sums: dict[str, torch.Tensor] = {}
        self._loss_steps = 0

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

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Run the model on the seen classes' names and remember each loss term for the log."""
        outputs = model(**inputs, class_embeds=self.train_class_embeds)
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
        image_processor = self.processing_class.image_processor
        counts = []
        with torch.no_grad(), self.compute_loss_context_manager():
            for pixel_values, labels in zip(inputs["pixel_values"], inputs["labels"]):
                windows = predict_windows(
                    model,
                    pixel_values[None],
                    self.class_embeds,
                    image_processor.window_size,
                    image_processor.window_stride,
                    batch_size=self.args.window_batch_size,
                )
                predicted, _ = merge_masks(
                    windows, tuple(labels.shape), seen_ids=self.split.seen_ids, seen_offset=self.args.seen_offset
                )
                counts.append(class_counts(predicted, labels, len(self.split.names), self.split.ignore_index))
        stacked = torch.stack(counts)
        return None, stacked, torch.zeros(len(stacked), device=stacked.device)

    def _summarise_counts(self, prediction: EvalPrediction) -> dict[str, float]:
        return summarise(np.asarray(prediction.predictions).sum(axis=0), self.split)


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """Stack tensors of one shape; keep those of different shapes apart, as pictures in evaluation may be."""
    batch: dict[str, torch.Tensor | list[torch.Tensor]] = {}
    for name in samples[0]:
        tensors = [sample[name] for sample in samples]
        batch[name] = torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors
    return batch
