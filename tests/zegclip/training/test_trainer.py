"""What the Trainer adds: schedule, parameter groups, loss terms, metrics from counts."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import TrainerCallback

from zegclip import DeepPromptConfig
from zegclip.errors import UsageError
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.merging import merge_scores
from zegclip.processing.metrics import class_counts, summarise
from zegclip.processing.windows import predict_windows
from zegclip.training.optimization import poly_schedule
from zegclip.training.trainer import ZegClipTrainer, collate
from zegclip.training.training_arguments import ZegClipTrainingArguments

GOLDENS = Path(os.environ.get("ZEGCLIP_GOLDENS", Path(__file__).parents[2] / "goldens"))
SPLIT = ClassSplit(names=("a", "b", "c", "d"), seen_ids=(0, 1, 3), unseen_ids=(2,))


def samples(count, sizes=((32, 32),), classes=3):
    generator = torch.Generator().manual_seed(0)
    result = []
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        labels = torch.randint(classes, (height, width), generator=generator)
        labels[:3] = 255
        result.append({"pixel_values": torch.randn(3, height, width, generator=generator), "labels": labels})
    return result


class Samples(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.fixture
def make_trainer(model, processor, tmp_path):
    def make(train=None, evaluation=None, prompts=None, names=None, setting="inductive", split=SPLIT, **arguments):
        torch.manual_seed(1)
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 2,
            "max_steps": 2,
            "warmup_steps": 1,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "seen_offset": 0.1,
        }
        args = ZegClipTrainingArguments(**defaults | arguments)
        tuned = get_peft_model(model, DeepPromptConfig(num_tokens=2, **prompts or {}))
        embeds = torch.nn.functional.normalize(torch.randn(4, 32), dim=-1)
        return ZegClipTrainer(
            model=tuned,
            args=args,
            train_dataset=Samples(train or samples(8)),
            eval_dataset=Samples(evaluation) if evaluation else None,
            processing_class=processor,
            names=names or {"class_embeds": embeds},
            split=split,
            setting=setting,
        )

    return make


@pytest.mark.parametrize("metric", ["other", "eval_loss", "objects_hiou"])
def test_a_metric_that_is_never_computed_is_refused_at_the_start(make_trainer, metric):
    with pytest.raises(UsageError, match=r"metric_for_best_model must be one of pacc, .*hiou"):
        make_trainer(metric_for_best_model=metric)
    assert make_trainer(metric_for_best_model="eval_hiou").args.greater_is_better


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"lr_scheduler_kwargs": {"other": 1}}, "lr_scheduler_kwargs"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_kwargs"),
        ({"optim": "sgd", "optim_args": "momentum=-1"}, "optim_args"),
    ],
)
def test_values_that_a_library_refuses_are_named(make_trainer, fields, named):
    with pytest.raises(UsageError, match=named):
        make_trainer(**fields).train()


NESTED = ClassSplit(
    names=("a", "b", "c", "d"), seen_ids=(0, 1, 3), unseen_ids=(2,), names_of={"b": ("b", "x"), "c": ("y", "z", "c")}
)


def test_the_best_name_of_each_class_is_trained_and_evaluated(make_trainer, model):
    """Classes are counted anew among those that training sees; names of the unseen one do not take part."""
    torch.manual_seed(3)
    embeds = torch.nn.functional.normalize(torch.randn(7, 32), dim=-1)
    class_of_name = torch.tensor([0, 1, 1, 2, 2, 2, 3])
    items = samples(2, classes=4)
    names = {"class_embeds": embeds, "class_of_name": class_of_name}
    trainer = make_trainer(evaluation=items, names=names, split=NESTED)
    metrics = trainer.evaluate()
    counts = torch.zeros(3, 4, dtype=torch.long)
    with torch.no_grad():
        for item in items:
            windows = predict_windows(trainer.model, item["pixel_values"][None], embeds, 32, 20)
            scores = merge_scores(windows, item["labels"].shape, seen_ids=(0, 1, 2, 6), seen_offset=0.1)
            of_classes = torch.stack([scores[class_of_name == index].amax(dim=0) for index in range(4)])
            counts += class_counts(of_classes.argmax(dim=0), item["labels"], 4)
    assert np.array_equal(trainer.class_counts, counts.numpy())
    assert metrics["eval_miou"] == pytest.approx(summarise(counts.numpy(), NESTED)["miou"])

    trainer.model.eval()
    batch = collate(samples(2))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch)).item()
        logits = trainer.model(pixel_values=batch["pixel_values"], class_embeds=embeds[[0, 1, 2, 6]]).logits
        best = torch.stack([logits[:, 0], logits[:, 1:3].amax(dim=1), logits[:, 3]], dim=1)
        terms, _ = model.compute_loss(best, batch["labels"])
        single = trainer.model(**batch, class_embeds=embeds[[0, 1, 6]]).loss.item()
    assert loss == pytest.approx(sum(terms.values()).item())
    assert loss != pytest.approx(single)
    trainer.train()


def test_a_training_says_nothing_about_tokens(make_trainer, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    make_trainer().train()
    assert "token" not in caplog.text


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*_lr_schedule.json")), ids=lambda path: path.stem)
def test_schedule_equals_the_official_one(path):
    for num_steps, rates in json.loads(path.read_text()).items():
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=2e-4)
        schedule = poly_schedule(optimizer, num_steps=int(num_steps), warmup_steps=1500)
        for step, rate in rates.items():
            assert schedule.base_lrs[0] * schedule.lr_lambdas[0](int(step)) == pytest.approx(rate, rel=1e-9, abs=0)


def test_the_trainer_steps_through_that_schedule(make_trainer):
    trainer = make_trainer(max_steps=3, warmup_steps=2, learning_rate=2e-4)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    reference = poly_schedule(torch.optim.SGD([torch.zeros(1)], lr=2e-4), num_steps=3, warmup_steps=2)
    assert rates == pytest.approx([2e-4 * reference.lr_lambdas[0](step) for step in range(3)], rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "warned"),
    [
        ({"max_steps": 4, "warmup_steps": 3}, False),
        ({"max_steps": 4, "warmup_steps": 4}, True),
        ({"max_steps": 4, "warmup_steps": 0.5}, False),
        ({"max_steps": 4, "warmup_steps": 5, "lr_scheduler_type": "cosine"}, True),
        ({"max_steps": 4, "warmup_steps": 5, "lr_scheduler_type": "constant"}, False),
        ({"max_steps": 4, "warmup_steps": 5, "schedule_steps": 8}, True),  # which ends before
    ],
    ids=str,
)
def test_a_warm_up_that_does_not_end_is_said(make_trainer, capsys, fields, warned):
    make_trainer(**fields).create_optimizer_and_scheduler(fields["max_steps"])
    assert ("warmup_steps" in capsys.readouterr().out) == warned


@pytest.mark.parametrize("kind", ["polynomial", "cosine", "linear"])
def test_any_schedule_can_be_longer_than_the_run(make_trainer, kind):
    trainer = make_trainer(max_steps=2, schedule_steps=8, warmup_steps=0, lr_scheduler_type=kind)
    trainer.train()
    longer = make_trainer(max_steps=8, warmup_steps=0, lr_scheduler_type=kind)
    longer.create_optimizer_and_scheduler(8)
    for _ in range(2):
        longer.optimizer.step()
        longer.lr_scheduler.step()
    assert trainer.lr_scheduler.get_last_lr() == pytest.approx(longer.lr_scheduler.get_last_lr())
    assert trainer.lr_scheduler.get_last_lr()[0] > 1e-4


def test_loss_terms_are_logged_and_add_up(make_trainer):
    trainer = make_trainer()
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["loss_focal"] + entry["loss_dice"], rel=1e-3)


def without_dropout(trainer):
    trainer.model.config.decoder_dropout = 0.0
    trainer.model.base_model.model.clip.vision_model.encoder.prompt_configs["default"].dropout = 0.0
    return trainer


def test_evaluations_do_not_change_what_is_trained(make_trainer, model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = []
    for arguments in ({}, {"eval_strategy": "steps", "eval_steps": 1}, {"eval_on_start": True}):
        model.load_state_dict(before)
        trainer = make_trainer(evaluation=samples(2, classes=4), max_steps=3, **arguments)
        trainer.train()
        trained.append({name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad})
        model = trainer.model.unload()
    for other in trained[1:]:
        for name, parameter in trained[0].items():
            assert torch.equal(other[name], parameter), name


def test_each_evaluation_prints_its_figures(make_trainer, capsys):
    trainer = make_trainer(evaluation=samples(2, classes=4))
    few, many = Samples(samples(1, classes=4)), Samples(samples(3, classes=4))
    assert "mine_hiou" in trainer.evaluate(metric_key_prefix="mine")
    metrics = trainer.evaluate({"few": few, "many": many})
    assert {"eval_few_hiou", "eval_many_hiou"} <= metrics.keys()
    printed = capsys.readouterr().err
    assert printed.count("Step 0") == 3
    assert all(f"({name})" in printed for name in ("mine", "eval_few", "eval_many"))


def test_what_is_trained_is_brought_to_float32(make_trainer, model):
    trainer = make_trainer()
    half = trainer.model.to(torch.bfloat16)
    trainer = ZegClipTrainer(
        model=half, args=trainer.args, train_dataset=trainer.train_dataset, processing_class=trainer.processing_class,
        names=trainer.names, split=SPLIT,
    )  # fmt: skip
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in trainer.model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_smoothing_factor", 0.1), ("eval_do_concat_batches", False), ("prediction_loss_only", True),
        ("batch_eval_metrics", True), ("include_for_metrics", ["loss"]), ("eval_use_gather_object", True),
        ("fp16_full_eval", True), ("bf16_full_eval", True), ("neftune_noise_alpha", 1.0), ("ignore_data_skip", True),
        ("auto_find_batch_size", True), ("dataloader_drop_last", True), ("dataloader_in_order", False),
        ("average_tokens_across_devices", False), ("use_liger_kernel", True), ("optim_target_modules", "all-linear"),
        ("schedule_steps", -5), ("schedule_steps", 0), ("window_batch_size", 0), ("num_sample_pictures", -1),
        ("warmup_steps", -1), ("max_steps", 0), ("max_steps", -2), ("gradient_accumulation_steps", 0),
        ("learning_rate", -1e-4), ("learning_rate", float("nan")), ("decode_head_lr_multiplier", 0.0),
        ("seen_offset", float("nan")), ("max_grad_norm", -1.0), ("weight_decay", -0.1),
        ("load_best_model_at_end", True), ("num_train_epochs", -3), ("num_train_epochs", 0), ("fp16", True),
        ("optim_args", "weight_decay=0.7"), ("lr_scheduler_type", "reduce_lr_on_plateau"),
        ("label_names", ["x"]), ("include_num_input_tokens_seen", "all"),
        ("accelerator_config", {"dispatch_batches": True}), ("accelerator_config", {"even_batches": False}),
        ("accelerator_config", {"gradient_accumulation_kwargs": {"num_steps": 4}}),
    ],
)  # fmt: skip
def test_fields_that_would_break_a_promise_or_do_nothing_are_refused_by_name(tmp_path, name, value):
    mentioned = next(iter(value)) if name == "accelerator_config" else name
    mentioned = mentioned.replace("gradient_accumulation_kwargs", "gradient_accumulation_steps")
    with pytest.raises(UsageError, match=mentioned):
        ZegClipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})


def test_the_best_step_needs_a_checkpoint(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "hiou", "eval_strategy": "steps"}
    with pytest.raises(UsageError, match="save_steps"):
        ZegClipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, eval_steps=10, save_steps=20, **best)


def test_what_a_log_needs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("zegclip.training.training_arguments.is_tensorboard_available", lambda: False)
    with pytest.raises(UsageError, match=r"zegclip\[tensorboard\]"):
        ZegClipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="tensorboard")


@pytest.mark.parametrize(
    ("arguments", "pictures_a_pass"),
    [
        ({"total_train_batch_size": 8, "gradient_accumulation_steps": 2}, 4),
        ({"per_device_train_batch_size": 6}, 6),
    ],
)
def test_split_batches_does_not_change_the_pictures_of_a_step(tmp_path, arguments, pictures_a_pass):
    split = {"split_batches": True}
    args = ZegClipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, accelerator_config=split, **arguments)
    assert args.per_device_train_batch_size == pictures_a_pass
    assert not args.accelerator_config.split_batches


@pytest.mark.parametrize("kwargs", [{"lr_end": 1e-2}, {"lr_end": -1e-6}, {"power": -1.0}])
def test_a_schedule_that_would_rise_is_refused(make_trainer, kwargs):
    trainer = make_trainer(lr_scheduler_kwargs=kwargs)
    with pytest.raises(UsageError, match="polynomial schedule"):
        trainer.train()


def test_pseudo_labels_allow_no_accumulation(make_trainer):
    with pytest.raises(UsageError, match="gradient_accumulation_steps"):
        make_trainer(setting="transductive", gradient_accumulation_steps=2)


def test_a_checkpoint_that_lacks_a_part_of_the_state_is_no_start(make_trainer, tmp_path):
    make_trainer(save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    trainer = make_trainer()
    for lost in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / lost).rename(tmp_path / lost)
        with pytest.raises(UsageError, match="checkpoint-1"):
            trainer.train(resume_from_checkpoint=str(checkpoint))
        (tmp_path / lost).rename(checkpoint / lost)


def odd_batches():
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ignored, one, unseen = torch.full((32, 32), 255), torch.full((32, 32), 1), torch.full((32, 32), -1)
    return {
        "all ignored": [{"pixel_values": picture, "labels": ignored} for picture in pictures],
        "one class": [{"pixel_values": picture, "labels": one} for picture in pictures],
        "one pixel": [{"pixel_values": picture, "labels": ignored.clone().index_fill_(0, torch.tensor(3), 0)}
                      for picture in pictures],
        "no seen class": [{"pixel_values": picture, "labels": unseen} for picture in pictures],
    }  # fmt: skip


@pytest.mark.parametrize("weights", [{}, {"ssim_weight": 1.0, "dice_weight": 0.0, "cross_entropy_weight": 1.0}])
@pytest.mark.parametrize("kind", list(odd_batches()))
def test_batches_with_hardly_anything_to_learn(make_trainer, model, kind, weights):
    for name, value in weights.items():
        setattr(model.config, name, value)
    setting = "transductive" if kind == "no seen class" else "inductive"
    trainer = make_trainer(train=odd_batches()[kind], setting=setting)
    trainer.train()
    assert trainer.state.global_step == 2
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_a_loss_that_is_no_number_stops_the_training(make_trainer, tmp_path):
    train = samples(8)
    for number, sample in enumerate(train):
        sample["row"] = torch.tensor(number)
        if number >= 4:
            sample["pixel_values"] = torch.full_like(sample["pixel_values"], float("nan"))
    trainer = make_trainer(train=train, max_steps=4, save_strategy="steps", save_steps=1,
                           train_sampling_strategy="sequential")  # fmt: skip
    trainer.train_dataset.name = lambda row: f"{row}.png"
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    for mentioned in ("step 3", "4.png, 5.png", str(tmp_path / "run" / "checkpoint-2")):
        assert mentioned in str(error.value)
    assert not (tmp_path / "run" / "checkpoint-3").exists()


@pytest.mark.parametrize("good_steps", [0, 1])
def test_weights_that_are_no_numbers_are_not_saved(make_trainer, tmp_path, good_steps):
    """A finite loss may have a gradient that is not; the error names the weights, not the next step's pictures."""
    trainer = make_trainer(max_steps=3, save_strategy="steps", save_steps=1)
    steps = iter(range(3))
    for name, parameter in trainer.model.named_parameters():
        if name.endswith("query_proj.bias") and parameter.requires_grad:
            parameter.register_hook(lambda gradient: gradient * (1.0 if next(steps) < good_steps else float("nan")))
    with pytest.raises(FloatingPointError, match=f"After step {good_steps + 1} .* weights"):
        trainer.train()
    saved = [path.name for path in (tmp_path / "run").glob("*checkpoint*")]
    assert saved == [f"checkpoint-{step + 1}" for step in range(good_steps)]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), OSError(5, "Input/output error")])
