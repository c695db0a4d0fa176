"""Several adapters on one model: each answers as it does alone, whatever was loaded, switched or deleted before."""

import copy
import itertools
import json
import logging
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import load, logits, move, pictures

from zegclip import DeepPromptConfig, ZegClipConfig
from zegclip.modeling.model_error import ModelError

NAMES = ["cat", "tree", "b"]
KINDS = ["few", "many", "spectral", "worded"]
ANSWERS: dict = {}
TRAINED_ON = {"few": ["cat"], "many": ["tree", "b"], "spectral": ["b", "cat", "dog"], "worded": ["tree", "dog"]}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Where base and adapters lie that all tests share; no test changes them."""
    return tmp_path_factory.mktemp("workshop")


@pytest.fixture
def base_folder(model, workshop):
    if not (workshop / "base").exists():
        model.save_pretrained(workshop / "base")
    return workshop / "base"


@pytest.fixture
def inputs(processor):
    return {"pixel_values": pictures(2, 32, 40), **processor(text=NAMES, return_tensors="pt")}


def prompts(kind, processor):
    grid = {"spectral_prompt": True, "spectral_layers": [0], "spectral_grid_size": 5}
    fields = {
        "few": {"num_tokens": 2, "num_deep_layers": -1},
        "many": {"num_tokens": 5, "num_deep_layers": 0, "double_class_embedding": True},
        "spectral": {"num_tokens": 3, "spectral_prompt": True},
        "worded": {"num_tokens": 3, "text_prompts": "words", "text_prompt_ids": processor.text_prompt_ids(), **grid},
    }
    return DeepPromptConfig(**fields[kind])


def train(base, kind, processor):
    """What training leaves behind in memory, with class names of its own."""
    names = TRAINED_ON[kind]
    described = {"id2label": dict(enumerate(names)), "seen_class_names": names[:1], "focal_weight": float(len(names))}
    base.config.apply_head(described)
    return move(get_peft_model(base, prompts(kind, processor)), KINDS.index(kind))


@pytest.fixture
def folders(base_folder, processor, workshop):
    """One adapter of each kind: some as train.py leaves them, some as `save_pretrained` of a model leaves them."""
    folders = {kind: workshop / "adapters" / kind for kind in KINDS}
    for kind, folder in folders.items():
        if folder.exists():
            continue
        tuned = train(load(base_folder), kind, processor)
        if kind in ("few", "worded"):
            tuned.save_pretrained(folder)
            tuned.config.save_pretrained(folder)
        else:
            tuned.save_pretrained(workshop / "trained" / kind)
            load(workshop / "trained" / kind).save_pretrained(folder)
    return folders


@pytest.fixture
def own(folders, tmp_path):
    """A copy of an adapter's folder, to damage."""
    return Path(shutil.copytree(folders["few"], tmp_path / "own"))


def description(model):
    described = model.config.describe_head()
    assert model.config.label2id == {name: index for index, name in described["id2label"].items()}
    return described


@pytest.fixture
def alone(folders, inputs, workshop):
    """What each adapter says as a model of its own: logits and configuration, different from those of the others."""
    if workshop not in ANSWERS:
        models = {kind: load(folder) for kind, folder in folders.items()}
        ANSWERS[workshop] = {kind: (answer(model, inputs), description(model)) for kind, model in models.items()}
        for one, other in itertools.combinations(ANSWERS[workshop].values(), 2):
            assert not torch.allclose(one[0], other[0], atol=1e-3)
            assert one[1] != other[1]
    return ANSWERS[workshop]


@pytest.fixture
def together(base_folder, folders):
    """One model with all adapters; the last one is active."""
    model = load(base_folder)
    for kind, folder in folders.items():
        model.load_adapter(folder, kind)
    return model


def answer(model, inputs):
    """
    The logits of a copy, all bits of which can be compared.

    A loaded tensor lies where it does in its file, and PEFT copies it elsewhere. With several threads, MKL rounds a
    product of a few rows (prompts, names) otherwise if a factor's address is no multiple of 16 bytes. Copies all are.
    """
    return logits(copy.deepcopy(model), inputs)


