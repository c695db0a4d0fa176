"""Official checkpoints of ZegCLIP and SPT-SEG (mmcv format) to this project's models."""

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file

from .base_fingerprint import take_fingerprint
from .configuration_zegclip import ZegClipConfig
from .finite_weights import find_not_finite
from .model_error import ModelError, sentence_of_config_error
from .modeling_zegclip import ZegClipForSemanticSegmentation
from .prompt_config import DeepPromptConfig

StateDict = dict[str, torch.Tensor]
Method = Literal["zegclip", "spt-seg"]

PAPERS = {"zegclip": "ZegCLIP", "spt-seg": "SPT-SEG"}
SPECTRAL_FILTER = "backbone.complex_weight"  # SPT-SEG's code is a copy of ZegCLIP's: this key tells them apart
FIRST_PROMPTS, DEEP_PROMPTS = "backbone.prompt_embeddings", "backbone.deep_prompt_embeddings"
NUM_AXES = {"backbone.conv1.weight": 4, SPECTRAL_FILTER: 4, FIRST_PROMPTS: 3, DEEP_PROMPTS: 3}  # of all others: 2


# What official parameters are called here: `*` is weight and bias, `[qkv]` three tensors that are one there. What two
# official names have in common consists of both.
CLIP_NAMES = {
    "backbone.class_embedding": "vision_model.embeddings.class_embedding",
    "backbone.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "backbone.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "backbone.ln_pre.*": "vision_model.pre_layrnorm.*",
    "backbone.ln_post.*": "vision_model.post_layernorm.*",
    "backbone.proj": "visual_projection.weight",
    "text_encoder.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text_encoder.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_encoder.ln_final.*": "text_model.final_layer_norm.*",
    "text_encoder.text_projection": "text_projection.weight",
}
BLOCK_NAMES = {
    "attn.in_proj_*": "self_attn.[qkv]_proj.*",
    "attn.out_proj.*": "self_attn.out_proj.*",
    "ln_1.*": "layer_norm1.*",
    "ln_2.*": "layer_norm2.*",
    "mlp.c_fc.*": "mlp.fc1.*",
    "mlp.c_proj.*": "mlp.fc2.*",
}
PROMPT_NAMES = {
    "prompt_embeddings": "deep_prompt_tokens.default",
    "deep_prompt_embeddings": "deep_prompt_tokens.default",
    "prompt_proj.*": "deep_prompt_proj.default.*",
    "prompt_norm.*": "deep_prompt_norm.default.*",
    "complex_weight": "deep_prompt_filter.default",
}
_UPDATE_NAMES = {"linear1.*": "fc1.*", "linear2.*": "fc2.*", "norm2.*": "norm1.*", "norm3.*": "norm2.*"}
DECODER_NAMES = {
    "zegclip": {
        "multihead_attn.q.*": "q_proj.*",
        "multihead_attn.k.*": "k_proj.*",
        "multihead_attn.v.*": "v_proj.*",
        "multihead_attn.proj.*": "out_proj.*",
        **_UPDATE_NAMES,
    },
    "spt-seg": {
        "hlfs.prompt": "mixing.gate",
        "hlfs.top_down_transform": "mixing.transform.weight",
        "hlfs.h_qkv.weight": "mixing.high_qkv.weight",
        "hlfs.l_q.weight": "mixing.low_q.weight",
        "hlfs.l_kv.weight": "mixing.low_kv.weight",
        "hlfs.l_proj.*": "mixing.low_proj.*",
        "hlfs.proj.*": "out_proj.*",
        **_UPDATE_NAMES,
    },
}
# What the official code multiplies from the right.
TRANSPOSED = ("backbone.proj", "text_encoder.text_projection", "hlfs.top_down_transform")
# All that the last layer needs for its scores; nothing reads what the official one does with its queries then.
SCORE_NAMES = ("q_proj.", "k_proj.", "mixing.")
# Present in official checkpoints, but never run or never read: query self-attention and its norm, an unused buffer of
# the loss, what SPT-SEG replaced and left in place, and a projection in its high-frequency path.
DEAD_KEYS = re.compile(
    r"decode_head\.loss_decode\..*|backbone\.proj_fre\..*"
    r"|decode_head\.decoder_1\.layers\.\d+\.(self_attn|norm1|multihead_attn|hlfs\.h_proj)\..*"
)


