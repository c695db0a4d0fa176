"""What tests of whole models share: inputs, and models whose trained values are away from their initial ones."""

import copy
import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import get_peft_model
from safetensors import safe_open
from transformers import CLIPConfig

from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation

# What suits the tiny model of each trained decode head.
HEADS = {
    "zegclip": {"decoder_attention_heads": 2, "decoder_ffn_dim": 64},
    "spectral": {
        "decoder_attention_heads": 4,
        "decoder_low_frequency_heads": 3,
        "decoder_ffn_dim": 64,
        "dice_weight": 0.0,
        "ssim_weight": 1.0,
    },
    "consensus": {
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 64,
        "num_decoder_layers": 2,
        "out_indices": [0, 1],
        "decoder_window_size": 2,
        "decoder_top_k": 2,
    },
}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def golden_files(pattern):
    """The files with tensors of official code, of this repository, which has some, or of another folder."""
    files = sorted(Path(os.environ.get("ZEGCLIP_GOLDENS", Path(__file__).parents[1] / "goldens")).glob(pattern))
    assert files or "ZEGCLIP_GOLDENS" in os.environ
    return files


def read_dense_golden(path):
    """The metadata and tensors of a file of the training-free methods."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["meta"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def dense_model(meta, tensors):
    """A model with the weights of such a file."""
    text = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    clip_config = CLIPConfig(
        vision_config=meta["vision"],
        text_config=text | {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1},
        projection_dim=meta["projection_dim"],
    )
    config = ZegClipConfig(
        clip_config=clip_config,
        decode_head_type="similarity",
        naclip_sigma=meta["gaussian_std"],
        similarity_scale=meta["slide"]["logit_scale"],
    )
    model = ZegClipForSemanticSegmentation(config).eval()
    weights = {name.removeprefix("hf."): value for name, value in tensors.items() if name.startswith("hf.")}
    found = model.clip.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys
    assert not [name for name in found.missing_keys if "vision" in name or "visual" in name]
    return model


def pictures(count=2, height=32, width=32, seed=0):
    return random(count, 3, height, width, seed=seed)


def names(count=3, dim=32, seed=1):
    """Class embeddings `(count, dim)` of length 1."""
    return F.normalize(random(count, dim, seed=seed), dim=-1)


def labels(count=3, height=32, width=32, ignored_rows=0):
    ids = torch.randint(count, (2, height, width), generator=torch.Generator().manual_seed(2))
    ids[0, :ignored_rows] = 255
    return ids


@torch.no_grad()
def move(model, seed=5, by=0.1):
    """Take the trained values away from their initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def load(folder, **kwargs):
    return ZegClipForSemanticSegmentation.from_pretrained(folder, **kwargs).eval()


def trained(folder, config=None, seed=5, **fields):
    """A PEFT model of a stored base, with a configuration or its fields."""
    torch.manual_seed(seed)
    return move(get_peft_model(load(folder), config or DeepPromptConfig(**{"num_tokens": 3} | fields)), seed)


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def gradients(model, inputs, checkpointing=False):
    """The gradients of all that is trained, without dropout."""
    model = copy.deepcopy(model)
    model.config.decoder_dropout = 0.0
    for module in model.modules():
        for config in getattr(module, "prompt_configs", {}).values():
            config.dropout = 0.0
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()(**inputs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