def assert_is(model, inputs, expected):
    assert torch.equal(answer(model, inputs), expected[0])
    assert description(model) == expected[1]


def snapshot(model):
    tensors = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in model.named_parameters()}
    return tensors, model.training, description(model), model._hf_peft_config_loaded


def assert_unchanged(model, before):
    after = snapshot(model)
    assert after[0].keys() == before[0].keys()
    for name, (tensor, trained) in before[0].items():
        assert torch.equal(after[0][name][0], tensor), name
        assert after[0][name][1] == trained, name
    assert after[1:] == before[1:]


def test_each_adapter_answers_as_it_does_alone(together, alone, inputs):
    assert together.active_adapters() == ["worded"]
    for kind in (*KINDS, *KINDS[::-1], "few", "worded", "spectral", "few"):
        together.set_adapter(kind)
        assert together.active_adapters() == [kind]
        assert_is(together, inputs, alone[kind])


@pytest.fixture
def logged():
    """What transformers logs, which does not reach pytest's own handlers."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    yield records
    logging.getLogger("transformers").removeHandler(handler)


def test_loading_says_nothing(base_folder, folders, logged):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("default", message=".*is_gradient_checkpointing")  # of transformers, about itself
        model = load(base_folder)
        for kind, folder in folders.items():
            model.load_adapter(folder, adapter_name=kind)
    assert not logged


def test_loading_an_adapter_changes_no_tensor_that_is_there(model, folders, processor):
    """Neither the base's nor those of an adapter that was added and trained here, whatever the new one is called."""
    model.add_adapter(prompts("worded", processor), "mine")
    move(model, 5)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    for name, kind in (("text", "worded"), ("vision", "many"), ("b", "spectral"), ("mine2", "few")):
        model.load_adapter(folders[kind], name)
        now = dict(model.named_parameters())
        for key, tensor in before.items():
            assert torch.equal(now[key], tensor), (name, key)


def test_disabled_and_enabled(base_folder, together, alone, inputs):
    base = answer(load(base_folder), inputs)
    for kind in ("spectral", "worded"):
        together.set_adapter(kind)
        together.disable_adapters()
        assert_is(together, inputs, (base, alone[kind][1]))  # the same question, asked of the base
        together.enable_adapters()
        assert_is(together, inputs, alone[kind])
    together.disable_adapters()
    together.set_adapter("few")
    assert_is(together, inputs, (base, alone["few"][1]))
    together.enable_adapters()
    assert_is(together, inputs, alone["few"])