def test_a_checkpoint_is_not_blamed_for_the_machine(make_trainer, tmp_path, monkeypatch, error):
    make_trainer(save_strategy="steps", save_steps=1).train()

    def refuse(*arguments, **kwargs):
        raise error

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(type(error)) as raised:
        make_trainer().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert raised.value is error


def test_evaluation_counts_pictures_of_any_size(make_trainer):
    evaluation = samples(5, sizes=((32, 32), (40, 24), (24, 50)), classes=4)
    trainer = make_trainer(per_device_eval_batch_size=2)
    figures = trainer.evaluate(Samples(evaluation))
    total = np.zeros((3, 4))
    trainer.model.eval()
    with torch.no_grad():
        for sample in evaluation:
            windows = predict_windows(trainer.model, sample["pixel_values"][None], trainer.class_embeds, 32, 20)
            scores = merge_scores(windows, tuple(sample["labels"].shape), SPLIT.seen_ids, 0.1)
            total += class_counts(scores.argmax(0), sample["labels"], 4).numpy()
    for name, value in summarise(total, SPLIT).items():
        assert figures[f"eval_{name}"] == pytest.approx(value, abs=1e-9), name


class SeenTexts:
    """Notes what the text tower encodes, and when a step or an evaluation ends and with which class embeddings."""

    def __init__(self, trainer):
        self.events, self.embeds, self.tokens = [], [], []
        clip = trainer.model.base_model.model.clip
        clip.text_model.register_forward_pre_hook(
            lambda module, _args, kwargs: self.events.append((module.training, tuple(kwargs["input_ids"].shape))),
            with_kwargs=True,
        )
        tokens = clip.text_model.encoder.deep_prompt_tokens["default"]
        watcher = self

        class Watch(TrainerCallback):
            def on_step_end(self, *_args, **_kwargs):
                watcher.events.append("step")

            def on_evaluate(self, *_args, **_kwargs):
                watcher.events.append("evaluation")
                watcher.embeds.append(trainer.class_embeds.clone())
                watcher.tokens.append(tokens.detach().clone())

        trainer.add_callback(Watch())


