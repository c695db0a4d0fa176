"""Every configuration in `configs/` can be read, and describes what the papers train."""

import importlib
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from huggingface_hub.errors import StrictDataclassError
from peft import get_peft_model
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN

from zegclip import DEFAULT_MODEL, ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.loading import config_of_base, load_processor
from zegclip.picture_world.classes import CLASS_NAMES
from zegclip.processing.benchmarks import benchmark_split
from zegclip.processing.class_split import split_classes
from zegclip.training.arguments import SETTINGS, parse_arguments
from zegclip.training.data import picture_world_split
from zegclip.training.evaluate import evaluate
from zegclip.training.optimization import poly_schedule
from zegclip.training.run_folder import stages_of

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
GOLDEN_RATES = json.loads((Path(__file__).parent / "goldens" / "zegclip_lr_schedule.json").read_text())
STEPS = {"voc": 20_000, "coco_stuff": 80_000, "pascal_context": 40_000}
# Weights of focal, dice and SSIM.
LOSSES = {"zegclip": (100, 1, 0), "spt_seg": (100, 0, 1), "ldvc": (100, 1, 0)}
# Visual prompts on VOC; on the others there are 100.
VOC_PROMPTS = {"zegclip": 10, "spt_seg": 10, "ldvc": 40}
# How many parameters of ViT-B/16 a method trains with a number of visual prompts, as the specifications count them.
TRAINED = {
    ("zegclip", 10): 8_039_168, ("zegclip", 100): 8_868_608, ("spt_seg", 10): 10_524_224,
    ("spt_seg", 100): 11_353_664, ("ldvc", 40): 10_717_952, ("ldvc", 100): 11_270_912,
}  # fmt: skip
# What the other methods' files say otherwise than ZegCLIP's, or beyond them, besides the number of visual prompts.
OWN_FIELDS = {
    "spt_seg": {
        "spectral_prompt": True,
        "spectral_layers": [0, 1],
        "decode_head_type": "spectral",
        "num_decoder_layers": 3,
        "decoder_attention_heads": 8,
        "decoder_low_frequency_heads": 7,
        "decoder_window_size": 3,
        "dice_weight": 0,
        "ssim_weight": 1,
        "ssim_of_probabilities": False,
    },
    "ldvc": {
        "text_prompts": "whole",
        "text_prompt_init": "template",
        "prompt_templates": ["a photo of a {}"],
        "decode_head_type": "consensus",
        "num_decoder_layers": 2,
        "decoder_window_size": 4,
        "decoder_top_k": 16,
        "out_indices": [7, 11],
        "descriptor": ["product", "text"],
        "decoder_attention_heads": 8,
        "decoder_ffn_dim": 2048,
    },
}
# "a photo of a" by CLIP's tokenizer.
TEMPLATE_IDS = [49406, 320, 1125, 539, 320, 49407]
# Classes of each data set of the open-vocabulary papers, and where its files lie: pictures, masks, list, mask values.
NUM_CLASSES = {
    "voc20": 20, "voc21": 21, "context59": 59, "context60": 60, "coco_stuff": 171, "coco_object": 81, "ade20k": 150,
    "cityscapes": 19,
}  # fmt: skip
FILES = {
    "voc": ("JPEGImages/1.jpg", "SegmentationClass/1.png", "ImageSets/Segmentation/val.txt", range(21)),
    "context": (
        "JPEGImages/1.jpg", "SegmentationClassContext/1.png", "ImageSets/SegmentationContext/val.txt", range(60)
    ),
    "coco": ("images/val2017/1.jpg", "annotations/val2017/1_labelTrainIds.png", None, (*range(171), 255)),
    "ade20k": ("images/validation/1.jpg", "annotations/validation/1.png", None, range(151)),
    "cityscapes": (
        "leftImg8bit/val/ulm/1_leftImg8bit.png", "gtFine/val/ulm/1_gtFine_labelIds.png", None, range(34)
    ),
}  # fmt: skip
TRAINING_FREE = [path for path in CONFIGS if path.stem.startswith("training_free_")]
RUNS = set(product(LOSSES, STEPS, ("inductive", "transductive", "fully_supervised")))
TRAINING = [path for path in CONFIGS if path.stem.startswith(tuple(f"{m}_{d}" for m, d in product(LOSSES, STEPS)))]