def test_a_decode_head_that_may_be_random_takes_over_with_a_warning(together, folders):
    def warned(call, *names):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(*names)
        found = [one for one in caught if "random unless" in str(one.message)]
        assert all(one.filename == __file__ for one in found)
        return len(found)

    assert warned(together.disable_adapters) == 1
    assert not warned(together.disable_adapters)
    assert not warned(together.load_adapter, folders["few"], "another")
    assert not warned(together.set_adapter, "few")
    together.enable_adapters()
    assert warned(together.add_adapter, DeepPromptConfig(num_tokens=2, modules_to_save=[]), "headless") == 1
    assert not warned(together.set_adapter, "few")
    assert warned(together.set_adapter, "headless") == 1
    assert not warned(together.disable_adapters)  # it was the base's already
    together.enable_adapters()
    together.set_adapter("few")
    assert not sum(warned(together.delete_adapter, kind) for kind in ("headless", "another", *KINDS[:-1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="random unless"):
            together.delete_adapter(KINDS[-1])
    assert not any("base_layer" in name or "original_module" in name for name in together.state_dict())


def test_what_is_loaded_while_adapters_are_disabled_is_disabled_too(base_folder, folders, alone, inputs):
    model = load(base_folder)
    base = answer(model, inputs)
    model.load_adapter(folders["few"], "few")
    model.disable_adapters()
    model.load_adapter(folders["worded"], "worded")  # the first with text prompts
    assert torch.equal(answer(model, inputs), base)
    model.enable_adapters()
    assert_is(model, inputs, alone["worded"])


@pytest.mark.parametrize(
    ("active", "gone"), [("few", "few"), ("worded", "worded"), ("spectral", "worded"), ("worded", "many")]
)
def test_deleted_adapters_leave_the_others_alone(together, alone, inputs, active, gone):
    together.set_adapter(active)
    if active == gone:
        successor = min(set(KINDS) - {gone})
        with pytest.warns(UserWarning, match=f"'{gone}'.*'{successor}'"):
            together.delete_adapter(gone)
    else:
        successor = active
        together.delete_adapter(gone)
    assert not any(f".{gone}." in f"{name}." for name in together.state_dict())
    assert_is(together, inputs, alone[successor])
    for kind in set(KINDS) - {gone}:
        together.set_adapter(kind)
        assert_is(together, inputs, alone[kind])


def test_without_adapters_the_model_is_the_plain_base_again(base_folder, together, folders, alone, inputs, tmp_path):
    base = load(base_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together.delete_adapter(KINDS)
    assert together.state_dict().keys() == base.state_dict().keys()
    assert torch.equal(answer(together, inputs), answer(base, inputs))
    together.save_pretrained(tmp_path / "plain")
    assert torch.equal(answer(load(tmp_path / "plain"), inputs), answer(base, inputs))
    together.load_adapter(folders["worded"])
    assert_is(together, inputs, alone["worded"])


def test_what_is_loaded_is_frozen_and_what_is_added_learns(together, processor):
    def learning():
        return {name for name, parameter in together.named_parameters() if parameter.requires_grad}

    assert not learning()
    together.eval()
    together.add_adapter(prompts("worded", processor), "mine")
    assert not any(module.training for module in together.modules())
    of_mine = {name for name, _ in together.named_parameters() if ".mine" in name}
    assert learning() == of_mine
    together.set_adapter("few")
    assert not learning()
    together.disable_adapters()
    together.enable_adapters()
    assert not learning()
    together.set_adapter("mine")
    assert learning() == of_mine
    together.add_adapter(prompts("few", processor), "other")
    of_other = {name for name, _ in together.named_parameters() if ".other" in name}
    assert learning() == of_other
    together.delete_adapter("few")
    assert learning() == of_other


def test_an_adapter_can_be_loaded_to_go_on_training(base_folder, folders):
    assert not any(parameter.requires_grad for parameter in load(folders["few"]).parameters())
    model = load(base_folder)
    model.load_adapter(folders["few"], "few", is_trainable=True)
    model.load_adapter(folders["many"], "many")
    model.set_adapter("few")
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if ".few" in name}


def test_peft_models_follow_too(base_folder, folders, alone, inputs):
    model = PeftModel.from_pretrained(load(base_folder), folders["few"], adapter_name="few").eval()
    for kind in KINDS[1:]:
        model.load_adapter(folders[kind], adapter_name=kind)
        assert_is(model, inputs, alone["few"])
    for kind in (*KINDS[1:], *KINDS[::-1]):
        model.set_adapter(kind)
        assert_is(model, inputs, alone[kind])
    model.delete_adapter("worded")
    assert not any(".worded" in name for name in model.state_dict())
    assert_is(model, inputs, alone["few"])


def test_peft_refuses_a_second_adapter_with_another_head(base_folder, folders, own):
    """PEFT skips the injection hooks of a tuner for all adapters but the first."""
    model = PeftModel.from_pretrained(load(base_folder), folders["few"], adapter_name="few")
    change_the_head(own)
    with pytest.raises(ModelError, match="descriptor"):
        model.load_adapter(own, adapter_name="other")
    model.config.clip_config.class_embedding_doubled = True
    with pytest.raises(ModelError, match="a third time"):
        model.add_adapter("doubled", DeepPromptConfig(double_class_embedding=True))


def test_peft_saves_the_class_names_in_use(base_folder, folders, alone, tmp_path):
    """Of each adapter; those of the active one were changed after it had been added."""
    model = PeftModel.from_pretrained(load(base_folder), folders["few"], adapter_name="few")
    model.load_adapter(folders["worded"], adapter_name="worded")
    model.add_adapter("fresh", DeepPromptConfig(num_tokens=2))
    model.set_adapter("worded")
    model.config.apply_head({"id2label": {0: "fish"}, "prompt_templates": ["the {}"]})
    model.save_pretrained(tmp_path)
    loaded = {kind: load(tmp_path / kind).config.describe_head() for kind in ("few", "worded", "fresh")}
    assert loaded["few"] == loaded["fresh"] == alone["few"][1]
    assert loaded["worded"] == alone["worded"][1] | {"id2label": {0: "fish"}, "prompt_templates": ["the {}"]}


def test_peft_deletes_the_active_adapter(base_folder, folders, alone, inputs):
    """PEFT then activates another one without calling `set_adapter`."""
    model = PeftModel.from_pretrained(load(base_folder), folders["few"], adapter_name="few").eval()
    model.load_adapter(folders["worded"], adapter_name="worded")
    with pytest.warns(UserWarning, match="worded"):
        model.delete_adapter("few")
    assert_is(model, inputs, alone["worded"])


def test_all_copies_of_the_decode_head_use_one_configuration(base_folder, tmp_path):
    """PEFT copies the base's decode head with its configuration and its dropout."""
    base = load(base_folder)
    base.config.decoder_dropout = 0.3
    tuned = get_peft_model(base, DeepPromptConfig(num_tokens=2))
    tuned.save_pretrained(tmp_path)
    injected = load(base_folder)
    injected.load_adapter(tmp_path, is_trainable=True)
    second = PeftModel.from_pretrained(load(base_folder), tmp_path, adapter_name="first")
    second.load_adapter(tmp_path, adapter_name="second", is_trainable=True)
    second.set_adapter("second")
    models = [(model, 0.3) for model in (tuned, injected, second, load(tmp_path))]
    for model, dropout in (*models, (load(tmp_path, decoder_dropout=0.2), 0.2)):
        model.set_attn_implementation("eager")
        (name,) = model.decode_head.active_adapters
        parts = list(model.decode_head.modules_to_save[name].modules())
        assert all(part.config is model.config for part in parts if hasattr(part, "config"))
        assert model.config.decoder_dropout == dropout


def test_an_adapter_in_a_subfolder_takes_its_base_from_elsewhere(folders, alone, inputs):
    """transformers would look for the base in the same subfolder."""
    assert_is(load(folders["few"].parent, subfolder="few"), inputs, alone["few"])


def test_changes_of_the_configuration_stay_with_the_adapter(together, alone, tmp_path):
    together.set_adapter("few")
    changed = {"id2label": {0: "fish"}, "prompt_templates": ["the {}", "a photo of a {}"]}
    together.config.apply_head(changed)
    together.set_adapter("many")
    assert description(together) == alone["many"][1]
    together.set_adapter("few")
    assert description(together) == alone["few"][1] | changed
    together.save_pretrained(tmp_path / "renamed")
    assert description(load(tmp_path / "renamed")) == alone["few"][1] | changed


def test_one_configuration_may_serve_several_adapters(base_folder, processor, tmp_path):
    config = prompts("few", processor)
    first, second = load(base_folder), load(base_folder)
    for model, name in ((first, "indoor"), (first, "outdoor"), (second, "default")):
        model.add_adapter(config, name)
        model.config.apply_head({"id2label": {0: f"{name} {len(model.peft_config)}"}})
    first.set_adapter("indoor")
    for model, expected in ((first, "indoor 1"), (second, "default 1")):
        assert model.config.id2label == {0: expected}
        model.save_pretrained(tmp_path / expected)
        assert load(tmp_path / expected).config.id2label == {0: expected}
    wrapped = [get_peft_model(load(base_folder), config) for _ in range(2)]
    wrapped[0].base_model.model.config.id2label = {0: "a"}
    wrapped[1].base_model.model.config.id2label = {0: "b"}
    wrapped[0].save_pretrained(tmp_path / "a")
    assert load(tmp_path / "a").config.id2label == {0: "a"}


def test_a_configuration_that_contradicts_the_adapter_is_named(folders, tmp_path):
    load(folders["few"]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"focal_weight": 7.0}))
    with pytest.warns(UserWarning, match="differ in focal_weight"):
        load(tmp_path)


