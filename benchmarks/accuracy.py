"""
How right predictions are: in lower precision, beside other names, as ONNX, and at the limit of patches.

    python benchmarks/accuracy.py precision configs/zegclip_picture_world_inductive.yaml --use_cpu --eval_split test \\
        --num_eval_pictures 100
    python benchmarks/accuracy.py name_sets configs/ldvc_picture_world_inductive.yaml --model ADAPTER --use_cpu
    python benchmarks/accuracy.py patch_limit configs/zegclip_picture_world_inductive.yaml --use_cpu
    python benchmarks/accuracy.py onnx_parity --real_size

The first three evaluate what a configuration says, as `eval.py` does; the model is the embedded one by default.
"""

import copy
import string
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from measuring import RESULTS, print_figures, run_cases, write_report
from peft import get_peft_model
from tqdm import tqdm
from transformers import CLIPConfig

from zegclip import DEFAULT_MODEL, DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation, ZegClipProcessor
from zegclip.errors import reporting_errors
from zegclip.int8 import quantize_vision_tower
from zegclip.loading import load_model, load_processor
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.merging import merge_masks
from zegclip.processing.metrics import class_counts, summarise
from zegclip.processing.windows import WindowLogits, predict_windows, window_boxes
from zegclip.training.arguments import parse_arguments
from zegclip.training.data import load_data
from zegclip.training.pictures import EvaluationPictures


class Evaluated(NamedTuple):
    """What `eval.py` works with; `names` are the tokens of all class names, `windows` their side and step."""

    model: ZegClipForSemanticSegmentation
    split: ClassSplit
    pictures: EvaluationPictures
    names: Any
    windows: tuple[int, int]
    described: dict[str, Any]


def load_evaluated(words: list[str]) -> Evaluated:
    """Load what a configuration and fields on the command line say."""
    model_args, data_args, training_args = parse_arguments(words, program="accuracy.py CASE")
    source = model_args.model or str(DEFAULT_MODEL)
    processor = load_processor(source, model_args.prompt_templates, **data_args.image_processor_fields())
    data, split = load_data(data_args, training=False)
    images = processor.image_processor
    pictures = EvaluationPictures(data["validation"], split, images)
    names = processor(text=list(split.names), return_tensors="pt").to(training_args.device)
    return Evaluated(
        model=load_model(source).to(training_args.device),
        split=split,
        pictures=pictures,
        names=dict(names),
        windows=(images.window_size, images.window_stride),
        described={
            "model": model_args.model or "embedded default model",
            "split": data_args.eval_split,
            "pictures": len(pictures),
        },
    )


@torch.no_grad()
def precision(evaluated: Evaluated) -> dict[str, Any]:
    """How many pixels get the same name in lower precision; int8 where torchao is installed."""
    model, device = evaluated.model, evaluated.model.device
    autocast = "float32 under autocast to bfloat16"
    models: dict[str, Any] = {
        "float32": model,
        "bfloat16": copy.deepcopy(model).to(torch.bfloat16),
        "float16": copy.deepcopy(model).to(torch.float16),
        autocast: model,
    }
    if find_spec("torchao"):
        models["int8"] = copy.deepcopy(model)
        quantize_vision_tower(models["int8"])
    embeds = {}
    for title, one in models.items():
        with torch.autocast(device.type, torch.bfloat16, enabled=title == autocast):
            embeds[title] = one.get_class_embeds(**evaluated.names)
    same: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for sample in tqdm(evaluated.pictures, unit="picture"):
        labels = sample["labels"].to(device)
        maps = {}
        for title, one in models.items():
            pixel_values = sample["pixel_values"][None].to(device, one.dtype)
            with torch.autocast(device.type, torch.bfloat16, enabled=title == autocast):
                windows = predict_windows(one, pixel_values, embeds[title], *evaluated.windows)
            maps[title] = merge_masks(windows, tuple(labels.shape))[0]
            same[title] += int((maps[title] == maps["float32"]).sum())
            right[title] += int((maps[title] == labels).sum())
        same["all"] += labels.numel()
        right["all"] += int((labels != evaluated.split.ignore_index).sum())
    rows = [
        {"precision": title, "same_as_float32": same[title] / same["all"], "right": right[title] / right["all"]}
        for title in models
    ]
    return evaluated.described | {"rows": rows}


