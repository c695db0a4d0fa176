"""What the Trainer adds: schedule, parameter groups, loss terms, metrics from counts."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model

from zegclip import DeepPromptConfig
from zegclip.processing.class_split_zegclip import ClassSplit
from zegclip.processing.metrics_zegclip import class_counts, summarise
from zegclip.processing.sliding_window_zegclip import merge_scores, predict_windows
from zegclip.trainer import ZegClipTrainer, ZegClipTrainingArguments, collate, poly_schedule

GOLDENS = Path(os.environ.get("ZEGCLIP_GOLDENS", Path(__file__).parent.parent / "goldens"))
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
    def make(train=None, **arguments):
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
        tuned = get_peft_model(model, DeepPromptConfig(num_tokens=2))
        embeds = torch.nn.functional.normalize(torch.randn(4, 32), dim=-1)
        return ZegClipTrainer(
            model=tuned,
            args=args,
            train_dataset=Samples(train or samples(8)),
            processing_class=processor,
            names={"class_embeds": embeds},
            split=SPLIT,
        )

    return make


def test_schedule_equals_the_official_one():
    goldens = json.loads((GOLDENS / "zegclip_lr_schedule.json").read_text())
    assert set(goldens) == {"10000", "20000", "40000", "80000"}
    for num_steps, rates in goldens.items():
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


def test_everything_trained_is_in_one_group_of_each_kind(make_trainer):
    trainer = make_trainer(decode_head_lr_multiplier=10.0)
    trainer.create_optimizer()
    trainable = {id(p) for p in trainer.model.parameters() if p.requires_grad}
    grouped = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trainable
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        in_head = {"decode_head" in names[id(p)] for p in group["params"]}
        assert len(in_head) == 1
        assert group["lr"] == pytest.approx(2e-3 if in_head.pop() else 2e-4)
        assert group["weight_decay"] == 0.01  # norms and biases too, as the official training


def test_norms_and_biases_can_be_left_out_of_the_decay(make_trainer):
    trainer = make_trainer(decay_norms_and_biases=False)
    trainer.create_optimizer()
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            undecayed = name.endswith("bias") or "norm" in name
            assert group["weight_decay"] == (0.0 if undecayed else 0.01), name


def test_loss_terms_are_logged_and_add_up(make_trainer):
    trainer = make_trainer()
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["loss_focal"] + entry["loss_dice"], rel=1e-3)


def without_dropout(trainer):
    for module in trainer.model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    trainer.model.base_model.model.clip.vision_model.encoder.prompt_configs["default"].dropout = 0.0
    return trainer


def test_gradient_accumulation_does_not_scale_the_loss(make_trainer, model):
    """Two equal halves, accumulated, log the loss and make the step of one half alone."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logged, steps = [], []
    for accumulation in (1, 2):
        model.load_state_dict(before)
        trainer = make_trainer(
            train=samples(2) * accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            warmup_steps=0,
            optim="sgd",
            max_grad_norm=0.0,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
        )
        start = {name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        without_dropout(trainer).train()
        logged.append(trainer.state.log_history[0]["loss"])
        steps.append({name: p.detach() - start[name] for name, p in trainer.model.named_parameters() if name in start})
        model = trainer.model.unload()
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)
    for name, step in steps[0].items():
        torch.testing.assert_close(steps[1][name], step, atol=1e-6, rtol=1e-3, msg=name)


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


def test_seen_offset_moves_pixels_to_unseen_classes(make_trainer):
    evaluation = Samples(samples(3, classes=4))
    trainer = make_trainer(seen_offset=2.0)  # more than any score
    assert trainer.evaluate(evaluation)["eval_miou_seen"] == 0


def test_collate():
    batch = collate(samples(4, sizes=((8, 8), (8, 9))))
    assert isinstance(batch["pixel_values"], list)
    assert collate(samples(2))["labels"].shape == (2, 32, 32)