def test_a_new_adapter_has_nothing_of_a_deleted_one(folders, processor):
    model = load(folders["few"])
    model.config.training_free_weight = 0.1
    assert model.config.seen_class_names
    model.delete_adapter("default")
    model.add_adapter(prompts("few", processor), "mine")
    assert model.config.training_free_weight == 0
    assert not model.config.seen_class_names


def test_without_adapters_the_base_has_its_own_fields_again(model, folders, tmp_path):
    model.config.training_free_weight, model.config.seen_class_names = 0.3, ["house"]
    model.config.prompt_templates, model.config.naclip_sigma = ["a {}"], 1.0
    model.config.apply_head({"id2label": {0: "house", 1: "cat"}})
    model.save_pretrained(tmp_path)
    base = load(tmp_path)
    before = description(base)
    base.load_adapter(folders["few"])
    assert base.config.seen_class_names != ["house"]
    base.delete_adapter("default")
    assert description(base) == before


def test_a_model_without_adapter_is_not_saved_over_one(folders, tmp_path):
    shutil.copytree(folders["few"], tmp_path / "folder")
    model = load(tmp_path / "folder")
    model.save_pretrained(tmp_path / "folder")
    model.save_with_base(tmp_path / "folder")
    model.save_with_base(tmp_path / "folder")
    model.delete_adapter("default")
    with pytest.raises(ModelError, match="has an adapter"):
        model.save_pretrained(tmp_path / "folder")


