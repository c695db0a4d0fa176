"""
What `compare_builds.py` runs with one build or the other: makes models, or loads them and writes what they compute.

    python .ci/build_probe.py make FOLDER GOLDENS    with the old build
    python .ci/build_probe.py outputs OLD_FOLDER OWN_FOLDER GOLDENS
    python .ci/build_probe.py bare FOLDER FILE       an exported folder, without this package

It imports nothing of this package but public names, so that modules may move.
"""

import json
import shutil
import string
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

mode, *places = sys.argv[1:]
if mode == "bare":
    sys.modules["zegclip"] = None  # type: ignore[assignment]
from peft import PeftModel, get_peft_model  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSemanticSegmentation,
    AutoProcessor,
    CLIPConfig,
    CLIPTokenizer,
    pipeline,
)
from transformers.utils import logging  # noqa: E402

if mode != "bare":
    import zegclip
    from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation
    from zegclip.modeling.convert_official_checkpoint import convert

logging.disable_progress_bar()
warnings.simplefilter("ignore")

NAMES = ["house", "clock", "grass", "night"]
VOCABULARY = 99
TEMPLATE = [5, 6, 7]
TEXT = {"vocab_size": VOCABULARY, "bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1, "pad_token_id": 0}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
SMALL = {"decoder_attention_heads": 4, "decoder_ffn_dim": 64}
HEADS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zegclip": ({"descriptor": ["product", "text", "difference"]}, {"num_deep_layers": 2}),
    "spectral": (
        {"decoder_low_frequency_heads": 3, "decoder_window_size": 2, "dice_weight": 0.0, "ssim_weight": 1.0},
        {"spectral_prompt": True, "spectral_grid_size": 6, "double_class_embedding": True},
    ),
    "consensus": (
        {"num_decoder_layers": 2, "out_indices": [1, 3], "decoder_window_size": 2, "decoder_top_k": 3},
        {"text_prompts": "whole", "text_prompt_ids": [VOCABULARY - 2, *TEMPLATE, VOCABULARY - 1]},
    ),
}
GOLDENS = {"zegclip": ("zegclip_a_inductive", "sd."), "spt-seg": ("spt_c_grid6_transductive", "state_dict.")}


def make(folder: Path, goldens: Path) -> None:
    """Save random models in all ways, and an official checkpoint."""
    torch.manual_seed(0)
    vision = {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 16, "image_size": 224}
    vit = ZegClipForSemanticSegmentation(ZegClipConfig(clip_config=CLIPConfig(vision_config=vision, text_config=TEXT)))
    vit.save_pretrained(folder / "vit")
    small = CLIPConfig(
        projection_dim=32,
        vision_config={**TOWER, "image_size": 48, "patch_size": 8},
        text_config={**TOWER, **TEXT, "max_position_embeddings": 32},
    )
    base = ZegClipForSemanticSegmentation(ZegClipConfig(clip_config=small))
    base.clip.save_pretrained(folder / "clip")
    for head, (own, prompts) in HEADS.items():
        fields = {"decode_head_type": head, **SMALL, **own}
        full = ZegClipConfig(clip_config=small, **fields)
        ZegClipForSemanticSegmentation(full).save_pretrained(folder / f"{head}_full")
        config = {"num_tokens": 3, "dropout": 0.0, **prompts}
        with_peft = get_peft_model(load(folder / "clip", **fields), DeepPromptConfig(**config))
        stir(with_peft)
        with_peft.save_pretrained(folder / f"{head}_peft")
        with_transformers = load(folder / "clip", **fields)
        with_transformers.add_adapter(DeepPromptConfig(**config))
        stir(with_transformers)
        with_transformers.save_pretrained(folder / f"{head}_transformers")
    shutil.copytree(zegclip.DEFAULT_MODEL, folder / "embedded")
    words = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=32).save_pretrained(folder / "tokenizer")
    official = {}
    for name, tensor in read_golden(goldens, "zegclip").items():
        shape = list(tensor.shape)
        if name.startswith("backbone."):
            # Widths that the head counts of ViT-B/16 divide, which the command takes for granted.
            shape = [{64: 48, 192: 144}.get(side, side) for side in shape]
        if name == "text_encoder.token_embedding.weight":
            shape[0] = len(words)
        official[name] = torch.randn(shape)
    torch.save({"state_dict": official, "meta": {"epoch": 1}}, folder / "official.pth")


