"""The Trainer: what zero-shot segmentation adds to transformers' own."""

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import BatchFeature, EvalPrediction, TrainerCallback

from zegclip.drawing.curves import plot_training
from zegclip.drawing.samples import sample_sheet, sample_strip
from zegclip.errors import UsageError, as_usage_errors
from zegclip.files import remove_leftovers, replacing
from zegclip.processing.class_split import ClassSplit, Setting
from zegclip.processing.input_error import InputError
from zegclip.processing.metrics import class_counts, summarise
from zegclip.processing.windows import BatchSize
from zegclip.training.checkpoints import CheckpointTrainer
from zegclip.training.counting import Protocol, default_offset, predict_maps
from zegclip.training.optimization import group_parameters, poly_schedule
from zegclip.training.pictures import EvaluationPictures, PictureSampler, TrainingPictures, spread_evenly
from zegclip.training.tables import format_evaluation

SAMPLES_FOLDER = "samples"
"""Folder in the output folder for pictures with truth and prediction."""
_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")  # Of transformers' schedules.


class ZegClipTrainer(CheckpointTrainer):
    """
    Trains an adapter on the classes of a setting and evaluates on all.

    Args:
        names: All class names of `split` as inputs of the model: their `class_embeds` `(names, dim)`, or, where the
            text tower is trained, what the processor returns for them, which is encoded anew in each step, and once
            for each evaluation. Either has `class_of_name` where classes have several names.
        split: The classes.
        setting: Which of them training sees, and how (ZegCLIP section 4.1; see [`ClassSplit.training_labels`]).
        **kwargs: `Trainer`'s own; the windows of the evaluation are those of `processing_class`'s image processor.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        *args: Any,
        names: Mapping[str, Any],
        split: ClassSplit,
        setting: Setting = "inductive",
        **kwargs: Any,
    ):
        with as_usage_errors():
            super().__init__(*args, compute_metrics=self._summarise_counts, data_collator=collate, **kwargs)
        # As the parent does when it starts to train; what has changed then, it would report in every run.
        tokenizer = getattr(self.processing_class, "tokenizer", None)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if (token := getattr(tokenizer, name, None)) is not None:
                setattr(self.model.config.get_text_config(), name, token)
        # Several devices in one process would be DataParallel, which splits the class embeddings like pictures.
        self.args._n_gpu = min(self.args.n_gpu, 1)
        self.split = split
        self.names = BatchFeature(names).to(self.args.device)
        if "num_templates" in names:
            self.names["num_templates"] = int(names["num_templates"])  # which would else be read from the device
        self.train_ids = split.training_ids(setting)
        self.train_names = _select_names(self.names, self.train_ids, len(split.all_names()))
        self.class_embeds: Any = self.names.get("class_embeds")
        self.pseudo_class_ids: list[int] | None = None
        if setting == "transductive":
            if self.args.gradient_accumulation_steps > 1:
                raise UsageError(
                    "gradient_accumulation_steps: in the transductive setting each pass fills its labels itself, so "
                    "that the masks of a whole step cannot be counted before: take more processes, or smaller batches."
                )
            self.pseudo_class_ids = [i for i in range(len(split.names)) if i not in split.seen_ids]
        image_processor = self.processing_class.image_processor
        self.protocol = Protocol(
            image_processor.window_size,
            image_processor.window_stride,
            default_offset(setting, self.model.config.score_function)
            if self.args.seen_offset is None
            else self.args.seen_offset,
        )
        self._window_batch = BatchSize(self.args.window_batch_size)
        self._check_metric()
        self.class_counts: np.ndarray | None = None
        self.num_counted = 0  # Pictures with a pixel that counts.
        self.summary: dict[str, float] = {}
        self._loss_sums: dict[str, torch.Tensor] = {}
        self._loss_steps = 0
        self._step_passes = 1
        self._step_counts: dict[str, torch.Tensor] | None = None
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()  # Updates are too small for half precision.
        if self.args.should_save:
            remove_leftovers(Path(self.args.output_dir, SAMPLES_FOLDER))

    def _check_metric(self) -> None:
        """Refuse a metric that no evaluation computes, before the first one would."""
        wanted = self.args.metric_for_best_model
        names = list(summarise(np.zeros((3, len(self.split.names)), dtype=np.int64), self.split))
        if isinstance(self.eval_dataset, dict):
            names = [f"{title}_{name}" for title in self.eval_dataset for name in names]
        if wanted is not None and wanted.removeprefix("eval_") not in names:
            raise UsageError(f"metric_for_best_model must be one of {', '.join(names)}, not {wanted!r}.")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the parent, also after an evaluation, after which processes would not exchange gradients."""
        if self.model_wrapped is self.model:
            # `evaluate` prepares the model without DistributedDataParallel, and accelerate never prepares one twice.
            self.model._is_accelerate_prepared = False
        try:
            return super().train(*args, **kwargs)
        finally:
            self._step_passes, self._step_counts = 1, None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, TrainingPictures):
            return super()._get_train_sampler(train_dataset)
        if self.args.train_sampling_strategy != "random":
            raise UsageError("train_sampling_strategy does not apply here: the order is always random.")
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batch = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        if len(dataset) < batch:
            raise UsageError(
                f"There are {len(dataset)} training pictures, fewer than a batch of {batch}: give a smaller "
                "total_train_batch_size."
            )
        sampler = PictureSampler(len(dataset), seed, batch)
        self.add_callback(_SetEpoch(sampler))
        return sampler

    @as_usage_errors("optim, optim_args")
    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer with prompts and decode head in groups of their own."""
        if self.optimizer is None:
            model = model or self.model
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = group_parameters(model, self.args, set(self.get_decay_parameter_names(model)))
            self.optimizer = optimizer_class(groups, **kwargs)
        return self.optimizer

    @as_usage_errors("lr_scheduler_type, lr_scheduler_kwargs")
    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Build the official polynomial schedule; any other kind is transformers' own."""
        steps, num_training_steps = num_training_steps, self.args.schedule_steps or num_training_steps
        warmup_steps, steps = self.args.get_warmup_steps(num_training_steps), min(steps, num_training_steps)
        if warmup_steps >= steps and self.args.lr_scheduler_type not in _WITHOUT_WARMUP:
            PartialState().print(
                f"Warning: with warmup_steps {warmup_steps} the learning rate is still rising in the last of {steps} "
                "steps: give fewer."
            )
        if self.args.lr_scheduler_type != "polynomial":
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = poly_schedule(
                optimizer or self.optimizer,
                num_steps=num_training_steps,
                warmup_steps=warmup_steps,
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

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """
        Run the model on the names of the setting, and add up each loss term for the log.

        Raises:
            FloatingPointError: If the loss is not finite; it names the step, the pictures of the batch and the last
                checkpoint.
        """
        rows = inputs.pop("row", None)
        outputs = model(**inputs, **self.train_names, pseudo_class_ids=self.pseudo_class_ids)
        outputs.loss_dict = self._average_over_step(outputs.loss_dict, outputs.loss_counts)
        outputs.loss = torch.stack(list(outputs.loss_dict.values())).sum()
        if not outputs.loss.isfinite():
            self._check_weights()  # If they are the cause, these pictures are not.
            terms = ", ".join(f"{name} {term.item():g}" for name, term in outputs.loss_dict.items())
            pictures = ""
            if rows is not None:
                pictures = f" of {', '.join(self.train_dataset.name(row) for row in rows.tolist())}"
            raise self.divergence(f"In step {self.state.global_step + 1} the loss{pictures} is not finite ({terms})")
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

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
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
        [predicted] = predict_maps(
            model,
            [pixel_values],
            self.class_embeds,
            self.protocol,
            [size],
            seen_ids=self.split.seen_ids,
            batch_size=self._window_batch,
            class_of_name=self.names.get("class_of_name"),
        )
        return predicted

    def _summarise_counts(self, prediction: EvalPrediction) -> dict[str, float]:
        counts = np.asarray(prediction.predictions)
        self.num_counted = int(np.count_nonzero(counts.any(axis=(1, 2))))
        self.class_counts = counts.sum(axis=0)
        self.summary = summarise(self.class_counts, self.split)
        return self.summary

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Evaluate as the parent, then draw sample pictures and training curves into the output folder."""
        if self.is_fsdp_enabled:
            # Pictures have different numbers of windows, but all processes must call a sharded model as often.
            raise UsageError(
                "A model that FSDP has sharded cannot be evaluated while it is trained: set eval_strategy to no, and "
                "evaluate the saved adapter with eval.py."
            )
        pictures = self.eval_dataset if eval_dataset is None else eval_dataset
        with self._restoring_random_state():
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
        """Predict as the parent, without an effect on later training."""
        with self._restoring_random_state():
            return super().predict(*args, **kwargs)

    @contextmanager
    def _restoring_random_state(self) -> Iterator[None]:
        """Restore the global random state at the end: data loaders and the training's dropout draw from it."""
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
            except InputError:
                if pictures.skipped_file is None:
                    raise
                continue
            # Every process takes part, as a sharded model requires; one writes.
            with self.compute_loss_context_manager():
                predicted = self._predict(self.model, pictures.prepare(image).to(self.args.device), labels.shape)
            if self.is_world_process_zero():
                strips.append(sample_strip(image, labels, predicted.cpu().numpy(), self.split))
        if strips:
            name = f"step_{self.state.global_step:06d}.png"
            path = Path(self.args.output_dir) / SAMPLES_FOLDER / (f"{title}_{name}" if title else name)
            with replacing(path) as part:
                sample_sheet(strips, f"step {self.state.global_step}").save(part, format="PNG")

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


class _SetEpoch(TrainerCallback):
    """Sets the sampler's epoch, which accelerate does not always pass on."""

    def __init__(self, sampler: PictureSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # At the start of an epoch this is a whole number, or the share of it done before an interruption is added.
        self.sampler.set_epoch(int(state.epoch or 0))


def _select_names(names: Mapping[str, Any], ids: Sequence[int], num_names: int) -> dict[str, Any]:
    """
    Select the names of some classes, whose rows are all templates of each name.

    Columns that are padding for all of them are cut off, and classes counted anew in the order of `ids`.
    """
    tensors = {name: value for name, value in names.items() if isinstance(value, torch.Tensor)}
    class_of_name = tensors.pop("class_of_name", None)
    owners = range(num_names) if class_of_name is None else class_of_name.tolist()
    chosen = [name for index in ids for name, owner in enumerate(owners) if owner == index]
    selected = {name: rows.unflatten(0, (num_names, -1))[chosen].flatten(0, 1) for name, rows in tensors.items()}
    if "attention_mask" in selected:
        used = selected["attention_mask"].any(dim=0)
        selected = {name: rows[:, used] for name, rows in selected.items()}
    if class_of_name is not None:
        selected["class_of_name"] = class_of_name.new_tensor([list(ids).index(owners[name]) for name in chosen])
    return {**names, **selected}


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """Stack tensors of one shape; keep those of different shapes apart, as pictures in evaluation may be."""
    batch: dict[str, torch.Tensor | list[torch.Tensor]] = {}
    for name in samples[0]:
        tensors = [sample[name] for sample in samples]
        batch[name] = torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors
    return batch