def test_a_base_that_was_changed_is_saved_with_the_adapter(folders, inputs, tmp_path):
    model = load(folders["few"])
    with torch.no_grad():
        for parameter in model.clip.parameters():
            parameter.mul_(1.1)
    with pytest.warns(UserWarning, match="has changed"):
        model.save_pretrained(tmp_path / "changed")
    torch.testing.assert_close(answer(load(tmp_path / "changed"), inputs), answer(model, inputs))
    assert model.name_or_path  # Saving changes nothing in memory.


@pytest.mark.parametrize("kind", ["few", "lora"])
def test_a_base_that_was_changed_before_the_adapter_is_saved_with_it(base_folder, processor, inputs, tmp_path, kind):
    """Also by so little as one row of a table, as when a word is learned."""
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["decode_head"])
    model = load(base_folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[inputs["input_ids"][0, 1]] += 1.0
    model.add_adapter(lora if kind == "lora" else prompts(kind, processor))
    move(model.eval())
    with pytest.warns(UserWarning, match="has changed"):
        model.save_pretrained(tmp_path / "changed")
    torch.testing.assert_close(answer(load(tmp_path / "changed"), inputs), answer(model, inputs))


@pytest.mark.parametrize("method", ["merged", "biases", "IA3", "norms", "projection"])
def test_what_an_adapter_of_another_method_changes_is_not_the_base(base_folder, inputs, tmp_path, method):
    configs = {
        "merged": LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
        "biases": LoraConfig(r=2, target_modules=["q_proj"], bias="all"),
        "IA3": IA3Config(target_modules=["v_proj"], feedforward_modules=[]),
        "norms": LNTuningConfig(target_modules=["layer_norm1"]),
        "projection": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["visual_projection"]),
    }
    model = load(base_folder)
    model.add_adapter(configs[method])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("default" in name or name.endswith(".bias")):
                parameter += 0.1
    expected = answer(model.eval(), inputs)
    if method == "merged":
        for layer in model.modules():
            if hasattr(layer, "merged_adapters"):
                layer.merge()
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    torch.testing.assert_close(answer(load(tmp_path), inputs), expected, atol=1e-5, rtol=1e-5)


def test_a_decode_head_of_the_base_that_was_trained_is_saved_with_the_adapter(base_folder, inputs, tmp_path):
    model = load(base_folder)
    model.add_adapter(DeepPromptConfig(num_tokens=2, modules_to_save=None))
    with torch.no_grad():
        for parameter in model.decode_head.parameters():
            parameter += 0.1
    with pytest.warns(UserWarning, match="has changed"):
        model.save_pretrained(tmp_path)
    torch.testing.assert_close(answer(load(tmp_path), inputs), answer(model.eval(), inputs))