@torch.inference_mode()
def name_sets(evaluated: Evaluated) -> dict[str, Any]:
    """
    How much a prediction depends on which other names are asked for.

    Every scene is segmented into the classes that it shows, in two ways: asked for these alone, and asked for all
    names, with the others dropped afterwards. Where class queries never meet, both are the same.
    """
    model = evaluated.model
    class_embeds = model.get_class_embeds(**evaluated.names)
    counts: Counter[str] = Counter()
    for sample in tqdm(evaluated.pictures, unit="picture"):
        labels = sample["labels"].to(model.device)
        valid = labels != evaluated.split.ignore_index
        shown = labels[valid].unique()
        pixel_values = sample["pixel_values"][None].to(model.device)
        alone = predict_windows(model, pixel_values, class_embeds[shown], *evaluated.windows)
        asked = predict_windows(model, pixel_values, class_embeds, *evaluated.windows)
        dropped = replace(asked, logits=asked.logits[:, shown])
        first, second = (shown[merge_masks(windows, tuple(labels.shape))[0]][valid] for windows in (alone, dropped))
        counts["right, asked for the classes that are shown"] += int((first == labels[valid]).sum())
        counts["right, asked for all and others dropped"] += int((second == labels[valid]).sum())
        counts["differing between the two"] += int((first != second).sum())
        counts["all"] += int(valid.sum())
    total = counts.pop("all")
    return evaluated.described | {f"share of pixels {name}": count / total for name, count in counts.items()}


def patch_limit(evaluated: Evaluated) -> dict[str, Any]:
    """
    What a model that names every patch rightly would reach: the limit that patches and windows set.

    Each patch of each window gets the class that most of its pixels have; these labels go through the same windows
    and the same upsampling as a model's scores.
    """
    patch_size = evaluated.model.config.clip_config.vision_config.patch_size
    split, num_classes = evaluated.split, len(evaluated.split.names)
    counts = torch.zeros(3, num_classes)
    for sample in evaluated.pictures:
        labels = sample["labels"]
        boxes = window_boxes(*labels.shape, *evaluated.windows)
        one_hot = F.one_hot(labels.where(labels != split.ignore_index, num_classes), num_classes + 1)
        areas = one_hot[..., :num_classes].permute(2, 0, 1).float()
        logits = []
        for top, left, bottom, right in boxes:
            best = F.avg_pool2d(areas[:, top:bottom, left:right], patch_size).argmax(0)
            logits.append(10 * (F.one_hot(best, num_classes).permute(2, 0, 1) - 0.5))
        predicted, _ = merge_masks(WindowLogits(torch.stack(logits), boxes, *labels.shape))
        counts += class_counts(predicted, labels, num_classes)
    return evaluated.described | dict(summarise(counts.numpy(), split))


METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ZegCLIP": ({}, {}),
    "SPT-SEG": ({"decode_head_type": "spectral"}, {"spectral_prompt": True}),
    "LDVC": (
        {"decode_head_type": "consensus", "num_decoder_layers": 2, "decoder_window_size": 4},
        {"text_prompts": "whole"},
    ),
}


def onnx_parity(real_size: bool = False) -> dict[str, Any]:
    """
    Compare ONNX files with the PyTorch models that they were made from, in float32.

    Those are tiny models of three methods, the embedded one, and with `--real_size` also ViT-B/16 at 512x512, which
    takes gigabytes. Each is exported once and run in onnxruntime on random pictures of several sizes and several
    numbers of names, which are not those that it was traced with.
    """
    processor = load_processor(DEFAULT_MODEL)
    cases: dict[str, tuple[Any, list[tuple[int, int]]]] = {
        f"{method}, tiny": ((method, processor, False), [(64, 64), (61, 150), (200, 40)]) for method in METHODS
    }
    cases["embedded default model"] = ((), [(48, 48), (96, 130), (200, 60)])
    if real_size:
        cases |= {f"{method}, ViT-B/16": ((method, processor, True), [(512, 512), (512, 680)]) for method in METHODS}
    rows = []
    for title, (words, sizes) in cases.items():
        model = random_model(*words) if words else load_model(DEFAULT_MODEL)
        rows += [{"model": title, **row} for row in compare_onnx(model, processor, sizes)]
    return {"dtype": "float32", "rows": rows}