def stir(model: Any) -> None:
    """Give what is trained values as of a training, as some of it starts from zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)


def load(folder: Path | str, **fields: Any) -> Any:
    """Load a model as users do."""
    return ZegClipForSemanticSegmentation.from_pretrained(folder, **fields).eval()


def read_golden(goldens: Path, method: str) -> dict[str, torch.Tensor]:
    """Return the official state dict of a file of golden outputs."""
    stem, prefix = GOLDENS[method]
    with safe_open(goldens / f"{stem}.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def compute(model: Any, size: tuple[int, int] = (48, 64)) -> dict[str, torch.Tensor]:
    """Return logits and losses for random pictures, with names as tokens and as embeddings."""
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(2, 3, *size, generator=generator)
    labels = torch.randint(0, 4, (2, *size), generator=generator)
    labels[:, :5] = 255
    text = model.config.clip_config.text_config
    tokens = torch.randint(1, text.vocab_size - 2, (4, 7), generator=generator)
    tokens[:, 0], tokens[:, -1] = text.bos_token_id, text.eos_token_id
    tokens[:, 1:4] = torch.tensor(TEMPLATE)  # which text prompts stand for
    embeds = torch.nn.functional.normalize(
        torch.randn(4, model.config.clip_config.projection_dim, generator=generator)
    )
    with torch.no_grad():
        class_embeds = model.eval().get_class_embeds(tokens)
        outputs = model(pixel_values, tokens, labels=labels)
        return {
            "class embeddings": class_embeds,
            "logits": outputs.logits,
            "loss": outputs.loss,
            **outputs.loss_dict,
            "logits of embeddings": model(pixel_values, class_embeds=embeds).logits,
        }


def segment(folder: str, picture: Path, **trust: bool) -> dict[str, torch.Tensor]:
    """Return what Auto classes and the pipeline make of a picture."""
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, **trust).eval()
    processor = AutoProcessor.from_pretrained(folder, **trust)
    image = Image.open(picture)
    inputs = processor(images=image, text=NAMES, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    (masks,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])
    found = pipeline("zero-shot-image-segmentation", model=folder, **trust)(str(picture), candidate_labels=NAMES)
    return {
        "pixel_values": inputs["pixel_values"],
        "logits": outputs.logits,
        "map": masks,
        "pipeline": torch.stack([torch.tensor(list(row["mask"].tobytes())) for row in found]),
        "scores": torch.tensor([row["score"] for row in found], dtype=torch.float64),
    }


def outputs(old: Path, own: Path, goldens: Path) -> None:
    """Load everything that the old build has made, and write what it computes, or the error."""
    picture, made = old / "pictures" / "scene_1.png", old / "models"
    cases: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        "embedded model": lambda: segment(str(zegclip.DEFAULT_MODEL), picture),
        "folder that the old build exported": lambda: segment(str(old / "exported"), picture),
        "folder that the old build converted": lambda: compute(load(old / "converted"), (64, 48)),
        "own converted folder": lambda: compute(load(own / "converted"), (64, 48)),
        "adapter that the old build trained": lambda: segment(str(old / "trained_zegclip"), picture),
        "plain CLIP, training-free": lambda: compute(load(made / "clip", decode_head_type="similarity")),
        "random ViT-B/16": lambda: compute(load(made / "vit"), (224, 256)),
    }
    for head, (fields, _) in HEADS.items():
        for way in ("full", "peft", "transformers"):
            cases[f"{head} head, saved: {way}"] = partial(compute_saved, made / f"{head}_{way}")
        cases[f"{head} head, PeftModel.from_pretrained"] = partial(
            compute_saved, made / "clip", made / f"{head}_peft", decode_head_type=head, **SMALL, **fields
        )
    for method in GOLDENS:
        cases[f"converted golden, {method}"] = partial(compute_golden, goldens, method)
    tensors, errors = {}, {}
    for title, case in cases.items():
        try:
            tensors |= {f"{title}/{name}": value.contiguous() for name, value in case().items()}
        except Exception as error:
            errors[title] = repr(error)
    save_file(tensors, own / "outputs.safetensors")
    (own / "errors.json").write_text(json.dumps({title: errors.get(title) for title in cases}))


def compute_saved(folder: Path, adapter: Path | None = None, **fields: Any) -> dict[str, torch.Tensor]:
    """Load a model, put an adapter on it through PEFT if asked, and return what it computes."""
    model = load(folder, **fields)
    return compute(model if adapter is None else PeftModel.from_pretrained(model, adapter))


def compute_golden(goldens: Path, method: Literal["zegclip", "spt-seg"]) -> dict[str, torch.Tensor]:
    """Convert an official state dict whose head counts are known, and return what the model computes."""
    heads = {"num_attention_heads": 4}
    config = ZegClipConfig(
        clip_config={"vision_config": heads, "text_config": heads},
        decoder_attention_heads=4 if method == "zegclip" else 8,
        decoder_window_size=2,
    )
    return compute(convert(read_golden(goldens, method), method=method, config=config), (64, 48))


if mode == "make":
    make(*map(Path, places))
elif mode == "outputs":
    outputs(*map(Path, places))
else:
    save_file(segment(places[0], Path(places[1]), trust_remote_code=True), places[2])