def test_weights_that_are_given_to_save_are_those_of_base_and_adapter(folders, inputs, tmp_path):
    load(folders["few"]).save_with_base(tmp_path / "both")
    model = load(tmp_path / "both")
    model.save_pretrained(tmp_path / "given", state_dict=model.state_dict())  # as accelerate hands them over
    torch.testing.assert_close(answer(load(tmp_path / "given"), inputs), answer(model, inputs))
    with pytest.raises(ValueError, match="variant"):
        model.save_pretrained(tmp_path / "variant", variant="fp16")


def test_an_adapter_that_was_trained_further_on_another_base_names_it(model, base_folder, folders, inputs, tmp_path):
    move(model.clip)
    model.save_pretrained(tmp_path / "other")
    loaded = load(tmp_path / "other")
    with pytest.warns(UserWarning, match="are different"):
        loaded.load_adapter(folders["few"], is_trainable=True)
    loaded.save_pretrained(tmp_path / "further")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(answer(load(tmp_path / "further"), inputs), answer(loaded.eval(), inputs))


def test_a_base_without_all_weights_of_the_clip_is_refused(base_folder, folders, tmp_path):
    load(base_folder).clip.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    save_file({name: weights[name] for name in weights if "text_model" not in name}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks fitting weights.*text_model"):
        load(folders["few"], base_model_name_or_path=tmp_path / "base")


def test_the_configuration_beside_an_adapter_of_another_method_is_the_adapters(model, tmp_path):
    model.config.training_free_weight = 0.3
    model.save_pretrained(tmp_path / "base")
    tuned = load(tmp_path / "base")
    tuned.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    tuned.config.apply_head({"id2label": {0: "cat"}, "naclip_sigma": 2.0})
    tuned.save_pretrained(tmp_path / "lora")
    assert description(load(tmp_path / "lora")) == description(tuned)
    (tmp_path / "lora" / "config.json").unlink()  # as PEFT saves it
    assert description(load(tmp_path / "lora")) == description(load(tmp_path / "base"))
    (tmp_path / "base").rename(tmp_path / "moved")
    moved = load(tmp_path / "lora", base_model_name_or_path=tmp_path / "moved")
    assert description(moved) == description(load(tmp_path / "moved"))


def test_an_adapter_on_another_base_is_saved_alone(model, folders, tmp_path):
    with torch.no_grad():
        for parameter in model.clip.parameters():
            parameter.mul_(1.1)
    model.save_pretrained(tmp_path / "other")
    loaded = load(folders["few"], base_model_name_or_path=tmp_path / "other")
    loaded.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()


def test_what_is_asked_for_at_loading_stays_with_the_adapter(folders, alone):
    model = load(folders["few"], focal_weight=7.0)
    model.load_adapter(folders["many"], "many")
    assert description(model) == alone["many"][1]
    model.set_adapter("default")
    assert description(model) == alone["few"][1] | {"focal_weight": 7.0}


def test_adapters_of_earlier_versions_load(base_folder, folders, own, inputs, alone):
    """Fields that the first version did not have are at their defaults, whichever adapter was active before."""
    fields = ("num_tokens", "num_deep_layers", "dropout", "target_modules", "modules_to_save", "peft_type")
    head_fields = (
        "decode_head_type",
        "descriptor",
        "num_decoder_layers",
        "decoder_attention_heads",
        "decoder_ffn_dim",
    )
    path = own / "adapter_config.json"
    stored = json.loads(path.read_text())
    described = {name: stored[name] for name in (*fields, "peft_version", "base_model_name_or_path")}
    described["model_config"] = {
        name: stored["model_config"][name] for name in (*head_fields, "decoder_ffn_dim", "id2label")
    }
    path.write_text(json.dumps(described))
    (own / "config.json").unlink()
    injected = load(base_folder)
    injected.load_adapter(folders["many"], "many")
    injected.load_adapter(own, "few")
    for model in (injected, PeftModel.from_pretrained(load(base_folder), own).eval(), load(own)):
        assert torch.equal(answer(model, inputs), alone["few"][0])
        assert model.config.id2label == alone["few"][1]["id2label"]
        assert (model.config.focal_weight, model.config.ssim_weight) == (ZegClipConfig().focal_weight, 0)


def tensor_named(weights, part):
    return next(name for name in weights if part in name)


# How to change the tensors of an adapter's file.
DAMAGES = {
    "a tensor is missing": lambda weights: weights.pop(tensor_named(weights, "deep_prompt_norm")),
    "a tensor is larger": lambda weights: weights.update(
        {tensor_named(weights, "deep_prompt_tokens"): torch.zeros(1, 7, 32)}
    ),
    "a tensor is unexpected": lambda weights: weights.update(
        {"base_model.model.clip.vision_model.encoder.deep_prompt_filter": torch.zeros(4, 3, 32, 2)}
    ),
}


def change_the_head(folder):
    path = folder / "adapter_config.json"
    described = json.loads(path.read_text())
    described["model_config"]["descriptor"] = ["text"]
    path.write_text(json.dumps(described))


def damage(folder, kind):
    path = folder / "adapter_model.safetensors"
    if kind in DAMAGES:
        weights = load_file(path)
        DAMAGES[kind](weights)
        save_file(weights, path)
    elif kind == "the file is torn":
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "the file is missing":
        path.unlink()
    else:
        change_the_head(folder)


@pytest.mark.parametrize("further", [False, True])
@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("a tensor is missing", r"deep_prompt_norm\.bad"),
        ("a tensor is larger", r"deep_prompt_tokens\.bad .*\(1, 7, 32\).*\(1, 2, 32\)"),
        ("a tensor is unexpected", "deep_prompt_filter"),
        ("the file is torn", "weights"),
        ("the file is missing", "adapter_model"),
        ("another head", "descriptor"),
    ],
)
def test_what_cannot_be_loaded_leaves_the_model_as_it_was(
    base_folder, folders, own, alone, inputs, processor, further, kind, named
):
    model = load(base_folder)
    if further:
        model.load_adapter(folders["worded"], "worded")
        model.add_adapter(prompts("many", processor), "mine")
        model.train()
    before = snapshot(model)
    damage(own, kind)
    with pytest.raises(OSError if kind == "the file is missing" else ModelError, match=named):
        model.load_adapter(own, "bad")
    assert_unchanged(model, before)
    model.load_adapter(folders["few"], "bad")
    assert_is(model.eval(), inputs, alone["few"])


