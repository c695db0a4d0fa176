"""An adapter notices another CLIP, however it is loaded, and knows its own in any precision."""

import copy
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model

from zegclip import DeepPromptConfig, ZegClipForSemanticSegmentation
from zegclip.loading import load_adapter_into
from zegclip.modeling.base_fingerprint import OtherBaseWarning
from zegclip.modeling.convert_official_checkpoint import convert


@pytest.fixture
def places(model, tmp_path):
    """The adapter's base, another CLIP of the same sizes, and the adapter."""
    model.save_pretrained(tmp_path / "own")
    torch.manual_seed(7)
    ZegClipForSemanticSegmentation(copy.deepcopy(model.config)).save_pretrained(tmp_path / "other")
    get_peft_model(load(tmp_path / "own"), DeepPromptConfig(num_tokens=2)).save_pretrained(tmp_path / "adapter")
    return tmp_path


def load(folder, **kwargs):
    return ZegClipForSemanticSegmentation.from_pretrained(folder, **kwargs).eval()


WAYS = {
    "load_adapter": lambda base, adapter, dtype: load(base, dtype=dtype).load_adapter(adapter),
    "PeftModel": lambda base, adapter, dtype: PeftModel.from_pretrained(load(base, dtype=dtype), adapter),
    "PeftModel.load_adapter": lambda base, adapter, dtype: get_peft_model(
        load(base, dtype=dtype), DeepPromptConfig(num_tokens=2), adapter_name="first"
    ).load_adapter(adapter, "second"),
    "load_adapter_into": lambda base, adapter, dtype: load_adapter_into(
        get_peft_model(load(base, dtype=dtype), DeepPromptConfig(num_tokens=2)), adapter
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_another_base_is_a_warning_that_names_both(places, way):
    with pytest.warns(OtherBaseWarning) as caught:
        WAYS[way](places / "other", places / "adapter", torch.float32)
    [text] = {str(warning.message) for warning in caught if warning.category is OtherBaseWarning}
    assert str(places / "own") in text
    assert str(places / "other") in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_its_own_base_in_any_precision_is_none(places, way, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherBaseWarning)
        WAYS[way](places / "own", places / "adapter", dtype)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_an_adapter_of_a_half_precision_base_fits_the_others(places, tmp_path, stored):
    half = load(places / "own", dtype=stored)
    get_peft_model(half, DeepPromptConfig(num_tokens=2)).save_pretrained(tmp_path / "of_half")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with warnings.catch_warnings():
            warnings.simplefilter("error", OtherBaseWarning)
            load(places / "own", dtype=dtype).load_adapter(tmp_path / "of_half")


@pytest.mark.parametrize("part", ["mlp.fc1.weight", "layer_norm1.weight", "self_attn.q_proj.bias"])
def test_a_slightly_fine_tuned_base_is_another(places, part):
    tuned = load(places / "own")
    with torch.no_grad():
        tuned.clip.vision_model.encoder.layers[0].get_parameter(part).mul_(1.02).add_(1e-3)
    with pytest.warns(OtherBaseWarning):
        tuned.load_adapter(places / "adapter")


def test_a_base_that_is_named_is_meant_and_remembered(places, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherBaseWarning)
        model = load(places / "adapter", base_model_name_or_path=places / "other")
        model.save_pretrained(tmp_path / "moved")
        load(tmp_path / "moved")
    with pytest.warns(OtherBaseWarning):
        load(places / "own").load_adapter(tmp_path / "moved")


def test_a_fresh_adapter_knows_its_base_in_every_way_of_adding_it(model, places):
    added = load(places / "own")
    added.add_adapter(DeepPromptConfig(num_tokens=2, inference_mode=True))
    tuned = get_peft_model(load(places / "own"), DeepPromptConfig(num_tokens=2))
    assert added.peft_config["default"].base_fingerprint == tuned.peft_config["default"].base_fingerprint is not None


def test_a_configuration_may_make_adapters_of_several_bases(places, tmp_path):
    config = DeepPromptConfig(num_tokens=2)
    own = load(places / "own")
    own.config.id2label = {0: "fish"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherBaseWarning)
        get_peft_model(own, config)
        second = get_peft_model(load(places / "other"), config)
        second.save_pretrained(tmp_path / "second")
        assert second.config.id2label != {0: "fish"}
        load(places / "other").load_adapter(tmp_path / "second")


@pytest.mark.parametrize("value", ["hello!!", "AAA="])
def test_what_is_no_fingerprint_is_refused_by_name(value):
    with pytest.raises(ValueError, match="base_fingerprint"):
        DeepPromptConfig(base_fingerprint=value)


def test_a_converted_clip_is_not_doubled_once_more(official):
    model = convert(official, method="zegclip")
    model.delete_adapter("default")
    with pytest.raises(ValueError, match="a third time"):
        model.add_adapter(DeepPromptConfig(double_class_embedding=True))
    model.add_adapter(DeepPromptConfig())
