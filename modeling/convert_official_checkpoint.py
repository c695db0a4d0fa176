"""Official checkpoints of ZegCLIP and SPT-SEG (mmcv format) to this project's models."""

import math
import os
import re
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file

from .configuration_zegclip import ZegClipConfig
from .finite_weights import find_not_finite
from .modeling_zegclip import ZegClipForSemanticSegmentation
from .prompt_config import DeepPromptConfig

StateDict = dict[str, torch.Tensor]
Method = Literal["zegclip", "spt-seg"]

PAPERS = {"zegclip": "ZegCLIP", "spt-seg": "SPT-SEG"}
SPECTRAL_FILTER = "backbone.complex_weight"  # SPT-SEG's code is a copy of ZegCLIP's: this key tells them apart

# Present in every official checkpoint, but never run or never read: query self-attention and its norm, an unused
# buffer of the loss, what SPT-SEG replaced and left in place, and a projection in its high-frequency path.
_DEAD_DECODER_KEYS = r"decode_head\.(loss_decode\..*|decoder_1\.layers\.\d+\.(self_attn\..*|norm1\..*))"
DEAD_KEYS = {
    "zegclip": re.compile(_DEAD_DECODER_KEYS),
    "spt-seg": re.compile(
        rf"{_DEAD_DECODER_KEYS}|backbone\.proj_fre\..*"
        r"|decode_head\.decoder_1\.layers\.\d+\.(multihead_attn\..*|hlfs\.h_proj\..*)"
    ),
}


def _with_kinds(names: dict[str, str]) -> dict[str, str]:
    return {f"{old}.{kind}": f"{new}.{kind}" for old, new in names.items() for kind in ("weight", "bias")}