@pytest.fixture
def text_trainer(make_trainer, processor, model):
    """Of names whose only unseen one is much longer than the others."""

    def make(kind, **arguments):
        with torch.no_grad():
            # Untrained, all names are alike and scores hardly depend on the place.
            model.clip.text_model.embeddings.token_embedding.weight.mul_(20)
            for layer in (model.decode_head.mask_scores.q_proj, model.decode_head.mask_scores.k_proj):
                layer.weight.mul_(10)
        names = dict(processor(text=["cat", "b", "much longer name", "tree"], return_tensors="pt"))
        assert names["input_ids"].shape == (4, 10 + 14 + 1)
        prompts = {"text_prompts": kind, "text_prompt_ids": processor.text_prompt_ids()}
        return make_trainer(prompts=prompts, names=names, **arguments)

    return make


@pytest.mark.parametrize(("kind", "more"), [("words", 0), ("whole", 1)])
def test_names_are_encoded_in_each_step_and_once_for_an_evaluation(text_trainer, kind, more):
    """In a step those of seen classes, without the columns that are padding for all of them."""
    trainer = text_trainer(
        kind,
        evaluation=samples(3, sizes=((32, 32), (40, 24)), classes=4),
        max_steps=2,
        warmup_steps=0,
        learning_rate=0.01,
        eval_strategy="steps",
        eval_steps=1,
        gradient_accumulation_steps=2,
    )
    seen = SeenTexts(trainer)
    trainer.train()
    step, evaluation = (True, (3, 10 + 4 + 1 + more)), (False, (4, 10 + 14 + 1 + more))
    assert seen.events == [step, step, "step", evaluation, "evaluation"] * 2
    assert not torch.equal(*seen.tokens)
    assert trainer.evaluate()["eval_miou"] >= 0
    assert seen.events[10:] == [evaluation, "evaluation"]

    # Each evaluation has had the embeddings of its moment, the last two the same.
    model = trainer.model
    parameter = model.base_model.model.clip.text_model.encoder.deep_prompt_tokens["default"]
    assert torch.equal(seen.tokens[1], seen.tokens[2])
    for embeds, tokens in zip(seen.embeds, seen.tokens):
        with torch.no_grad():
            parameter.copy_(tokens)
            torch.testing.assert_close(model.get_class_embeds(**trainer.names), embeds, atol=1e-6, rtol=0)
    assert (seen.embeds[0] - seen.embeds[1]).abs().max() > 1e-4


