"""Writing a model as ONNX files, which run without PyTorch and transformers."""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.image_utils import PILImageResampling, SizeDict

from zegclip.errors import UsageError
from zegclip.modeling.modeling_zegclip import ZegClipForSemanticSegmentation
from zegclip.modeling.prompt_layers import TextPromptLayer
from zegclip.processing.processing_zegclip import ZegClipProcessor
from zegclip.sharing.any_size import functions_for_any_size

VISION_FILE = "vision.onnx"
TEXT_FILE = "text.onnx"
TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "zegclip.json"
OPSET = 18
"""Of ONNX; from December 2022, so that old runtimes know it."""
TOLERANCE = 1e-4
"""Largest difference between ONNX and PyTorch, of logits, or their cosines, and of embeddings of length 1."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# A dynamic axis must not be of length 0 or 1 while a graph is traced.
_TRACED_NAMES = ("a", "b", "c")


class VisionGraph(nn.Module):
    """What `vision.onnx` computes: pictures and class embeddings in, mask logits out."""

    def __init__(self, model: ZegClipForSemanticSegmentation):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, class_embeds: torch.Tensor) -> torch.Tensor:
        """`(batch, 3, height, width)` and `(names, dim)` float32 to `(batch, names, rows, columns)`."""
        with functions_for_any_size():
            return self.model(pixel_values=pixel_values, class_embeds=class_embeds).logits


class TextGraph(nn.Module):
    """What `text.onnx` computes: token ids in, class embeddings out, averaged over templates."""

    def __init__(self, model: ZegClipForSemanticSegmentation):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`(names, templates, length)` int64 to `(names, dim)`; padding behind the end token has no effect."""
        return self.model.get_class_embeds(input_ids.flatten(0, 1), num_templates=input_ids.shape[1])


def export_onnx(model: ZegClipForSemanticSegmentation, processor: ZegClipProcessor, folder: Path) -> None:
    """
    Write a model as `vision.onnx`, `text.onnx`, `tokenizer.json` and `zegclip.json`, with its active adapter.

    The numbers of pictures, names, templates and tokens, height and width are dynamic axes; weights are float32.
    [`check_onnx`] compares the files with the model.

    Args:
        model: In eval mode, on the CPU.
        processor: Of the model.
        folder: Exists; files in it are overwritten. Make it a temporary one, as a failure leaves it in part.

    Raises:
        UsageError: One sentence, if a package is missing, the model is not in float32, its processor does something
            that `zegclip.json` cannot express, or its template is not that of the adapter's text prompts.
    """
    check_packages()
    if model.dtype != torch.float32:
        raise UsageError(f"ONNX files are written in float32, but the model is in {model.dtype}: load it in float32.")
    settings = describe(model, processor)
    tokens = torch.tensor(_tokenize(processor, _TRACED_NAMES, repeats=2))
    patch = settings["patch_size"]
    pictures = torch.zeros(2, 3, 9 * patch - 1, 11 * patch - 1)
    embeds = torch.zeros(len(_TRACED_NAMES), settings["embedding_size"])
    with _prepared(model, processor.tokenizer.eos_token_id):
        _write(
            TextGraph(model),
            folder / TEXT_FILE,
            {"input_ids": (tokens, {0: "names", 1: "templates", 2: "length"})},
            "class_embeds",
        )
        _write(
            VisionGraph(model),
            folder / VISION_FILE,
            {
                "pixel_values": (pictures, {0: "batch", 2: "height", 3: "width"}),
                "class_embeds": (embeds, {0: "names"}),
            },
            "logits",
        )
    (folder / TOKENIZER_FILE).write_text(processor.tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / SETTINGS_FILE).write_text(f"{text}\n", encoding="utf-8")


