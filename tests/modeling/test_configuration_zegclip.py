"""Configurations of the model: what is refused, with the field's name, and what is kept."""

import math

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPConfig

from zegclip import ZegClipConfig
from zegclip.modeling.heads import DECODE_HEADS

SPECTRAL = {"decode_head_type": "spectral"}
CONSENSUS = {"decode_head_type": "consensus", "num_decoder_layers": 2}
# Of the default head, each alone.
IMPOSSIBLE = {
    "decode_head_type": ["other"],
    "decoder_attention_heads": [7, 0],
    "num_decoder_layers": [0],
    "descriptor": [[], ["product", "sum"], ["difference", "difference"]],
    "prompt_templates": [[], ["a photo"], ["{} {}"]],
    "decoder_dropout": [1.0, -0.1],
    "decoder_ffn_dim": ["wide", 0],
    "decoder_window_size": [0],
    "decoder_top_k": [-1, 2.5],
    "focal_alpha": [1.1],
    "focal_gamma": [math.nan],
    **{f"{term}_weight": [-1.0, math.inf] for term in ("focal", "dice", "ssim", "cross_entropy")},
}
# At the limit.
POSSIBLE = {
    "decoder_attention_heads": [1],
    "num_decoder_layers": [1],
    "decoder_dropout": [0.0],
    "decoder_ffn_dim": [1],
    "decoder_window_size": [1],
    "decoder_top_k": [0],
    "focal_alpha": [0.0, 1.0],
    "focal_gamma": [0.0],
    **{f"{term}_weight": [0.0] for term in ("focal", "dice", "ssim", "cross_entropy")},
}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        *(({field: value}, field) for field, values in IMPOSSIBLE.items() for value in values),
        ({"descriptor": ["product"], "decode_head_init": "identity"}, "descriptor"),
        ({"focal_weight": 0, "dice_weight": 0}, "cross_entropy_weight"),
        *((SPECTRAL | {"decoder_low_frequency_heads": heads}, f"low_frequency_heads={heads}") for heads in (0, 8)),
        (SPECTRAL | {"decoder_attention_heads": 4}, "decoder_low_frequency_heads=7"),
        *((head | {"decode_head_init": "identity"}, "decode_head_init") for head in (SPECTRAL, CONSENSUS)),
        *((CONSENSUS | {"out_indices": value}, "out_indices") for value in ([7], [], ["7", 11], 7)),
        (CONSENSUS | {"num_decoder_layers": 3}, "out_indices"),
        (CONSENSUS | {"out_indices": [7, 12]}, "out_indices .*12"),
        (CONSENSUS | {"out_indices": [-1, 7]}, "out_indices .*-1"),
    ],
)
def test_contradictory_configurations(fields, named):
    with pytest.raises(StrictDataclassError, match=named):
        ZegClipConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        *({field: value} for field, values in POSSIBLE.items() for value in values),
        *(SPECTRAL | {"decoder_low_frequency_heads": heads} for heads in (1, 7)),
        CONSENSUS | {"out_indices": [0, 11]},
        # Of another head.
        {"out_indices": [99]},
        {"decoder_attention_heads": 4},  # fewer than decoder_low_frequency_heads
        {"decode_head_type": "similarity", "decoder_attention_heads": 7, "decode_head_init": "identity"},
    ],
)
def test_values_at_a_limit_and_fields_of_another_head(fields):
    config = ZegClipConfig(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


def test_an_assigned_value_is_checked_too():
    config = ZegClipConfig()
    with pytest.raises(StrictDataclassError, match="focal_gamma"):
        config.focal_gamma = -1.0


@pytest.mark.parametrize("head", DECODE_HEADS)
def test_fields_of_each_head_exist(head):
    described = ZegClipConfig().describe_head()
    assert "decode_head_type" in DECODE_HEADS[head].config_fields
    assert set(DECODE_HEADS[head].config_fields) <= described.keys()


def test_configuration_round_trip(model, tmp_path):
    model.config.seen_class_names = ["cat", "dog"]
    model.config.save_pretrained(tmp_path)
    again = ZegClipConfig.from_pretrained(tmp_path)
    assert again.to_dict() == model.config.to_dict()
    assert isinstance(again.clip_config, CLIPConfig)