def name_table(method: Method, config: ZegClipConfig, prompts: DeepPromptConfig) -> dict[str, list[str]]:
    """Map official names to the names of what they hold, one below the other: none for what is never applied."""
    table: dict[str, list[str]] = {}

    def add(names: dict[str, str], theirs: str, ours: str, applied: tuple[str, ...] = ("",)) -> None:
        for their_name, our_name in names.items():
            for kind in ("weight", "bias") if "*" in their_name else ("",):
                parts = [our_name.replace("[qkv]", part) for part in "qkv"] if "[qkv]" in our_name else [our_name]
                table[(theirs + their_name).replace("*", kind)] = [
                    (ours + part).replace("*", kind) for part in parts if part.startswith(applied)
                ]

    vision, text = "clip.vision_model.encoder.", "clip.text_model.encoder."
    add(CLIP_NAMES, "", "clip.")
    for index in range(config.clip_config.vision_config.num_hidden_layers):
        add(BLOCK_NAMES, f"backbone.transformer.resblocks.{index}.", f"{vision}base_layer.layers.{index}.")
    for index in range(config.clip_config.text_config.num_hidden_layers):
        add(BLOCK_NAMES, f"text_encoder.transformer.resblocks.{index}.", f"{text}layers.{index}.")

    deep = prompts.num_deep_layers or 0
    applied = ["deep_prompt_tokens", "deep_prompt_proj"]
    applied += ["deep_prompt_norm"] * (deep != 0) + ["deep_prompt_filter"] * prompts.spectral_prompt
    add(PROMPT_NAMES, "backbone.", vision, tuple(applied))
    if deep < 0:
        del table[FIRST_PROMPTS]
    elif deep == 0:
        del table[DEEP_PROMPTS]

    head, layers = "decode_head.modules_to_save.default.", "decode_head.decoder_1.layers"
    last = config.num_decoder_layers - 1
    add({"q_proj.*": "query_proj.*"}, "decode_head.", head)
    for index in range(last):
        add(DECODER_NAMES[method], f"{layers}.{index}.", f"{head}layers.{index}.")
    add(DECODER_NAMES[method], f"{layers}.{last}.", f"{head}mask_scores.", SCORE_NAMES)
    return table


