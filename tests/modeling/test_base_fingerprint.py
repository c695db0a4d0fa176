"""An adapter notices another CLIP, however it is loaded, and knows its own in any precision."""

import copy
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_models import load

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
    tuned(tmp_path / "own").save_pretrained(tmp_path / "adapter")
    return tmp_path


def tuned(folder, dtype=torch.float32, name="default"):
    return get_peft_model(load(folder, dtype=dtype), DeepPromptConfig(num_tokens=2), adapter_name=name)


WAYS = {
    "load_adapter": lambda base, adapter, dtype: load(base, dtype=dtype).load_adapter(adapter),
    "PeftModel": lambda base, adapter, dtype: PeftModel.from_pretrained(load(base, dtype=dtype), adapter),
    "PeftModel.load_adapter": lambda base, adapter, dtype: tuned(base, dtype, "first").load_adapter(adapter, "second"),
    "load_adapter_into": lambda base, adapter, dtype: load_adapter_into(tuned(base, dtype), adapter),
}


@pytest.fixture
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherBaseWarning)
        yield


@pytest.mark.parametrize("way", WAYS)
def test_another_base_is_a_warning_that_names_both(places, way):
    with pytest.warns(OtherBaseWarning) as caught:
        WAYS[way](places / "other", places / "adapter", torch.float32)
    [text] = {str(warning.message) for warning in caught if warning.category is OtherBaseWarning}
    assert str(places / "own") in text
    assert str(places / "other") in text


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_its_own_base_in_any_precision_is_none(places, no_warning, way, stored, dtype):
    if stored != torch.float32:
        tuned(places / "own", stored).save_pretrained(places / "adapter")
    WAYS[way](places / "own", places / "adapter", dtype)


@pytest.mark.parametrize("part", ["mlp.fc1.weight", "layer_norm1.weight", "self_attn.q_proj.bias"])
def test_a_slightly_fine_tuned_base_is_another(places, part):
    base = load(places / "own")
    with torch.no_grad():
        base.clip.vision_model.encoder.layers[0].get_parameter(part).mul_(1.02).add_(1e-3)
    with pytest.warns(OtherBaseWarning):
        base.load_adapter(places / "adapter")


def test_a_base_that_is_named_is_meant_and_remembered(places, no_warning, tmp_path):
    load(places / "adapter", base_model_name_or_path=places / "other").save_pretrained(tmp_path / "moved")
    load(tmp_path / "moved")
    with pytest.warns(OtherBaseWarning):
        load(places / "own").load_adapter(tmp_path / "moved")


def test_a_fresh_adapter_knows_its_base_in_every_way_of_adding_it(places):
    added = load(places / "own")
    added.add_adapter(DeepPromptConfig(num_tokens=2, inference_mode=True))
    wrapped = tuned(places / "own")
    assert added.peft_config["default"].base_fingerprint == wrapped.peft_config["default"].base_fingerprint is not None


def test_a_configuration_may_make_adapters_of_several_bases(places, no_warning, tmp_path):
    config = DeepPromptConfig(num_tokens=2)
    own = load(places / "own")
    own.config.id2label = {0: "fish"}
    get_peft_model(own, config)
    second = get_peft_model(load(places / "other"), config)
    second.save_pretrained(tmp_path / "second")
    assert second.config.id2label != {0: "fish"}
    load(places / "other").load_adapter(tmp_path / "second")


def test_a_converted_clip_is_not_doubled_once_more(official):
    model = convert(official, method="zegclip")
    model.delete_adapter("default")
    with pytest.raises(ValueError, match="a third time"):
        model.add_adapter(DeepPromptConfig(double_class_embedding=True))
    model.add_adapter(DeepPromptConfig())