def test_the_trimmed_names_train_as_the_padded_ones(text_trainer):
    trainer = text_trainer("whole")
    without_dropout(trainer)
    padded = {name: trainer.names[name][[0, 1, 3]] for name in ("input_ids", "attention_mask")}
    inputs = trainer.train_dataset[0]
    inputs = {name: tensor[None] for name, tensor in inputs.items()}
    losses, gradients = [], []
    for names in (padded, trainer.train_names):
        trainer.train_names = names
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model.train(), inputs)
        loss.backward()
        losses.append(loss)
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(losses[0], losses[1])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("decay_all", [True, False])
def test_every_trained_parameter_has_the_rate_and_decay_of_its_kind(text_trainer, decay_all):
    trainer = text_trainer("whole", decode_head_lr_multiplier=10.0, decay_norms_and_biases=decay_all)
    trainer.create_optimizer()
    names = {id(p): name for name, p in trainer.model.named_parameters() if p.requires_grad}
    grouped = [(group, names[id(p)]) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(name for _, name in grouped) == sorted(names.values())
    for group, name in grouped:
        assert group["lr"] == pytest.approx(2e-3 if "decode_head" in name else 2e-4), name
        # Norms and biases too by default, as in the official training.
        decayed = decay_all or not (name.endswith("bias") or "norm" in name)
        assert group["weight_decay"] == (0.01 if decayed else 0.0), name


def test_names_may_come_without_a_mask_and_with_several_templates(make_trainer, processor):
    """Of each name all rows are chosen; only a mask says which columns are padding."""
    processor.prompt_templates = ["a photo of a {}", "the {}"]
    names = processor(text=["cat", "b", "much longer name", "tree"], return_tensors="pt")
    trainer = make_trainer(names={"input_ids": names["input_ids"]})
    assert torch.equal(trainer.train_names["input_ids"], names["input_ids"][[0, 1, 2, 3, 6, 7]])
    trainer.model.unload()
    masked = make_trainer(names=dict(names)).train_names
    assert masked["input_ids"].shape == masked["attention_mask"].shape == (6, 10 + 4 + 1)
    assert torch.equal(masked["input_ids"], trainer.train_names["input_ids"][:, :15])


@pytest.mark.parametrize("failing", ["torch.save", "transformers.processing_utils.ProcessorMixin.save_pretrained"])
def test_a_save_that_fails_leaves_what_was_there(make_trainer, tmp_path, monkeypatch, failing):
    """Such as for a full disk, or a signal."""
    trainer, run = make_trainer(), tmp_path / "run"
    trainer.save_model()
    (run / "README.md").write_text("A card that a person has written.")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1)

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(KeyboardInterrupt):
            trainer.save_model()
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    trainer.save_model()
    after = {path.name: path.read_bytes() for path in run.iterdir()}
    assert after.keys() == before.keys()
    assert after["README.md"] == before["README.md"]
    assert after["adapter_model.safetensors"] != before["adapter_model.safetensors"]