def random_model(method: str, processor: ZegClipProcessor, real_size: bool) -> ZegClipForSemanticSegmentation:
    """Return a method with random weights, on a tiny CLIP or on ViT-B/16, for the default model's tokenizer."""
    head, prompts = METHODS[method]
    tower: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    tower = {} if real_size else {**tower, "num_hidden_layers": 2}
    tokenizer = processor.tokenizer
    text = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text |= {"max_position_embeddings": tokenizer.model_max_length}
    if not real_size:
        text["vocab_size"] = len(tokenizer)
    clip = CLIPConfig(
        projection_dim=512 if real_size else 64,
        vision_config={**tower, "image_size": 512 if real_size else 64, "patch_size": 16 if real_size else 8},
        text_config={**tower, **text},
    )
    if method == "LDVC":
        head = {**head, "out_indices": [7, 11] if real_size else [0, 1]}
        prompts = {**prompts, "text_prompt_ids": processor.text_prompt_ids()}
    torch.manual_seed(0)
    model = ZegClipForSemanticSegmentation(ZegClipConfig(clip_config=clip, **head))
    return get_peft_model(model, DeepPromptConfig(**prompts)).get_base_model().eval()


@torch.no_grad()
def compare_onnx(
    model: ZegClipForSemanticSegmentation, processor: ZegClipProcessor, sizes: list[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Export a model and compare it with its files: a row for each size and number of names."""
    import onnxruntime

    from zegclip.sharing.onnx import TEXT_FILE, VISION_FILE, TextGraph, VisionGraph, export_onnx

    rows = []
    with tempfile.TemporaryDirectory() as text_folder:
        folder = Path(text_folder)
        export_onnx(model, processor, folder)
        megabytes = {path.name: path.stat().st_size / 1e6 for path in folder.iterdir()}
        text, vision = (
            onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
            for name in (TEXT_FILE, VISION_FILE)
        )
        for (height, width), count in zip(sizes, (1, 20, 5)):
            names = [f"{first} {second}" for first in string.ascii_lowercase for second in "ab"][:count]
            tokens = torch.tensor(processor(text=names)["input_ids"]).reshape(
                count, len(processor.prompt_templates), -1
            )
            pictures = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
            (found_embeds,) = text.run(None, {"input_ids": tokens.numpy()})
            (found,) = vision.run(None, {"pixel_values": pictures.numpy(), "class_embeds": found_embeds})
            embeds, logits = torch.from_numpy(found_embeds), torch.from_numpy(found)
            expected_embeds = TextGraph(model)(tokens)
            expected = VisionGraph(model)(pictures, expected_embeds)
            rows.append(
                {
                    "size": f"{height}x{width}",
                    "names": count,
                    "class_embeds": float((embeds - expected_embeds).abs().max()),
                    "logits": float((logits - expected).abs().max()),
                    "largest_logit": float(expected.abs().max()),
                    "same_argmax": float((logits.argmax(1) == expected.argmax(1)).double().mean()),
                    "vision_mb": megabytes[VISION_FILE],
                    "text_mb": megabytes[TEXT_FILE],
                }
            )
    return rows


def main() -> None:
    """Run the case that the command line names; those of a configuration take its fields."""
    name, *words = sys.argv[1:] or ["--help"]
    evaluating = {case.__name__: case for case in (precision, name_sets, patch_limit)}
    if name not in evaluating:
        return run_cases(__doc__, onnx_parity, *evaluating.values())
    with reporting_errors("accuracy.py"):
        figures = evaluating[name](load_evaluated(words))
    print_figures(figures)
    write_report(RESULTS / f"{name}.json", figures)


if __name__ == "__main__":
    main()
