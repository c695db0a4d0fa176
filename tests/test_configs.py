"""Every configuration in `configs/` can be read, and describes what the papers train."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from peft import get_peft_model

from zegclip import ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.arguments import SETTINGS, parse_arguments
from zegclip.processing.benchmarks_zegclip import benchmark_split
from zegclip.processing.class_split_zegclip import split_classes
from zegclip.runs import stages_of
from zegclip.trainer import poly_schedule

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
GOLDEN_RATES = json.loads((Path(__file__).parent / "goldens" / "zegclip_lr_schedule.json").read_text())
STEPS = {"voc": 20_000, "coco_stuff": 80_000, "pascal_context": 40_000}
# Weights of focal, dice and SSIM.
LOSSES = {"zegclip": (100, 1, 0), "spt_seg": (100, 0, 1)}
RUNS = set(product(LOSSES, STEPS, ("inductive", "transductive", "fully_supervised")))
TRAINING = [path for path in CONFIGS if path.stem.startswith(tuple(f"{m}_{d}" for m, d in product(LOSSES, STEPS)))]
# What SPT-SEG adds to ZegCLIP.
SPECTRAL = {
    "decode_head_type", "num_decoder_layers", "decoder_attention_heads", "decoder_low_frequency_heads",
    "decoder_window_size", "spectral_prompt", "spectral_layers", "ssim_weight",
    "ssim_of_probabilities",
}  # fmt: skip


def parse(path, *words):
    return parse_arguments([str(path), "--use_cpu", *words])


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def method_and_data_set(path):
    return next((m, d) for m, d in product(LOSSES, STEPS) if path.stem.startswith(f"{m}_{d}_"))


def trained_parameters(method, tokens):
    """What is trained of ViT-B/16, as the specifications count it."""
    if method == "zegclip":
        return {10: 8_039_168, 100: 8_868_608}[tokens]
    width, dim, ffn, layers, side = 768, 512, 2048, 3, 32
    low, high = 7 * 64, 64
    prompts = 12 * tokens * width + width * width + width + 2 * width
    spectral_filter = side * (side // 2 + 1) * width * 2
    descriptor = 2 * dim * dim + dim
    gate_and_transform = dim + dim * dim
    mixing = dim * 3 * high + dim * low + dim * 2 * low + low * low + low
    update = dim * dim + dim + 4 * dim + dim * ffn + ffn + ffn * dim + dim  # the last layer has none
    layers_in_all = layers * (gate_and_transform + mixing) + (layers - 1) * update
    return prompts + spectral_filter + descriptor + layers_in_all


def test_there_is_one_for_each_method_data_set_and_setting():
    assert sorted(path.stem for path in TRAINING) == sorted("_".join(run) for run in RUNS)
    assert len(TRAINING) == 2 * 3 * 3
    assert {"zegclip_coco_to_voc", "zegclip_coco_to_context"} <= {path.stem for path in CONFIGS}


def test_parameters_are_counted_as_the_specification_does():
    assert trained_parameters("spt_seg", 10) == 10_524_224
    assert trained_parameters("spt_seg", 100) == 10_524_224 + 829_440


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_can_be_read_and_says_whose_folder_it_writes(path):
    _, data_args, training_args = parse(path)
    assert training_args.output_dir == f"outputs/{path.stem}"
    if path.stem.endswith(SETTINGS):
        assert path.stem.endswith(data_args.setting)


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_it_trains_the_papers_model(path):
    method, _ = method_and_data_set(path)
    model_args, data_args, _ = parse(path)
    split = benchmark_split(data_args.dataset)
    config = ZegClipConfig(**model_args.config_overrides(), seen_class_names=split.seen_names)
    with torch.device("meta"):
        model = ZegClipForSemanticSegmentation(config)
        patch = config.clip_config.vision_config.patch_size
        model = get_peft_model(model, model_args.prompt_config(data_args.crop_size // patch))
    assert model_args.num_prompt_tokens == (10 if data_args.dataset == "voc" else 100)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == trained_parameters(method, model_args.num_prompt_tokens)
    assert (config.focal_weight, config.dice_weight, config.ssim_weight) == LOSSES[method]
    assert len(model_args.prompt_templates) == (1 if data_args.dataset == "voc" else 15)


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_it_follows_the_papers_schedule(path):
    _, dataset = method_and_data_set(path)
    arguments = parse(path)
    assert arguments[2].max_steps == STEPS[dataset]
    assert arguments[2].per_device_train_batch_size == 16  # one process has all of the batch
    expected = [(STEPS[dataset], STEPS[dataset])]
    if arguments[1].setting == "transductive":
        # Inductive to the half of its schedule, then self-training with a schedule of its own.
        expected = [(STEPS[dataset] // 2, STEPS[dataset]), (STEPS[dataset] // 2, STEPS[dataset] // 2)]
    stages = stages_of(*arguments)
    assert [(s.max_steps, s.schedule_steps or s.max_steps) for _, _, s in stages] == expected
    for _, data_args, training_args in stages:
        steps = training_args.schedule_steps or training_args.max_steps
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=training_args.learning_rate)
        schedule = poly_schedule(
            optimizer,
            num_steps=steps,
            warmup_steps=training_args.get_warmup_steps(steps),
            **training_args.lr_scheduler_kwargs or {},
        )
        for step, rate in GOLDEN_RATES[str(steps)].items():
            assert schedule.base_lrs[0] * schedule.lr_lambdas[0](int(step)) == pytest.approx(rate, rel=1e-9, abs=0)
        assert data_args.setting == path.stem.split(f"{dataset}_")[1] or data_args.setting == "inductive"


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_it_leaves_nothing_of_the_protocol_to_defaults(path):
    """A reader sees every number that the papers name."""
    names = {
        "model", "num_prompt_tokens", "prompt_templates", "max_steps", "total_train_batch_size", "learning_rate",
        "weight_decay", "warmup_steps", "focal_weight", "dice_weight", "crop_size", "scale_range", "image_size",
        "window_size", "window_stride", "seed",
    }  # fmt: skip
    if path.stem.startswith("spt_seg"):
        names |= SPECTRAL
    assert names <= read(path).keys()


@pytest.mark.parametrize("path", [p for p in TRAINING if p.stem.startswith("spt_seg")], ids=lambda path: path.stem)
def test_spt_seg_is_trained_as_zegclip_is(path):
    """It has published no training configuration."""
    written = read(path)
    other = read(path.with_name(path.name.replace("spt_seg", "zegclip")))
    different = {name for name in written.keys() | other.keys() if written.get(name) != other.get(name)}
    assert different == SPECTRAL | {"dice_weight", "output_dir"}


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_can_read_the_launch_file(path):
    config = load_config_from_file(str(path))
    known = {action.dest for action in launch_command_parser()._actions}
    for name in config.fsdp_config or {}:
        assert name in known, f"accelerate knows no {name}"
    processes = {"one_gpu": 1, "ddp_4_gpus": 4, "fsdp_4_gpus": 4, "ddp_2_nodes": 16}
    assert config.num_processes == processes[path.stem]
    assert config.distributed_type == {"one_gpu": "NO", "fsdp_4_gpus": "FSDP"}.get(path.stem, "MULTI_GPU")


def test_the_folder_example_splits_classes_as_the_picture_world_does():
    from zegclip.data import picture_world_split
    from zegclip.picture_world.classes import CLASS_NAMES

    _, data_args, _ = parse(ROOT / "configs" / "zegclip_folder.yaml")
    split = split_classes(
        CLASS_NAMES, seen=data_args.seen_classes, unseen=data_args.unseen_classes, ignored=data_args.ignored_classes
    )
    expected = picture_world_split("tuning")
    assert (split.names, split.seen_ids, split.unseen_ids) == (expected.names, expected.seen_ids, expected.unseen_ids)
