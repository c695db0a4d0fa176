"""Every configuration in `configs/` can be read, and describes what the papers train."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from peft import get_peft_model

from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.arguments import SETTINGS, parse_arguments
from zegclip.processing.benchmarks_zegclip import benchmark_split
from zegclip.processing.class_split_zegclip import split_classes
from zegclip.runs import stages_of
from zegclip.trainer import poly_schedule

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
GOLDEN_RATES = json.loads((Path(__file__).parent / "goldens" / "zegclip_lr_schedule.json").read_text())
# Specification section 8, what is really trained: tables of 10 and of 100 prompts.
TRAINED = {10: 8_039_168, 100: 8_868_608}
STEPS = {"voc": 20_000, "coco_stuff": 80_000, "pascal_context": 40_000}
TRAINING = [path for path in CONFIGS if path.stem.startswith(tuple(f"zegclip_{name}" for name in STEPS))]


def parse(path, *words):
    return parse_arguments([str(path), "--use_cpu", *words])


def test_there_is_one_for_each_data_set_and_setting():
    names = {path.stem for path in CONFIGS}
    for dataset in STEPS:
        assert {f"zegclip_{dataset}_{s}" for s in ("inductive", "transductive", "fully_supervised")} <= names
    assert {"zegclip_coco_to_voc", "zegclip_coco_to_context"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_can_be_read_and_says_whose_folder_it_writes(path):
    _, data_args, training_args = parse(path)
    assert training_args.output_dir == f"outputs/{path.stem}"
    if path.stem.endswith(SETTINGS):
        assert path.stem.endswith(data_args.setting)


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_it_trains_the_papers_model(path):
    model_args, data_args, _ = parse(path)
    split = benchmark_split(data_args.dataset)
    config = ZegClipConfig(**model_args.config_overrides(), seen_class_names=split.seen_names)
    with torch.device("meta"):
        model = ZegClipForSemanticSegmentation(config)
        model = get_peft_model(model, DeepPromptConfig(num_tokens=model_args.num_prompt_tokens))
    assert model_args.num_prompt_tokens == (10 if data_args.dataset == "voc" else 100)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == TRAINED[model_args.num_prompt_tokens]
    assert len(model_args.prompt_templates) == (1 if data_args.dataset == "voc" else 15)


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_it_follows_the_papers_schedule(path):
    dataset = next(name for name in STEPS if path.stem.startswith(f"zegclip_{name}"))
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
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in (
        "model", "num_prompt_tokens", "prompt_templates", "max_steps", "total_train_batch_size", "learning_rate",
        "weight_decay", "warmup_steps", "focal_weight", "dice_weight", "crop_size", "scale_range", "image_size",
        "window_size", "window_stride", "seed",
    ):  # fmt: skip
        assert name in written


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