def check_packages() -> None:
    """Raise a `UsageError` unless everything is installed that export and check need."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"ONNX files need {', '.join(missing)}, not installed here: pip install 'zegclip[onnx]'.")


def describe(model: ZegClipForSemanticSegmentation, processor: ZegClipProcessor) -> dict[str, Any]:
    """
    Describe what a program has to do around the two graphs: prepare pictures and names, and cut windows.

    Raises:
        UsageError: As [`export_onnx`].
    """
    pictures = processor.image_processor
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not getattr(pictures, step):
            raise UsageError(
                f"An ONNX folder always resizes, rescales and normalises, but the processor has {step}=False."
            )
    if pictures.resample != PILImageResampling.BILINEAR:
        raise UsageError(f"An ONNX folder resizes bilinearly, but the processor has resample={pictures.resample}.")
    tokenizer = processor.tokenizer
    if tokenizer.padding_side != "right":
        raise UsageError("An ONNX folder pads texts on the right, but the tokenizer has padding_side='left'.")
    clip = model.config.clip_config
    length = min(tokenizer.model_max_length, clip.text_config.max_position_embeddings)
    encoder = model.clip.text_model.encoder
    adapter = encoder.active_name() if isinstance(encoder, TextPromptLayer) else None
    if adapter is not None:
        config = encoder.prompt_configs[adapter]
        if processor.text_prompt_ids() != list(config.text_prompt_ids):
            raise UsageError(
                f"This adapter's text prompts stand for another template than {processor.prompt_templates[0]!r}: use "
                "the processor that is saved with the adapter."
            )
        if config.text_prompts == "whole":  # one token more, for which the graph makes room
            length = min(length, clip.text_config.max_position_embeddings - 1)
    size = SizeDict(**pictures.size) if isinstance(pictures.size, dict) else pictures.size
    return {
        "format": 1,
        "method": model.config.decode_head_type,
        "score_function": model.config.score_function,
        "prompt_templates": list(processor.prompt_templates),
        "context_length": length,
        "pad_token_id": tokenizer.pad_token_id,
        "embedding_size": clip.projection_dim,
        "patch_size": clip.vision_config.patch_size,
        "size": {name: value for name, value in dict(size).items() if value is not None},
        "rescale_factor": pictures.rescale_factor,
        "image_mean": list(pictures.image_mean),
        "image_std": list(pictures.image_std),
        "window_size": pictures.window_size,
        "window_stride": pictures.window_stride,
    }


def check_onnx(model: ZegClipForSemanticSegmentation, processor: ZegClipProcessor, folder: Path) -> dict[str, float]:
    """
    Run the files in onnxruntime, on other sizes and numbers than they were traced with, beside the model.

    Returns:
        The largest difference of `class_embeds` and of `logits`.

    Raises:
        UsageError: One sentence, if one of them is above `TOLERANCE`, times the scale of logits that are cosines.
    """
    patch = model.config.clip_config.vision_config.patch_size
    differences = {"class_embeds": 0.0, "logits": 0.0}
    for names, batch, rows, columns in ((["a"], 1, 7, 4), (list("abcde"), 3, 5, 16)):
        size = (rows * patch, columns * patch - patch // 2)
        for output, difference in compare(model, processor, folder, names, batch, size).items():
            differences[output] = float(np.maximum(differences[output], difference))  # `max` would lose a NaN
    scale = model.config.similarity_scale if model.config.score_function == "softmax" else 1.0
    for output, difference in differences.items():
        limit = TOLERANCE * (scale if output == "logits" else 1.0)
        if not difference <= limit:
            raise UsageError(
                f"{output} of the ONNX files differ from the model's by {difference:.1e}, more than {limit:.0e}: "
                "onnxruntime may be too old."
            )
    return differences


def compare(
    model: ZegClipForSemanticSegmentation,
    processor: ZegClipProcessor,
    folder: Path,
    names: Sequence[str],
    batch: int,
    size: tuple[int, int],
) -> dict[str, float]:
    """Return how far `class_embeds` and `logits` of ONNX files are from the model's, for random pictures of a size."""
    import onnxruntime

    tokens = np.array(_tokenize(processor, names))
    pictures = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    text = onnxruntime.InferenceSession(folder / TEXT_FILE, providers=["CPUExecutionProvider"])
    vision = onnxruntime.InferenceSession(folder / VISION_FILE, providers=["CPUExecutionProvider"])
    (embeds,) = text.run(None, {"input_ids": tokens})
    (logits,) = vision.run(None, {"pixel_values": pictures.numpy(), "class_embeds": embeds})
    with torch.no_grad():
        inputs = processor(text=list(names), return_tensors="pt")
        expected_embeds = model.get_class_embeds(**inputs)
        expected_logits = model(pixel_values=pictures, class_embeds=expected_embeds).logits
    return {
        "class_embeds": float(np.abs(embeds - expected_embeds.numpy()).max()),
        "logits": float(np.abs(logits - expected_logits.numpy()).max()),
    }


def _tokenize(processor: ZegClipProcessor, names: Sequence[str], repeats: int = 1) -> list[list[list[int]]]:
    """Token ids `(names, templates, length)`; the templates come `repeats` times."""
    rows = processor(text=list(names))["input_ids"]
    count = len(processor.prompt_templates)
    return [rows[start : start + count] * repeats for start in range(0, len(rows), count)]


@contextlib.contextmanager
def _prepared(model: ZegClipForSemanticSegmentation, end_token_id: int) -> Iterator[None]:
    """Use SDPA, and the tokenizer's end token: in a graph, the text tower gets no attention mask to find it."""
    text_model = model.clip.text_model
    implementation, configured = model.config._attn_implementation, text_model.eos_token_id
    model.set_attn_implementation("sdpa")
    text_model.eos_token_id = end_token_id
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)
        text_model.eos_token_id = configured


def _write(graph: nn.Module, path: Path, inputs: dict[str, tuple[torch.Tensor, dict[int, str]]], output: str) -> None:
    """Trace a graph and write it, without metadata about the machine that it was traced on."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with _quiet():
        program = torch.onnx.export(
            graph,
            tuple(tensor for tensor, _ in inputs.values()),
            dynamic_shapes=tuple(axes for _, axes in inputs.values()),
            input_names=list(inputs),
            output_names=[output],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise UsageError(f"{path.name} could not be traced.")
    # Exporters attach names of source files and the like to every node.
    ClearMetadataAndDocStringPass()(program.model)
    onnx_ir.save(program.model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of exporters that do not matter here, such as that torchvision is not installed."""
    loud = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(loud)