@pytest.mark.parametrize("name", ["decode_head", "layers", "weight", "0", "modules_to_save", "a.b", "few"])
def test_names_that_cannot_be_used(together, folders, processor, name):
    before = snapshot(together)
    with pytest.raises(ValueError, match=repr(name)):
        together.add_adapter(prompts("few", processor), name)
    with pytest.raises(ValueError, match=repr(name)):
        together.load_adapter(folders["few"], name)
    assert_unchanged(together, before)


def test_one_adapter_is_active_and_it_is_there(model, together, inputs, alone, tmp_path):
    for wrong, named in ((["few", "many"], "many"), ([], r"\[\]"), ("fewer", "fewer")):
        with pytest.raises(ValueError, match=named):
            together.set_adapter(wrong)
    assert_is(together, inputs, alone["worded"])
    with pytest.raises(ModelError, match="nowhere"):
        together.load_adapter(tmp_path / "nowhere", "new")
    with pytest.raises(ValueError, match="few"):
        model.set_adapter("few")


def test_an_adapter_without_a_head_of_its_own(together, processor, base_folder, inputs, alone):
    together.add_adapter(DeepPromptConfig(num_tokens=2, modules_to_save=None), "bare")
    assert torch.equal(together.decode_head.query_proj.weight, load(base_folder).decode_head.query_proj.weight)
    for kind in ("few", "bare", "worded"):
        together.set_adapter(kind)
        if kind != "bare":
            assert_is(together, inputs, alone[kind])


def test_only_the_active_adapter_is_saved_and_its_base_is_not(together, tmp_path, alone, inputs):
    for kind in KINDS:
        together.set_adapter(kind)
        together.save_pretrained(tmp_path / kind)
        names = {path.name for path in (tmp_path / kind).iterdir()}
        assert names == {"adapter_config.json", "adapter_model.safetensors", "config.json"}
        assert_is(load(tmp_path / kind), inputs, alone[kind])