RESBLOCK_NAMES = _with_kinds(
    {
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
)
_QUERY_UPDATE_NAMES = {"linear1": "fc1", "linear2": "fc2", "norm2": "norm1", "norm3": "norm2"}
# What the parameters of an official decoder layer are called here.
DECODER_NAMES = {
    "zegclip": _with_kinds(
        {
            "multihead_attn.q": "q_proj",
            "multihead_attn.k": "k_proj",
            "multihead_attn.v": "v_proj",
            "multihead_attn.proj": "out_proj",
            **_QUERY_UPDATE_NAMES,
        }
    ),
    "spt-seg": {
        "hlfs.prompt": "mixing.gate",
        "hlfs.top_down_transform": "mixing.transform.weight",
        "hlfs.h_qkv.weight": "mixing.high_qkv.weight",
        "hlfs.l_q.weight": "mixing.low_q.weight",
        "hlfs.l_kv.weight": "mixing.low_kv.weight",
        **_with_kinds({"hlfs.l_proj": "mixing.low_proj", "hlfs.proj": "out_proj", **_QUERY_UPDATE_NAMES}),
    },
}
TRANSPOSED = {"hlfs.top_down_transform"}  # what the official code multiplies from the right
# All that the last layer needs for its scores; nothing reads what the official one does with its queries then.
_SCORE_NAMES = {"zegclip": ("q_proj.", "k_proj."), "spt-seg": ("mixing.",)}


def read_checkpoint(path: str | os.PathLike) -> StateDict:
    """
    Read the state dict of a `.pth` (never executing a pickle) or `.safetensors` file.

    Raises:
        ValueError: One sentence that names the file, when it is missing, unreadable or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such checkpoint file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes can make the unpickler raise anything
        # PyTorch's own message advises to load it unsafely.
        raise ValueError(f"{path}: not a checkpoint of plain tensors, so it was not loaded.") from error
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state_dict, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state_dict.items()
    ):
        raise ValueError(f"{path}: holds no state dict of tensors.")
    return state_dict


class _Source:
    """A state dict that remembers what has been taken, and names what was missing or left."""

    def __init__(self, state_dict: StateDict, method: Method):
        self.paper = PAPERS[method]
        self.left = {name: tensor.float() for name, tensor in state_dict.items()}
        self.missing: list[str] = []

    def shape(self, name: str, num_axes: int) -> tuple[int, ...]:
        if name not in self.left:
            raise ValueError(f"Not an official {self.paper} checkpoint: it has no key {name!r}.")
        shape = tuple(self.left[name].shape)
        if len(shape) != num_axes or 0 in shape:
            raise ValueError(f"Not an official {self.paper} checkpoint: {name!r} has the shape {shape}.")
        return shape

    def count(self, pattern: str) -> int:
        """Number of distinct values of the one group in `pattern` over all keys."""
        return len({match[1] for name in self.left if (match := re.match(pattern, name))})

    def take(self, name: str) -> torch.Tensor:
        if name not in self.left:
            self.missing.append(name)
            return torch.zeros(1, 1)  # so that all missing keys are found before any is reported
        return self.left.pop(name)

    def drop(self, pattern: re.Pattern) -> None:
        for name in [name for name in self.left if pattern.fullmatch(name)]:
            del self.left[name]

    def check_all_taken(self) -> None:
        """Raise one sentence naming missing and unexpected keys, if there are any."""
        if self.missing or self.left:
            problems = []
            for kind, names in (("missing", self.missing), ("unexpected", sorted(self.left))):
                if names:
                    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                    problems.append(f"{kind} keys: {', '.join(names[:5])}{more}")
            raise ValueError(f"Not an official {self.paper} checkpoint of this shape; {'; '.join(problems)}.")


def infer_config(
    source: _Source, method: Method, config: ZegClipConfig | dict[str, Any] | None
) -> tuple[ZegClipConfig, DeepPromptConfig]:
    """
    Read all sizes off the tensors; head counts and everything that is no size come from `config` or the defaults.

    Args:
        source: The official state dict.
        method: Which paper's code wrote it.
        config: Supplies `num_attention_heads` of both towers, `decoder_attention_heads`, `decoder_window_size`,
            templates, class names.
    """
    width, _, patch_size, _ = source.shape("backbone.conv1.weight", 4)
    positions = source.shape("backbone.positional_embedding", 2)[0]
    vocab_size, text_width = source.shape("text_encoder.token_embedding.weight", 2)
    projection_dim = source.shape("backbone.proj", 2)[1]
    described = _describe(config)
    clip = described["clip_config"]
    clip["projection_dim"] = projection_dim
    clip["vision_config"] |= {
        "hidden_size": width,
        "patch_size": patch_size,
        "image_size": math.isqrt(positions - 1) * patch_size,
        "num_hidden_layers": source.count(r"backbone\.transformer\.resblocks\.(\d+)\."),
        "intermediate_size": source.shape("backbone.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
    }
    clip["text_config"] |= {
        "hidden_size": text_width,
        "vocab_size": vocab_size,
        "max_position_embeddings": source.shape("text_encoder.positional_embedding", 2)[0],
        "num_hidden_layers": source.count(r"text_encoder\.transformer\.resblocks\.(\d+)\."),
        "intermediate_size": source.shape("text_encoder.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
    }
    if clip["text_config"]["eos_token_id"] >= vocab_size:
        # The end-of-text token is CLIP's last one.
        clip["text_config"] |= {"bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1}
    described |= {
        "descriptor": ["product", "text"],
        "num_decoder_layers": source.count(r"decode_head\.decoder_1\.layers\.(\d+)\."),
        "decoder_ffn_dim": source.shape("decode_head.decoder_1.layers.0.linear1.weight", 2)[0],
    }
    if method == "spt-seg":
        described |= {"decode_head_type": "spectral", "dice_weight": 0, "ssim_weight": 1}
        heads = described["decoder_attention_heads"]
        described["decoder_low_frequency_heads"] = _count_low_frequency_heads(source, heads, projection_dim)
    else:
        described["decode_head_type"] = "zegclip"
    deep = 0
    if "backbone.deep_prompt_embeddings" in source.left:
        deep = source.shape("backbone.deep_prompt_embeddings", 3)[0]
        if "backbone.prompt_embeddings" not in source.left:
            deep = -deep
    table = "backbone.deep_prompt_embeddings" if deep < 0 else "backbone.prompt_embeddings"
    spectral: dict[str, Any] = {}
    if method == "spt-seg" and deep >= 0:
        # The official code filters where it puts new prompts in, of the first two layers.
        grid = source.shape(SPECTRAL_FILTER, 4)[0]
        spectral = {"spectral_prompt": True, "spectral_layers": [0, 1][: deep + 1], "spectral_grid_size": grid}
    return ZegClipConfig.from_dict(described), DeepPromptConfig(
        num_tokens=source.shape(table, 3)[1], num_deep_layers=deep, inference_mode=True, **spectral
    )


def _describe(config: ZegClipConfig | dict[str, Any] | None) -> dict[str, Any]:
    """Return all fields as a dict of its own; what a dict does not say is the default."""
    if isinstance(config, ZegClipConfig):
        return config.to_dict()
    given = config or {}
    described = ZegClipConfig().to_dict()
    clip, given_clip = described["clip_config"], given.get("clip_config", {})
    towers = {name: clip[name] | given_clip.get(name, {}) for name in ("vision_config", "text_config")}
    return described | given | {"clip_config": clip | given_clip | towers}


def _count_low_frequency_heads(source: _Source, heads: int, dim: int) -> int:
    """Tell how many of the decoder's heads, all of one width, the low-frequency queries make up."""
    name = "decode_head.decoder_1.layers.0.hlfs.l_q.weight"
    rows = source.shape(name, 2)[0]
    if rows * heads % dim or not 0 < rows * heads // dim < heads:
        raise ValueError(
            f"{name} has {rows} rows, which are no part of the heads that decoder_attention_heads={heads} makes of "
            f"{dim}: give a config with the number of heads that the checkpoint was trained with."
        )
    return rows * heads // dim


def _convert_tower(source: _Source, official: str, ours: str, num_layers: int) -> StateDict:
    """Rename the residual blocks of one tower; the fused query-key-value rows are split into thirds."""
    result = {}
    for index in range(num_layers):
        block, layer = f"{official}.transformer.resblocks.{index}", f"{ours}.encoder.layers.{index}"
        for kind in ("weight", "bias"):
            thirds = source.take(f"{block}.attn.in_proj_{kind}").chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), thirds):
                result[f"{layer}.self_attn.{name}.{kind}"] = part
        for theirs, name in RESBLOCK_NAMES.items():
            result[f"{layer}.{name}"] = source.take(f"{block}.{theirs}")
    return result


