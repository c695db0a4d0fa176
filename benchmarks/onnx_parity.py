"""
Compare ONNX files with the PyTorch models that they were made from.

    python benchmarks/onnx_parity.py                # tiny models of three methods, and the embedded default model
    python benchmarks/onnx_parity.py --real_size    # also ViT-B/16 at 512x512, with random weights: takes gigabytes

Each model is exported once and run in onnxruntime on random pictures of several sizes and several numbers of names,
which are not those that it was traced with. Prints a table as Markdown and writes it as JSON.
"""

import string
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript
import torch
from measuring import ArgumentParser, print_table, write_report
from peft import get_peft_model
from transformers import CLIPConfig

import zegclip
from zegclip import ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.loading import load_model, load_processor
from zegclip.modeling.prompt_config import DeepPromptConfig
from zegclip.processing.processing_zegclip import ZegClipProcessor
from zegclip.sharing.onnx import TEXT_FILE, VISION_FILE, TextGraph, VisionGraph, export_onnx

METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ZegCLIP": ({}, {}),
    "SPT-SEG": ({"decode_head_type": "spectral"}, {"spectral_prompt": True}),
    "LDVC": (
        {"decode_head_type": "consensus", "num_decoder_layers": 2, "decoder_window_size": 4},
        {"text_prompts": "whole"},
    ),
}
SEED = 0


def build(method: str, processor: ZegClipProcessor, real_size: bool) -> ZegClipForSemanticSegmentation:
    """Return a method with random weights, on a tiny CLIP or on ViT-B/16, for the default model's tokenizer."""
    head, prompts = METHODS[method]
    tower = {} if real_size else {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    depth = {} if real_size else {"num_hidden_layers": 2}
    tokenizer = processor.tokenizer
    text = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text |= {"pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": tokenizer.model_max_length}
    if not real_size:
        text["vocab_size"] = len(tokenizer)
    clip = CLIPConfig(
        projection_dim=512 if real_size else 64,
        vision_config={**tower, **depth, "image_size": 512 if real_size else 64, "patch_size": 16 if real_size else 8},
        text_config={**tower, **depth, **text},
    )
    if method == "LDVC":
        head = {**head, "out_indices": [7, 11] if real_size else [0, 1]}
        prompts = {**prompts, "text_prompt_ids": processor.text_prompt_ids()}
    torch.manual_seed(SEED)
    model = ZegClipForSemanticSegmentation(ZegClipConfig(clip_config=clip, **head))
    return get_peft_model(model, DeepPromptConfig(**prompts)).get_base_model().eval()


def measure(
    model: ZegClipForSemanticSegmentation, processor: ZegClipProcessor, sizes: list[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Export a model and compare it with its files: a row for each size and number of names."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        export_onnx(model, processor, folder)
        megabytes = {path.name: path.stat().st_size / 1e6 for path in folder.iterdir()}
        text, vision = (
            onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
            for name in (TEXT_FILE, VISION_FILE)
        )
        for (height, width), count in zip(sizes, (1, 20, 5)):
            names = [f"{first} {second}" for first in string.ascii_lowercase for second in "ab"][:count]
            tokens = np.array(processor(text=names)["input_ids"]).reshape(count, len(processor.prompt_templates), -1)
            pictures = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(SEED))
            (embeds,) = text.run(None, {"input_ids": tokens})
            (logits,) = vision.run(None, {"pixel_values": pictures.numpy(), "class_embeds": embeds})
            with torch.no_grad():
                expected_embeds = TextGraph(model)(torch.from_numpy(tokens))
                expected = VisionGraph(model)(pictures, expected_embeds).numpy()
            rows.append(
                {
                    "size": f"{height}x{width}",
                    "names": count,
                    "class_embeds": float(np.abs(embeds - expected_embeds.numpy()).max()),
                    "logits": float(np.abs(logits - expected).max()),
                    "largest_logit": float(np.abs(expected).max()),
                    "same_argmax": float((logits.argmax(1) == expected.argmax(1)).mean()),
                    "vision_mb": megabytes[VISION_FILE],
                    "text_mb": megabytes[TEXT_FILE],
                }
            )
    return rows


COLUMNS = {
    "model": "{model}",
    "size": "{size}",
    "names": "{names}",
    "class_embeds": "{class_embeds:.1e}",
    "logits": "{logits:.1e}",
    "largest_logit": "{largest_logit:.2f}",
    "same_argmax": "{same_argmax:.2%}",
    "vision_mb": "{vision_mb:.2f}",
    "text_mb": "{text_mb:.2f}",
}


def main() -> None:
    """Parse the command line, compare, print the table and save it as JSON."""
    parser = ArgumentParser(__doc__, "onnx_parity.json")
    parser.add_argument("--real_size", action="store_true", help="also ViT-B/16 at 512x512")
    arguments = parser.parse_args()
    processor = load_processor(zegclip.DEFAULT_MODEL)
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        found = measure(build(method, processor, real_size=False), processor, [(64, 64), (61, 150), (200, 40)])
        rows += [{"model": f"{method}, tiny", **row} for row in found]
    found = measure(load_model(zegclip.DEFAULT_MODEL), processor, [(48, 48), (96, 130), (200, 60)])
    rows += [{"model": "embedded default model", **row} for row in found]
    for method in METHODS if arguments.real_size else ():
        found = measure(build(method, processor, real_size=True), processor, [(512, 512), (512, 680)])
        rows += [{"model": f"{method}, ViT-B/16", **row} for row in found]
    print_table(rows, COLUMNS)
    write_report(arguments.output, {"dtype": "float32", "rows": rows}, onnx, onnxruntime, onnxscript)


if __name__ == "__main__":
    main()
