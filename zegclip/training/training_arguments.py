"""transformers' `TrainingArguments` with the papers' defaults, and what the method adds."""

import json
import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg
from transformers.integrations import is_tensorboard_available
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import HubStrategy

from zegclip.errors import UsageError, as_usage_errors, sentence_of

_REFUSED = {
    "auto_find_batch_size": "total_train_batch_size would not be the pictures per step",
    "average_tokens_across_devices": "losses are always averaged over the masks and pixels of all processes",
    "batch_eval_metrics": "pixels are always counted picture by picture",
    "bf16_full_eval": "it would leave the model in half precision; bf16 evaluates in it",
    "dataloader_drop_last": "an evaluation would leave pictures out; a training always leaves incomplete batches out",
    "dataloader_in_order": "a resumed run would differ from an undisturbed one",
    "dataloader_persistent_workers": "a resumed run would differ from an undisturbed one",
    "enable_jit_checkpoint": "a stopped run resumes from its last checkpoint",
    "eval_do_concat_batches": "the counts of all pictures belong together",
    "eval_use_gather_object": "counts are tensors",
    "fp16_full_eval": "it would leave the model in half precision; fp16 evaluates in it",
    "hub_always_push": "only finished runs are pushed",
    "ignore_data_skip": "a resumed run would differ from an undisturbed one",
    "include_for_metrics": "metrics are computed from counts alone",
    "label_names": "the labels are always named labels",
    "label_smoothing_factor": "the losses have no label smoothing",
    "neftune_noise_alpha": "no token embedding is trained",
    "optim_target_modules": "prompts and decode head are trained whole",
    "prediction_loss_only": "an evaluation counts pixels",
    "use_cache": "nothing is generated",
    "use_liger_kernel": "it has no kernels for CLIP",
}
"""Fields of transformers that have no effect here or would break a guarantee, and why; only defaults are accepted."""
_AT_LEAST = {
    "data_seed": 0,
    "dataloader_num_workers": 0,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "max_grad_norm": 0,
    "num_sample_pictures": 0,
    "per_device_eval_batch_size": 1,
    "per_device_train_batch_size": 1,
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
        UsageError: For an invalid value, or a field that would be silently ignored.
    """

    learning_rate: float = HfArg(default=2e-4, help="Peak learning rate of all trained tensors.")
    weight_decay: float = HfArg(default=0.01, help="AdamW's weight decay.")
    warmup_steps: float = HfArg(default=1500, help="Steps of linear warm-up; below 1: a fraction of all steps.")
    lr_scheduler_type: str = HfArg(default="polynomial", help="`polynomial` is the papers' schedule.")
    lr_scheduler_kwargs: dict | str | None = HfArg(
        default=None, help="Of the polynomial schedule: power (default 0.9) and lr_end, the absolute minimum (1e-6)."
    )
    max_grad_norm: float = HfArg(default=0.0, help="Gradient clipping; the papers do not clip.")
    ddp_find_unused_parameters: bool | None = HfArg(
        default=False, help="Off: every trained tensor is used in every step."
    )
    logging_nan_inf_filter: bool = HfArg(default=False, help="Off: a loss that is not finite stops the training.")
    remove_unused_columns: bool = HfArg(default=False, help="Off: the transforms need every column.")
    decode_head_lr_multiplier: float = HfArg(
        default=1.0, help="Learning rate of the decode head relative to the prompts'."
    )
    decay_norms_and_biases: bool = HfArg(
        default=True, help="Weight decay on norms and biases too, as the official training."
    )
    per_device_train_batch_size: int = HfArg(default=8, help="Pictures per forward pass and process.")
    total_train_batch_size: int | None = HfArg(
        default=None,
        help="Pictures per step over all processes and accumulation steps; sets per_device_train_batch_size.",
    )
    schedule_steps: int | None = HfArg(default=None, help="Length of the learning rate schedule. Default: max_steps.")
    seen_offset: float | None = HfArg(
        default=None,
        help="Subtracted from the scores of seen classes in evaluation. Default: the papers', 0.1 in the "
        "inductive setting of a trained head and 0 otherwise.",
    )
    hub_strategy: HubStrategy | str = HfArg(
        default="end", help="end: only finished runs are pushed; others are not supported."
    )
    window_batch_size: int = HfArg(default=16, help="Windows per forward pass in evaluation.")
    num_sample_pictures: int = HfArg(default=4, help="Pictures drawn with truth and prediction at each evaluation.")

    def __post_init__(self) -> None:
        self._check_values()
        plateau = self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        if (self.load_best_model_at_end or plateau) and self.metric_for_best_model is None:
            name = "load_best_model_at_end" if self.load_best_model_at_end else "lr_scheduler_type"
            raise UsageError(f"{name}={getattr(self, name)} needs a metric_for_best_model, such as hiou or miou.")
        super().__post_init__()
        if self.load_best_model_at_end and self.save_strategy == "steps" and self.save_steps != self.eval_steps:
            raise UsageError(
                f"load_best_model_at_end needs a checkpoint of every evaluated step: save_steps ({self.save_steps}) "
                f"must be eval_steps ({self.eval_steps})."
            )
        self._try_values()
        if plateau:  # which by default takes a rising metric for no improvement
            mode = {"mode": "max" if self.greater_is_better else "min"}
            given: Any = self.lr_scheduler_kwargs or {}
            self.lr_scheduler_kwargs = mode | given
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # which would only warn that there is no accelerator
            if self.fp16:
                raise UsageError("fp16 has no effect on a CPU, which supports bf16.")
        if self.include_num_input_tokens_seen not in ("no", False):
            raise UsageError("include_num_input_tokens_seen does not apply here: pictures have no tokens.")
        if "tensorboard" in self.report_to and not is_tensorboard_available():
            raise UsageError("report_to: tensorboard is not installed here: pip install 'zegclip[tensorboard]'.")
        self._check_accelerator_config()
        self._set_batch_size()
        if self.push_to_hub and self.hub_strategy != HubStrategy.END:
            raise UsageError(
                f"hub_strategy={HubStrategy(self.hub_strategy).value}: only finished runs are pushed; leave it out."
            )

    def _check_values(self) -> None:
        defaults = {item.name: item.default for item in fields(self)} | {"include_for_metrics": []}
        for name, reason in _REFUSED.items():
            if getattr(self, name) != defaults[name]:
                raise UsageError(f"{name} does not apply here: {reason}. Leave it out.")
        for name, smallest in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not smallest <= value < math.inf:
                raise UsageError(f"{name} must be at least {smallest}, not {value}.")
        for name in ("decode_head_lr_multiplier", "num_train_epochs"):
            ignored = name == "num_train_epochs" and self.max_steps != -1
            if not ignored and not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be above 0, not {getattr(self, name)}.")
        if self.seen_offset is not None and not math.isfinite(self.seen_offset):
            raise UsageError(f"seen_offset must be a finite number, not {self.seen_offset}.")
        if self.max_steps != -1 and self.max_steps < 1:
            raise UsageError(f"max_steps must be at least 1, or -1 to train num_train_epochs, not {self.max_steps}.")
        for name in self._VALID_DICT_FIELDS:
            value = getattr(self, name, None)
            with as_usage_errors(name):
                if isinstance(value, str) and value.startswith("{"):
                    value = json.loads(value)
                if name == "accelerator_config" and isinstance(value, dict):
                    AcceleratorConfig(**value)
        if self.optim_args and str(self.optim).startswith("adamw_torch"):
            raise UsageError("optim_args has no effect with this optim: weight_decay, adam_beta1 and so on have.")

    def _try_values(self) -> None:
        """Try on a number what PyTorch would refuse in the first step."""
        given: dict[str, Any] = self.activation_checkpointing_kwargs or {}
        options = {name: value for name, value in given.items() if name not in ("every_n_layers", "offload")}
        if options:
            number = torch.ones(1, requires_grad=True)
            with as_usage_errors("activation_checkpointing_kwargs (gradient_checkpointing_kwargs)"):
                checkpoint(torch.square, number, **{"use_reentrant": False} | options).backward()
        if self.torch_compile:
            try:
                torch.compile(torch.square, backend=self.torch_compile_backend, mode=self.torch_compile_mode)
            except RuntimeError as error:
                raise UsageError(f"torch_compile_mode, torch_compile_backend: {sentence_of(error)}") from error

    def _check_accelerator_config(self) -> None:
        config: Any = self.accelerator_config
        if config.dispatch_batches or not config.even_batches:
            raise UsageError("accelerator_config: dispatch_batches and even_batches cannot be changed here.")
        if "num_steps" in (config.gradient_accumulation_kwargs or {}):
            raise UsageError("accelerator_config: gradient_accumulation_steps sets num_steps; leave that out.")
        if config.split_batches:
            # It means that per_device_train_batch_size is for all processes together.
            config.split_batches = False
            if self.total_train_batch_size is None:
                self.total_train_batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps

    def _set_batch_size(self) -> None:
        if self.total_train_batch_size is None:
            return
        parts = self.world_size * self.gradient_accumulation_steps
        if self.total_train_batch_size % parts:
            raise UsageError(
                f"total_train_batch_size={self.total_train_batch_size} is not divisible by processes times "
                f"accumulation steps, {self.world_size} x {self.gradient_accumulation_steps}."
            )
        self.per_device_train_batch_size = self.total_train_batch_size // parts