def _convert_clip(source: _Source, config: ZegClipConfig) -> StateDict:
    vision, text = "vision_model", "text_model"
    class_embedding = source.take("backbone.class_embedding")
    positions = source.take("backbone.positional_embedding")
    # The official forward adds the class embedding a second time, with its position: folded into the table.
    positions = torch.cat([positions[:1] + class_embedding, positions[1:]])
    result = {
        f"{vision}.embeddings.class_embedding": class_embedding,
        f"{vision}.embeddings.position_embedding.weight": positions,
        f"{vision}.embeddings.patch_embedding.weight": source.take("backbone.conv1.weight"),
        "visual_projection.weight": source.take("backbone.proj").T,
        f"{text}.embeddings.token_embedding.weight": source.take("text_encoder.token_embedding.weight"),
        f"{text}.embeddings.position_embedding.weight": source.take("text_encoder.positional_embedding"),
        "text_projection.weight": source.take("text_encoder.text_projection").T,
        # ZegCLIP never uses CLIP's temperature and does not store it.
        "logit_scale": torch.tensor(config.clip_config.logit_scale_init_value),
    }
    norms = {
        "backbone.ln_pre": f"{vision}.pre_layrnorm",
        "backbone.ln_post": f"{vision}.post_layernorm",
        "text_encoder.ln_final": f"{text}.final_layer_norm",
    }
    for theirs, name in norms.items():
        for kind in ("weight", "bias"):
            result[f"{name}.{kind}"] = source.take(f"{theirs}.{kind}")
    result |= _convert_tower(source, "backbone", vision, config.clip_config.vision_config.num_hidden_layers)
    return result | _convert_tower(source, "text_encoder", text, config.clip_config.text_config.num_hidden_layers)


def _convert_prompts(source: _Source, config: DeepPromptConfig) -> StateDict:
    tables = []
    deep = config.num_deep_layers or 0
    if deep >= 0:
        tables.append(source.take("backbone.prompt_embeddings"))
    if deep != 0:
        tables.append(source.take("backbone.deep_prompt_embeddings"))
    result = {"deep_prompt_tokens.default": torch.cat(tables)}
    for kind in ("weight", "bias"):
        result[f"deep_prompt_proj.default.{kind}"] = source.take(f"backbone.prompt_proj.{kind}")
        norm = source.take(f"backbone.prompt_norm.{kind}")
        if deep != 0:  # shallow prompts: stored, never applied
            result[f"deep_prompt_norm.default.{kind}"] = norm
    if config.spectral_prompt:
        result["deep_prompt_filter.default"] = source.take(SPECTRAL_FILTER)
    else:  # SPT-SEG with prompts in the last layers only: stored, never applied
        source.left.pop(SPECTRAL_FILTER, None)
    return result