def read_checkpoint(path: str | os.PathLike) -> StateDict:
    """
    Read the state dict of a `.pth` (never executing a pickle) or `.safetensors` file.

    Raises:
        ModelError: If the file is missing, unreadable or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: there is no such checkpoint file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes can make the unpickler raise anything
        # PyTorch's own message advises to load it unsafely.
        raise ModelError(f"{path}: not a checkpoint of plain tensors, so it was not loaded.") from error
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state_dict, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state_dict.items()
    ):
        raise ModelError(f"{path}: holds no state dict of tensors.")
    return state_dict


def infer_config(
    state_dict: StateDict, method: Method, config: ZegClipConfig | dict[str, Any] | None
) -> tuple[ZegClipConfig, DeepPromptConfig]:
    """
    Read all sizes off the tensors; head counts and everything that is no size come from `config` or the defaults.

    Args:
        state_dict: The official one.
        method: Which paper's code wrote it.
        config: Supplies `num_attention_heads` of both towers, `decoder_attention_heads`, `decoder_window_size`,
            templates, class names.
    """
    size = partial(_size, state_dict, method)
    fields = _all_fields(config)
    clip = fields["clip_config"]
    vision, text = clip["vision_config"], clip["text_config"]
    clip["projection_dim"] = size("backbone.proj", 1)
    for official, tower in (("backbone", vision), ("text_encoder", text)):
        tower["num_hidden_layers"] = _count_layers(state_dict, f"{official}.transformer.resblocks")
        tower["intermediate_size"] = size(f"{official}.transformer.resblocks.0.mlp.c_fc.weight", 0)
    vision |= {
        "hidden_size": size("backbone.conv1.weight", 0),
        "patch_size": size("backbone.conv1.weight", 2),
    }
    vision["image_size"] = math.isqrt(size("backbone.positional_embedding", 0) - 1) * vision["patch_size"]
    text |= {
        "hidden_size": size("text_encoder.token_embedding.weight", 1),
        "vocab_size": size("text_encoder.token_embedding.weight", 0),
        "max_position_embeddings": size("text_encoder.positional_embedding", 0),
    }
    if text["eos_token_id"] >= text["vocab_size"]:
        # The end-of-text token is CLIP's last one.
        text |= {"bos_token_id": text["vocab_size"] - 2, "eos_token_id": text["vocab_size"] - 1}
    fields |= {
        "decode_head_type": "zegclip",
        "descriptor": ["product", "text"],
        "num_decoder_layers": _count_layers(state_dict, "decode_head.decoder_1.layers"),
        "decoder_ffn_dim": size("decode_head.decoder_1.layers.0.linear1.weight", 0),
    }
    if method == "spt-seg":
        fields |= {"decode_head_type": "spectral", "dice_weight": 0, "ssim_weight": 1}
        heads, dim = fields["decoder_attention_heads"], clip["projection_dim"]
        fields["decoder_low_frequency_heads"] = _count_low_frequency_heads(size, heads, dim)

    deep = size(DEEP_PROMPTS, 0) if DEEP_PROMPTS in state_dict else 0
    if deep and FIRST_PROMPTS not in state_dict:
        deep = -deep
    prompts = DeepPromptConfig(
        num_tokens=size(DEEP_PROMPTS if deep < 0 else FIRST_PROMPTS, 1), num_deep_layers=deep, inference_mode=True
    )
    if method == "spt-seg" and deep >= 0:
        # The official code filters where it puts new prompts in, of the first two layers.
        prompts.spectral_prompt, prompts.spectral_layers = True, [0, 1][: deep + 1]
        prompts.spectral_grid_size = size(SPECTRAL_FILTER, 0)
    return ZegClipConfig.from_dict(fields), prompts


def _size(state_dict: StateDict, method: Method, name: str, axis: int) -> int:
    if name not in state_dict:
        raise ModelError(f"Not an official {PAPERS[method]} checkpoint: it has no key {name!r}.")
    shape = tuple(state_dict[name].shape)
    if len(shape) != NUM_AXES.get(name, 2) or 0 in shape:
        raise ModelError(f"Not an official {PAPERS[method]} checkpoint: {name!r} has the shape {shape}.")
    return shape[axis]


def _count_layers(state_dict: StateDict, prefix: str) -> int:
    """Return the number of layers `{prefix}.0.*`, `{prefix}.1.*` and so on."""
    layer = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return len({match[1] for name in state_dict if (match := layer.match(name))})


def _all_fields(config: ZegClipConfig | dict[str, Any] | None) -> dict[str, Any]:
    """Return all fields as a dict of its own; what a dict lacks is at its default."""
    if isinstance(config, ZegClipConfig):
        return config.to_dict()
    given = config or {}
    fields = ZegClipConfig().to_dict()
    clip, given_clip = fields["clip_config"], given.get("clip_config", {})
    towers = {name: clip[name] | given_clip.get(name, {}) for name in ("vision_config", "text_config")}
    return fields | given | {"clip_config": clip | given_clip | towers}


def _count_low_frequency_heads(size: Callable[[str, int], int], heads: int, dim: int) -> int:
    """Return how many of the decoder's heads, all of one width, the low-frequency queries make up."""
    name = "decode_head.decoder_1.layers.0.hlfs.l_q.weight"
    rows = size(name, 0)
    if rows * heads % dim or not 0 < rows * heads // dim < heads:
        raise ModelError(
            f"{name} has {rows} rows, which decoder_attention_heads={heads} of {dim} cannot make up: give a config "
            "with the number of heads that the checkpoint was trained with."
        )
    return rows * heads // dim


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
        ModelError: For another method, an unreadable file, missing or unexpected keys, sizes that do not fit, or NaN
            or infinite weights.
    """
    if method not in PAPERS:
        raise ModelError(f"method must be {' or '.join(map(repr, PAPERS))}, not {method!r}.")
    state_dict = checkpoint if isinstance(checkpoint, dict) else read_checkpoint(checkpoint)
    if method == "zegclip" and SPECTRAL_FILTER in state_dict:
        raise ModelError(f"This is an SPT-SEG checkpoint, with {SPECTRAL_FILTER!r}: its method is 'spt-seg'.")
    if method == "spt-seg" and "backbone.prompt_proj.weight" in state_dict and SPECTRAL_FILTER not in state_dict:
        raise ModelError(
            f"Not an official SPT-SEG checkpoint: it has no key {SPECTRAL_FILTER!r}; the method of ZegCLIP's "
            "checkpoints is 'zegclip'."
        )
    try:
        return _build({name: tensor.float() for name, tensor in state_dict.items()}, method, config)
    except (RuntimeError, StrictDataclassError) as error:  # tensors that cannot be joined, sizes that contradict
        reason = str(error).splitlines()[-1].strip()
        if isinstance(error, StrictDataclassError):
            reason = sentence_of_config_error(error)
        raise ModelError(
            f"Not an official {PAPERS[method]} checkpoint, or not of this config: its tensors do not fit: {reason}"
        ) from error


def _build(
    state_dict: StateDict, method: Method, config: ZegClipConfig | dict[str, Any] | None
) -> ZegClipForSemanticSegmentation:
    broken = find_not_finite(state_dict.items())
    if broken is not None:
        raise ModelError(f"This checkpoint is broken: {broken!r} holds NaN or infinite values.")
    model_config, prompt_config = infer_config(state_dict, method, config)
    tensors = _rename(state_dict, method, name_table(method, model_config, prompt_config))
    # The official forward adds the class embedding a second time, with its position: folded into the table.
    embeddings = "clip.vision_model.embeddings"
    tensors[f"{embeddings}.position_embedding.weight"][:1] += tensors[f"{embeddings}.class_embedding"]
    # A mark, so that no adapter does it once more.
    model_config.clip_config.class_embedding_doubled = True
    # ZegCLIP never uses CLIP's temperature and does not store it.
    tensors["clip.logit_scale"] = torch.tensor(model_config.clip_config.logit_scale_init_value)

    model = ZegClipForSemanticSegmentation(model_config)
    model.add_adapter(prompt_config)
    # Into the adapter's head only: without the adapter, the model is a CLIP with an untrained one.
    untrained = model.decode_head.get_submodule("original_module").state_dict(prefix="decode_head.original_module.")
    model.load_state_dict(tensors | untrained)
    model.peft_config["default"].base_fingerprint = take_fingerprint(model)  # of these weights
    return model.eval()


def _rename(state_dict: StateDict, method: Method, table: dict[str, list[str]]) -> StateDict:
    """Return the model's tensors, all of them copies; `ModelError` naming missing and unexpected keys, if any."""
    missing = [name for name, ours in table.items() if ours and name not in state_dict]
    unexpected = [name for name in sorted(state_dict) if name not in table and not DEAD_KEYS.fullmatch(name)]
    problems = []
    for kind, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            problems.append(f"{kind} keys: {', '.join(names[:5])}{more}")
    if problems:
        raise ModelError(f"Not an official {PAPERS[method]} checkpoint of this shape; {'; '.join(problems)}.")
    parts = defaultdict(list)
    for name, ours in table.items():
        if ours:
            tensor = state_dict[name].T if name.endswith(TRANSPOSED) else state_dict[name]
            for our_name, part in zip(ours, tensor.chunk(len(ours))):
                parts[our_name].append(part)
    return {name: torch.cat(pieces) for name, pieces in parts.items()}


__all__ = ["convert", "name_table", "read_checkpoint"]
