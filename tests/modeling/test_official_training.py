"""The official training loop, step by step, through the project's own Trainer."""

import json
import re

import pytest
import torch
from tiny_models import golden_files
from torch.utils.data import Dataset, SequentialSampler

from zegclip.modeling.convert_official_checkpoint import SPECTRAL_FILTER

FILES = golden_files("trajectory_*.safetensors")
LOSS_TOLERANCE = 1e-6
SSIM_TOLERANCE = 1e-5  # of that term alone: differences of squares of logits, which the official code rounds more
RATE_TOLERANCE = 1e-9
WEIGHT_TOLERANCE = 1e-5
LOSSES = {"loss": "loss", "loss_focal": "loss_mask", "loss_dice": "loss_dice", "loss_ssim": "loss_ssim"}


class Samples(Dataset):
    """The samples of all steps, in the order in which the official loop saw them."""

    def __init__(self, pictures, labels, order):
        self.pictures, self.labels, self.order = pictures, labels, order

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        row = self.order[index]
        return {"pixel_values": self.pictures[row], "labels": self.labels[row]}


def read(path, make_golden):
    """Read a file's metadata and tensors; those that it shares with another file are in that one only."""
    metadata, tensors = make_golden.read(path)
    if "shared" in metadata:
        tensors = read(path.with_name(metadata["shared"]), make_golden)[1] | tensors
    values = {key: as_json(text) for key, text in metadata.items()}
    return values | values.get("meta", {}), tensors


def as_json(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def number(pattern, text, default):
    """Find a number after a word, as in "power 0.9" or '"power": 0.9'."""
    match = re.search(rf"\b{pattern}\W*(\d[\d.]*(?:e[+-]?\d+)?)", text)
    return default if match is None else float(match[1])


def training_arguments(meta, tensors):
    """Turn the file's words about optimizer and schedule into arguments; what it does not say is as in the paper."""
    words = json.dumps([meta.get("optimizer", ""), meta.get("schedule", "")]).replace('\\"', '"')
    rates = tensors["lr"].tolist()
    # The highest rate is that of the first step after the warm-up.
    warmup = number(r"warm-?up(?:_iters)?", words, rates.index(max(rates)))
    steps = number(r"of", words, len(rates))
    power, floor = number("power", words, 0.9), number("min(?:_lr)?", words, 1e-6)
    peak = (max(rates) - floor) / (1 - rates.index(max(rates)) / steps) ** power + floor
    return {
        "learning_rate": number("lr", words, peak),
        "weight_decay": number("weight[_ ]decay", words, 0.01),
        "adam_epsilon": number("eps", words, 1e-8),
        "adam_beta1": number("betas", words, 0.9),
        "adam_beta2": number(r"betas\W*[\d.]+", words, 0.999),
        "warmup_steps": int(warmup),
        "schedule_steps": int(steps),
        "lr_scheduler_kwargs": {"power": power, "lr_end": floor},
        "max_steps": len(rates),
        "per_device_train_batch_size": tensors["batches"].shape[1],
        "logging_steps": 1,
    }


# The class embedding is added twice by a converted checkpoint's table, or by the adapter to that of a plain CLIP.
RUNS = [(path, doubled) for path in FILES for doubled in ([False, True] if path == FILES[0] else [False])]


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: f"{run[0].stem}{'_plain_clip' * run[1]}")
def trajectory(request, make_golden):
    """A file, with what the project's Trainer has logged and trained from its start."""
    path, doubled = request.param
    meta, tensors = read(path, make_golden)
    prefix = "sd." if any(name.startswith("sd.") for name in tensors) else "state_dict."
    method = "spt-seg" if prefix + SPECTRAL_FILTER in tensors else "zegclip"
    text = tensors["text_embeddings"].float()
    config = {
        "clip_config": {
            "vision_config": {"num_attention_heads": meta.get("vision_heads", meta.get("heads"))},
            "text_config": {"num_attention_heads": 1},  # the text tower does not run
        },
        "decoder_attention_heads": meta.get("decoder_heads", 8),
    }
    golden = make_golden(
        tensors,
        prefix,
        method,
        config,
        text=text,
        seen=meta["seen"],
        unseen=[index for index in range(len(text)) if index not in meta["seen"]],
        self_training=meta["self_training"] if "self_training" in meta else meta["st"],
    )
    if doubled:
        embeddings = golden.model.clip.vision_model.embeddings
        embeddings.position_embedding.weight.data[0] -= embeddings.class_embedding.data
        golden.model.peft_config["default"].double_class_embedding = True
    trainable = golden.unfreeze()
    if f"final.{SPECTRAL_FILTER}" not in tensors:  # by ZegCLIP's rule of names, the official SPT-SEG freezes it
        for name in [name for name in trainable if "deep_prompt_filter" in name]:
            trainable.pop(name).requires_grad_(False)
    dataset = Samples(tensors["pictures"], golden.labels(tensors["labels"]), tensors["batches"].flatten().tolist())
    trainer = golden.trainer(dataset, **training_arguments(meta, tensors))
    trainer._get_train_sampler = lambda *_: SequentialSampler(dataset)
    trainer.train()
    golden.start = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    golden.logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    golden.final = golden.official({name: parameter.detach() for name, parameter in trainable.items()})
    return golden


def test_losses(trajectory):
    stored = {ours: theirs for ours, theirs in LOSSES.items() if theirs in trajectory}
    assert "loss" in stored
    for entry in trajectory.logs:
        assert {name for name in entry if name.startswith("loss")} == stored.keys()
    for ours, theirs in stored.items():
        losses = torch.tensor([entry[ours] for entry in trajectory.logs], dtype=torch.float64)
        error = ((losses - trajectory[theirs]) / trajectory[theirs]).abs().max()
        assert error <= (SSIM_TOLERANCE if ours == "loss_ssim" else LOSS_TOLERANCE), f"{theirs}: {error}"


def test_rates(trajectory):
    rates = torch.tensor([entry["learning_rate"] for entry in trajectory.logs], dtype=torch.float64)
    torch.testing.assert_close(rates, trajectory["lr"].double(), rtol=RATE_TOLERANCE, atol=0)


def test_final_weights(trajectory):
    expected = {name.removeprefix("final."): trajectory[name] for name in trajectory.tensors if name[:6] == "final."}
    assert trajectory.final.keys() <= expected.keys()
    for name, official in expected.items():
        if name not in trajectory.final:  # what the official training never reaches is not there in our model
            assert torch.equal(official, trajectory.start[name]), name
        elif not trajectory.is_noise(name):
            error = (trajectory.final[name] - official).norm()
            assert error <= WEIGHT_TOLERANCE * official.norm(), f"{name}: {error}"