def test_an_adapter_with_a_name_of_its_own_is_saved_again(make_trainer, tmp_path, monkeypatch):
    """PEFT writes it into a folder of its name."""
    trainer, run = make_trainer(), tmp_path / "run"
    trainer.model.add_adapter("cats", DeepPromptConfig(num_tokens=2))
    trainer.model.set_adapter("cats")

    def contents():
        return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}

    trainer.save_model()
    weights = Path("cats", "adapter_model.safetensors")
    before, usual = contents(), os.replace
    assert weights in before

    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1)

    def fail(source, target):
        if Path(source).name == weights.name and Path(target).parent == run / "cats":
            monkeypatch.undo()
            raise OSError(28, "No space left on device")
        usual(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        trainer.save_model()
    assert contents() == before
    trainer.save_model()
    assert contents().keys() == before.keys()
    assert contents()[weights] != before[weights]


def test_leftovers_of_a_killed_run_go(make_trainer, tmp_path):
    folders = (tmp_path / "run", tmp_path / "run" / "samples")
    for folder in folders:
        (folder / ".zegclip-elsewhere-1-abc").mkdir(parents=True)
        os.utime(folder / ".zegclip-elsewhere-1-abc", (0, 0))
    make_trainer()
    assert not any(path.name.startswith(".") for folder in folders for path in folder.iterdir())


def test_collate():
    batch = collate(samples(4, sizes=((8, 8), (8, 9))))
    assert isinstance(batch["pixel_values"], list)
    assert collate(samples(2))["labels"].shape == (2, 32, 32)


def test_a_schedule_that_waits_for_a_plateau_knows_that_figures_rise(tmp_path):
    args = ZegClipTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, lr_scheduler_type="reduce_lr_on_plateau", metric_for_best_model="hiou",
        eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    assert args.lr_scheduler_kwargs["mode"] == "max"


def test_a_checkpoint_of_another_number_of_processes_is_said_to_be_one(make_trainer, tmp_path):
    make_trainer(save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    with pytest.warns(UserWarning, match="another number of processes"):
        make_trainer().train(resume_from_checkpoint=str(checkpoint))