def parse(path, *words):
    return parse_arguments([str(path), "--use_cpu", *words])


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def draw_benchmark(name, root):
    """Draw a validation picture of a data set, each row of its mask another value."""
    picture, mask, listed, values = next(files for start, files in FILES.items() if name.startswith(start))
    content = np.repeat(np.array(values, dtype=np.uint8)[:, None], 40, axis=1)
    image = np.random.default_rng(0).integers(256, size=(*content.shape, 3), dtype=np.uint8)
    for path, pixels in ((root / picture, image), (root / mask, content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    if listed is not None:
        (root / listed).parent.mkdir(parents=True)
        (root / listed).write_text("1\n")


def method_and_data_set(path):
    return next((m, d) for m, d in product(LOSSES, STEPS) if path.stem.startswith(f"{m}_{d}_"))


def visual_prompts(path):
    method, data_set = method_and_data_set(path)
    return VOC_PROMPTS[method] if data_set == "voc" else 100


def tune(config, model_args, data_args, text_prompt_ids=(0, 322, 517, 518, 322, 1)):
    """The model that is trained, without memory for its weights; by default with token ids of the embedded CLIP."""
    patch = config.clip_config.vision_config.patch_size
    with torch.device("meta"):
        model = ZegClipForSemanticSegmentation(config)
        return get_peft_model(model, model_args.prompt_config(data_args.crop_size // patch, list(text_prompt_ids)))


def test_there_is_one_for_each_method_data_set_and_setting():
    assert sorted(path.stem for path in TRAINING) == sorted("_".join(run) for run in RUNS)
    assert len(TRAINING) == 3 * 3 * 3
    assert {"zegclip_coco_to_voc", "zegclip_coco_to_context"} <= {path.stem for path in CONFIGS}
    assert sorted(path.stem for path in TRAINING_FREE) == sorted(f"training_free_{name}" for name in NUM_CLASSES)


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
    model = tune(config, model_args, data_args, TEMPLATE_IDS)
    assert model_args.num_prompt_tokens == visual_prompts(path)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == TRAINED[method, visual_prompts(path)]
    assert (config.focal_weight, config.dice_weight, config.ssim_weight) == LOSSES[method]
    # Text prompts stand for one.
    assert len(model_args.prompt_templates) == (1 if data_args.dataset == "voc" or method == "ldvc" else 15)


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
    assert names <= read(path).keys()
    assert read(path).get("double_class_embedding", False) is not path.stem.startswith("ldvc")


@pytest.mark.parametrize("method", OWN_FIELDS)
@pytest.mark.parametrize("path", [p for p in TRAINING if p.stem.startswith("zegclip")], ids=lambda path: path.stem)
def test_the_other_methods_are_trained_as_zegclip_is(path, method):
    """SPT-SEG has published no training configuration, LDVC no code; and nothing of their own is left to defaults."""
    other = path.with_name(path.name.replace("zegclip", method))
    written_anew = {"num_prompt_tokens": visual_prompts(other), "output_dir": f"outputs/{other.stem}"}
    expected = read(path) | OWN_FIELDS[method] | written_anew
    if method == "ldvc":
        del expected["double_class_embedding"]  # which is of the code that ZegCLIP and SPT-SEG share
    assert read(other) == expected


@pytest.mark.parametrize("data", ["picture_world_inductive", *(f"{d}_inductive" for d in STEPS), "folder"])
def test_the_recipe_is_spt_seg_with_one_change(data):
    changed = {"training_free_weight": 0.1, "output_dir": f"outputs/recipe_{data}"}
    assert read(ROOT / "configs" / f"recipe_{data}.yaml") == read(ROOT / "configs" / f"spt_seg_{data}.yaml") | changed


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_can_read_the_launch_file(path):
    config = load_config_from_file(str(path))
    known = {action.dest for action in launch_command_parser()._actions}
    for name in config.fsdp_config or {}:
        assert name in known, f"accelerate knows no {name}"
    processes = {"one_gpu": 1, "ddp_4_gpus": 4, "fsdp_4_gpus": 4, "ddp_2_nodes": 16}
    assert config.num_processes == processes[path.stem]
    assert config.distributed_type == {"one_gpu": "NO", "fsdp_4_gpus": "FSDP"}.get(path.stem, "MULTI_GPU")


@pytest.mark.parametrize("method", LOSSES)
def test_the_folder_example_splits_classes_as_the_picture_world_does(method):
    _, data_args, _ = parse(ROOT / "configs" / f"{method}_folder.yaml")
    split = split_classes(
        CLASS_NAMES, seen=data_args.seen_classes, unseen=data_args.unseen_classes, ignored=data_args.ignored_classes
    )
    expected = picture_world_split("tuning")
    assert (split.names, split.seen_ids, split.unseen_ids) == (expected.names, expected.seen_ids, expected.unseen_ids)


@pytest.mark.parametrize("path", TRAINING_FREE, ids=lambda path: path.stem)
def test_a_training_free_configuration_runs_as_the_papers_do(path, clip_folder, tmp_path, capsys):
    """On a miniature of its data set, with a tiny CLIP; sizes and threshold are those of NACLIP."""
    name = path.stem.removeprefix("training_free_")
    data, output = tmp_path / "data", tmp_path / "output"
    draw_benchmark(name, data)
    words = ["--model", clip_folder, "--data_dir", data, "--output_dir", output, "--dataloader_num_workers", 0]
    model_args, data_args, _ = parse(path, *map(str, words))
    thresholds = {"voc21": 0.1, "context60": 0.1, "coco_object": 0.1}
    assert data_args.background_threshold == thresholds.get(name, 0)
    processor = load_processor(clip_folder, model_args.prompt_templates, **data_args.image_processor_fields())
    images = processor.image_processor
    assert dict(images.size) == {"shortest_edge": 560 if name == "cityscapes" else 336, "longest_edge": 2048}
    assert (images.window_size, images.window_stride) == ((None, None) if name.startswith("voc") else (224, 112))
    assert list(images.image_mean) == list(OPENAI_CLIP_MEAN)
    assert len(processor.prompt_templates) == 80

    template = "a photo of a {}"  # 80 of them would take a minute
    small = ["--image_size", "32"]
    if not name.startswith("voc"):
        small += ["--window_size", "32", "--window_stride", "16"]
    results = evaluate([str(path), *map(str, words), *small, "--prompt_templates", template, "--use_cpu"])
    rows = {title: figures for title, figures in results.items() if title.startswith("model, ")}
    assert len(rows) == 2
    if name.startswith("voc"):
        assert len({json.dumps(figures) for figures in rows.values()}) == 1
    for figures in rows.values():
        assert 0 <= figures["miou"] <= 100
        assert "hiou" not in figures
    assert "1 pictures" in capsys.readouterr().out
    folder = output / f"eval_{data_args.dataset}_validation"
    (table,) = folder.glob("per_class_model_papers_protocol*.csv")
    with table.open() as file:
        assert sum(1 for _ in file) - 1 == NUM_CLASSES[name]


OF_EMBEDDED = [path for path in CONFIGS if "max_steps" in read(path) and "model" not in read(path)]


@pytest.mark.parametrize("path", OF_EMBEDDED, ids=lambda path: path.stem)
def test_what_names_no_model_fits_the_embedded_one(path):
    """Whose configuration the file's fields replace, as they do in `load_base`."""
    model_args, data_args, _ = parse(path)
    embedded = ZegClipConfig.from_pretrained(DEFAULT_MODEL)
    config = config_of_base(embedded, model_args.config_overrides())
    tune(config, model_args, data_args)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_run_of_a_study_can_be_trained_and_is_shown(path, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    described = read(path)
    configs = importlib.import_module("picture_world").write_configs(described, tmp_path, DEFAULT_MODEL)
    shown = {run for rows in described["tables"].values() for run in rows.values()}
    assert configs.keys() == described["runs"].keys() == shown
    clip_config = ZegClipConfig.from_pretrained(DEFAULT_MODEL).clip_config
    seen = {}
    for name, config in configs.items():
        model_args, data_args, _ = parse(config)
        run = described["runs"][name]
        run = described["runs"].get(run.get("of"), {}) | run
        base = read(ROOT / "configs" / run["config"])
        for field, value in (base | run).items():
            if field not in ("config", "of", "output_dir"):
                assert read(config).get(field) == value
        if "max_steps" in base:
            tune(ZegClipConfig(clip_config=clip_config, **model_args.config_overrides()), model_args, data_args)
        seen[json.dumps(read(config), sort_keys=True)] = name
    assert len(seen) == len(configs)  # no run stands for another


@pytest.mark.parametrize(
    ("run", "named"),
    [
        ({"text_prompts": "wohle"}, "text_prompts"),
        ({"out_indices": [3]}, "vision tower"),
        ({"decoder_topk": 3}, "'decoder_topk'"),
    ],
)
def test_a_study_is_refused_before_its_first_run(tmp_path, monkeypatch, run, named):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    write_configs = importlib.import_module("picture_world").write_configs
    runs = {"one": {"config": "ldvc_picture_world_inductive.yaml"} | run}
    for shown, refused in (("one", named), ("two", "'row' .* 'A' .* 'two'")):
        with pytest.raises((ValueError, StrictDataclassError), match=refused):
            write_configs({"runs": runs, "tables": {"A": {"row": shown}}}, tmp_path, DEFAULT_MODEL)