def _convert_decode_head(source: _Source, method: Method, config: ZegClipConfig) -> StateDict:
    last = config.num_decoder_layers - 1
    source.drop(DEAD_KEYS[method])
    result = {f"query_proj.{kind}": source.take(f"decode_head.q_proj.{kind}") for kind in ("weight", "bias")}
    for index in range(config.num_decoder_layers):
        for theirs, name in DECODER_NAMES[method].items():
            key = f"decode_head.decoder_1.layers.{index}.{theirs}"
            if index == last and not name.startswith(_SCORE_NAMES[method]):
                source.left.pop(key, None)
                continue
            tensor = source.take(key)
            ours = "mask_scores" if index == last else f"layers.{index}"
            result[f"{ours}.{name}"] = tensor.T if theirs in TRANSPOSED else tensor
    return result


def convert(
    checkpoint: str | os.PathLike | dict[str, Any],
    *,
    method: Method,
    config: ZegClipConfig | dict[str, Any] | None = None,
) -> ZegClipForSemanticSegmentation:
    """
    Build a model that reproduces an official checkpoint's logits.

    Args:
        checkpoint: A `.pth` or `.safetensors` file, or a state dict with the official names (`backbone.*`,
            `decode_head.*`, `text_encoder.*`).
        method: Which paper's code wrote it.
        config: Head counts and SPT-SEG's window size, which no tensor shape tells, templates and class names. Defaults
            to ViT-B/16's. Head counts that do not divide ViT-B/16's widths fit into no [`ZegClipConfig`] yet: give a
            dict of its fields instead.

    Returns:
        The model in eval mode: a CLIP with the prompts and the trained decode head as the adapter `"default"`.

    Raises:
        ValueError: For another method, an unreadable file, missing or unexpected keys, sizes that do not fit, or
            weights that are no numbers.
    """
    if method not in PAPERS:
        raise ValueError(f"method must be {' or '.join(map(repr, PAPERS))}, not {method!r}.")
    source = _Source(checkpoint if isinstance(checkpoint, dict) else read_checkpoint(checkpoint), method)
    if method == "zegclip" and SPECTRAL_FILTER in source.left:
        raise ValueError(f"This is an SPT-SEG checkpoint, with {SPECTRAL_FILTER!r}: its method is 'spt-seg'.")
    if method == "spt-seg" and "backbone.prompt_proj.weight" in source.left and SPECTRAL_FILTER not in source.left:
        raise ValueError(
            f"Not an official SPT-SEG checkpoint: it has no key {SPECTRAL_FILTER!r}; the method of ZegCLIP's "
            "checkpoints is 'zegclip'."
        )
    try:
        return _build(source, method, config)
    except (RuntimeError, StrictDataclassError) as error:  # tensors that cannot be joined, sizes that contradict
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
        raise ValueError(
            f"Not an official {source.paper} checkpoint, or not of this config: its tensors do not fit: {reason}"
        ) from error


def _build(
    source: _Source, method: Method, config: ZegClipConfig | dict[str, Any] | None
) -> ZegClipForSemanticSegmentation:
    broken = find_not_finite(source.left.items())
    if broken is not None:
        raise ValueError(f"This checkpoint is broken: {broken!r} holds NaN or infinite values.")
    model_config, prompt_config = infer_config(source, method, config)
    clip = _convert_clip(source, model_config)
    # A mark, so that no adapter does it once more.
    model_config.clip_config.class_embedding_doubled = True
    prompts = _convert_prompts(source, prompt_config)
    decode_head = _convert_decode_head(source, method, model_config)
    source.check_all_taken()

    model = ZegClipForSemanticSegmentation(model_config)
    model.clip.load_state_dict(clip)
    model.add_adapter(prompt_config)
    # Into the adapter's head only: without the adapter, the model is a CLIP with an untrained one.
    model.decode_head.get_submodule("modules_to_save.default").load_state_dict(decode_head)
    encoder = model.clip.vision_model.encoder
    encoder.load_state_dict(prompts | {f"base_layer.{k}": v for k, v in encoder.base_layer.state_dict().items()})
    return model.eval()


__all__ = ["convert", "read_checkpoint"]