@pytest.mark.parametrize("kind", ["few", "worded"])
def test_base_and_adapter_in_one_folder(base_folder, folders, alone, inputs, tmp_path, kind):
    model = load(folders[kind])
    model.save_with_base(tmp_path / "both")
    for name in ("config.json", "adapter_config.json"):
        assert str(base_folder) not in (tmp_path / "both" / name).read_text()
    both = load(tmp_path / "both")
    both.save_pretrained(tmp_path / "again")  # what came from one folder is saved to one folder
    for other in (model, both, load(tmp_path / "again")):
        assert_is(other, inputs, alone[kind])
    both.disable_adapters()
    assert torch.equal(answer(both, inputs), answer(load(base_folder), inputs))


def test_a_further_adapter_does_not_bring_the_base_along(folders, processor, tmp_path):
    """The base of the first lies beside it; that of the second is then there."""
    load(folders["few"]).save_with_base(tmp_path / "both")
    model = load(tmp_path / "both")
    model.add_adapter(prompts("many", processor), "mine")
    model.save_pretrained(tmp_path / "mine")
    assert not (tmp_path / "mine" / "model.safetensors").exists()
    load(tmp_path / "mine")


@pytest.mark.parametrize("kind", ["few", "worded"])
@pytest.mark.parametrize("base", ["model", "plain CLIP"])
def test_adapters_apply_to_a_fine_tuned_base(model, folders, alone, inputs, tmp_path, kind, base, logged):
    """The same architecture with other weights, as a whole model or as a plain CLIP."""
    with torch.no_grad():
        for parameter in model.clip.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    (model if base == "model" else model.clip).save_pretrained(tmp_path / "base")
    model.load_adapter(folders[kind])
    expected = (answer(model.eval(), inputs), alone[kind][1])
    assert (expected[0] - alone[kind][0]).abs().max() > 1e-3
    named = load(folders[kind], base_model_name_or_path=tmp_path / "base")
    assert not any("REPORT" in message for message in logged)
    named.save_pretrained(tmp_path / "again")
    config = ZegClipConfig.from_pretrained(folders[kind])
    injected = load(tmp_path / "base", config=config)
    injected.load_adapter(folders[kind])
    wrapped = PeftModel.from_pretrained(load(tmp_path / "base", config=config), folders[kind]).eval()
    for other in (named, load(tmp_path / "again"), injected, wrapped):
        assert_is(other, inputs, expected)


def test_another_base_must_be_there_and_needs_an_adapter(base_folder, folders, tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        load(folders["few"], base_model_name_or_path=tmp_path / "nowhere")
    with pytest.raises(ModelError, match="adapter"):
        load(base_folder, base_model_name_or_path=base_folder)
    with pytest.raises(ModelError, match="adapter alone"):
        load(folders["few"], base_model_name_or_path=folders["many"])


def test_the_configuration_of_an_adapter_alone(folders, alone):
    for kind, folder in folders.items():
        config = ZegClipConfig.from_pretrained(folder)
        assert config.describe_head() == alone[kind][1]
        assert config.clip_config.vision_config.patch_size == 8


@pytest.mark.parametrize("way", ["from_pretrained", "load_adapter", "PeftModel", "to"])
def test_adapters_apply_to_a_bf16_base(base_folder, folders, alone, inputs, way):
    if way == "load_adapter":
        model = load(base_folder, dtype=torch.bfloat16)
        for kind in ("few", "worded"):
            model.load_adapter(folders[kind], kind)
    elif way == "PeftModel":
        model = PeftModel.from_pretrained(load(base_folder, dtype=torch.bfloat16), folders["worded"]).eval()
    elif way == "to":
        model = load(folders["worded"]).to(torch.bfloat16)
    else:
        model = load(folders["worded"], dtype=torch.bfloat16)
    half = logits(model, inputs | {"pixel_values": inputs["pixel_values"].bfloat16()})
    exact = alone["worded"][0]
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert description(model) == alone["worded"][1]


@pytest.mark.parametrize("described", [None, {"peft_type": "LORA"}])
def test_what_is_no_adapter_for_this_model_is_named(base_folder, tmp_path, described):
    if described is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match=tmp_path.name):
        load(base_folder).load_adapter(tmp_path, "other")
