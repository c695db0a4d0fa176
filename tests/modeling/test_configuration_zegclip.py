"""Configurations of the model: what is refused, with the field's name, and what is kept."""

import math

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPConfig

from zegclip import ZegClipConfig
from zegclip.modeling.heads import DECODE_HEADS

SPECTRAL = {"decode_head_type": "spectral"}
CONSENSUS = {"decode_head_type": "consensus", "num_decoder_layers": 2}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"decode_head_type": "other"}, "decode_head_type"),
        ({"decoder_attention_heads": 7}, "decoder_attention_heads=7"),
        ({"decoder_attention_heads": 0}, "decoder_attention_heads"),
        ({"num_decoder_layers": 0}, "num_decoder_layers"),
        ({"descriptor": []}, "descriptor"),
        ({"descriptor": ["product", "sum"]}, "descriptor"),
        ({"descriptor": ["difference", "difference"]}, "descriptor"),
        ({"descriptor": ["product"], "decode_head_init": "identity"}, "descriptor"),
        ({"prompt_templates": []}, "prompt_templates"),
        ({"prompt_templates": ["a photo"]}, "prompt_templates"),
        ({"decoder_dropout": 1.0}, "decoder_dropout"),
        ({"decoder_dropout": -0.1}, "decoder_dropout"),
        ({"decoder_ffn_dim": "wide"}, "decoder_ffn_dim"),
        ({"decoder_ffn_dim": 0}, "decoder_ffn_dim"),
        ({"decoder_window_size": 0}, "decoder_window_size"),
        ({"decoder_top_k": -1}, "decoder_top_k"),
        ({"decoder_top_k": 2.5}, "decoder_top_k"),
        ({"focal_alpha": 1.1}, "focal_alpha"),
        ({"focal_gamma": math.nan}, "focal_gamma"),
        ({"focal_weight": -1}, "focal_weight"),
        ({"dice_weight": math.inf}, "dice_weight"),
        ({"ssim_weight": -1.0}, "ssim_weight"),
        ({"cross_entropy_weight": -1.0}, "cross_entropy_weight"),
        ({"focal_weight": 0, "dice_weight": 0}, "cross_entropy_weight"),
        (SPECTRAL | {"decoder_low_frequency_heads": 0}, "decoder_low_frequency_heads=0"),
        (SPECTRAL | {"decoder_low_frequency_heads": 8}, "decoder_low_frequency_heads=8"),
        (SPECTRAL | {"decoder_attention_heads": 4}, "decoder_low_frequency_heads=7"),
        (SPECTRAL | {"decode_head_init": "identity"}, "decode_head_init"),
        (CONSENSUS | {"decode_head_init": "identity"}, "decode_head_init"),
        (CONSENSUS | {"out_indices": [7]}, r"out_indices=\[7\]"),
        (CONSENSUS | {"out_indices": []}, r"out_indices=\[\]"),
        (CONSENSUS | {"num_decoder_layers": 3}, r"out_indices=\[7, 11\]"),
        (CONSENSUS | {"out_indices": [7, 12]}, "out_indices names layer 12"),
        (CONSENSUS | {"out_indices": [-1, 7]}, "out_indices names layer -1"),
        (CONSENSUS | {"out_indices": ["7", 11]}, "out_indices"),
        (CONSENSUS | {"out_indices": 7}, "out_indices"),
    ],
)
def test_contradictory_configurations(fields, named):
    with pytest.raises(StrictDataclassError, match=named):
        ZegClipConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        # At the limit.
        {"decoder_ffn_dim": 1},
        {"decoder_top_k": 0},
        {"decoder_window_size": 1},
        {"num_decoder_layers": 1},
        {"decoder_attention_heads": 1},
        {"decoder_dropout": 0.0},
        {"focal_alpha": 0.0, "focal_gamma": 0.0, "dice_weight": 0.0},
        {"focal_alpha": 1.0, "focal_weight": 0.0},
        SPECTRAL | {"decoder_low_frequency_heads": 1},
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
