"""Several adapters on one model: each answers as it does alone, whatever was loaded, switched or deleted before."""

import copy
import json
import logging
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation, ZeroShotImageSegmentationPipeline
from zegclip.loading import load_base
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
    generator = torch.Generator().manual_seed(0)
    names = dict(processor(text=NAMES, return_tensors="pt"))
    return {"pixel_values": torch.randn(2, 3, 32, 40, generator=generator), **names}


def prompts(kind, processor):
    fields = {
        "few": {"num_tokens": 2},
        "many": {"num_tokens": 5, "num_deep_layers": 0},
        "spectral": {"num_tokens": 3, "spectral_prompt": True},
        "worded": {"num_tokens": 3, "text_prompts": "words", "text_prompt_ids": processor.text_prompt_ids()},
    }
    return DeepPromptConfig(**fields[kind])


def prompts_without_text():
    return DeepPromptConfig(num_tokens=2)


@torch.no_grad()
def move(model, seed):
    """Take what is trained away from its start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def train(base, kind, processor):
    """What training leaves behind in memory, with class names of its own."""
    base.config.id2label = dict(enumerate(TRAINED_ON[kind]))
    base.config.label2id = {name: index for index, name in enumerate(TRAINED_ON[kind])}
    base.config.seen_class_names = TRAINED_ON[kind][:1]
    base.config.focal_weight = float(len(TRAINED_ON[kind]))
    tuned = get_peft_model(base, prompts(kind, processor))
    move(tuned, KINDS.index(kind))
    return tuned


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


def load(folder, **kwargs):
    return ZegClipForSemanticSegmentation.from_pretrained(folder, **kwargs).eval()


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def description(model):
    described = model.config.describe_head()
    assert model.config.label2id == {name: index for index, name in described["id2label"].items()}
    return described


@pytest.fixture
def alone(folders, inputs, workshop):
    """What each adapter says as a model of its own: logits and configuration."""
    if workshop not in ANSWERS:
        models = {kind: load(folder) for kind, folder in folders.items()}
        ANSWERS[workshop] = {kind: (logits(model, inputs), description(model)) for kind, model in models.items()}
    return ANSWERS[workshop]


@pytest.fixture
def together(base_folder, folders):
    """One model with all adapters; the last one is active."""
    model = load(base_folder)
    for kind, folder in folders.items():
        model.load_adapter(folder, kind)
    return model


def assert_is(model, inputs, expected):
    assert torch.equal(logits(model, inputs), expected[0])
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


def test_the_fixture_s_adapters_differ(alone):
    kinds = list(alone)
    for index, kind in enumerate(kinds):
        for other in kinds[:index]:
            assert not torch.allclose(alone[kind][0], alone[other][0], atol=1e-3)
            assert alone[kind][1] != alone[other][1]


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
    base = logits(load(base_folder), inputs)
    for kind in ("spectral", "worded"):
        together.set_adapter(kind)
        together.disable_adapters()
        assert torch.equal(logits(together, inputs), base)
        assert description(together) == alone[kind][1]  # the same question, asked of the base
        together.enable_adapters()
        assert_is(together, inputs, alone[kind])
    together.disable_adapters()
    together.set_adapter("few")
    assert torch.equal(logits(together, inputs), base)
    together.enable_adapters()
    assert_is(together, inputs, alone["few"])


def test_what_is_loaded_while_adapters_are_disabled_is_disabled_too(base_folder, folders, alone, inputs):
    model = load(base_folder)
    base = logits(model, inputs)
    model.load_adapter(folders["few"], "few")
    model.disable_adapters()
    model.load_adapter(folders["worded"], "worded")  # the first with text prompts
    assert torch.equal(logits(model, inputs), base)
    model.enable_adapters()
    assert_is(model, inputs, alone["worded"])


@pytest.mark.parametrize(
    ("active", "gone"), [("few", "few"), ("worded", "worded"), ("spectral", "worded"), ("worded", "many")]
)
def test_deleted_adapters_leave_the_others_alone(together, alone, inputs, active, gone):
    together.set_adapter(active)
    if active == gone:
        successor = min(set(KINDS) - {gone})
        with pytest.warns(UserWarning, match=f"'{gone}' was active and is deleted; '{successor}' is active now"):
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
    assert torch.equal(logits(together, inputs), logits(base, inputs))
    together.save_pretrained(tmp_path / "plain")
    assert torch.equal(logits(load(tmp_path / "plain"), inputs), logits(base, inputs))
    together.load_adapter(folders["worded"])
    assert_is(together, inputs, alone["worded"])


def test_what_is_loaded_is_frozen_and_what_is_added_learns(together, processor):
    assert not any(parameter.requires_grad for parameter in together.parameters())

    def learning():
        return {name for name, parameter in together.named_parameters() if parameter.requires_grad}

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
    assert all(".other" in name for name in learning())
    together.delete_adapter("few")
    assert learning()
    assert all(".other" in name for name in learning())


def test_an_adapter_can_be_loaded_to_go_on_training(base_folder, folders):
    assert not any(parameter.requires_grad for parameter in load(folders["few"]).parameters())
    model = load(base_folder)
    model.load_adapter(folders["few"], "few", is_trainable=True)
    model.load_adapter(folders["many"], "many")
    model.set_adapter("few")
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if ".few" in name}


def test_one_pipeline_follows_its_model(together, folders, processor):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8))

    def scores(pipe):
        results = pipe(picture, candidate_labels=NAMES)
        return [(result["score"], result["mask"].tobytes()) for result in results]

    def pipeline_of(model):
        return ZeroShotImageSegmentationPipeline(model=model, processor=processor, device="cpu")

    expected = {kind: scores(pipeline_of(load(folder))) for kind, folder in folders.items()}
    pipe = pipeline_of(together)
    for kind in ("worded", "few", "worded", "spectral", "many", "worded"):
        together.set_adapter(kind)
        assert scores(pipe) == expected[kind]
    together.delete_adapter("few")
    assert scores(pipe) == expected["worded"]


def test_peft_models_follow_too(base_folder, folders, alone, inputs):
    model = PeftModel.from_pretrained(load(base_folder), folders["few"], adapter_name="few").eval()
    assert_is(model, inputs, alone["few"])
    model.load_adapter(folders["worded"], adapter_name="worded")
    assert_is(model, inputs, alone["few"])
    for kind in ("worded", "few", "worded"):
        model.set_adapter(kind)
        assert_is(model, inputs, alone[kind])


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
    model.add_adapter("fresh", prompts_without_text())
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


def loaded_in_every_way(base_folder, adapter):
    injected = load(base_folder)
    injected.load_adapter(adapter, is_trainable=True)
    second = PeftModel.from_pretrained(load(base_folder), adapter, adapter_name="first")
    second.load_adapter(adapter, adapter_name="second", is_trainable=True)
    second.set_adapter("second")
    return injected, second, load(adapter)


def test_all_copies_of_the_decode_head_use_one_configuration(base_folder, folders):
    """PEFT copies the base's decode head with its configuration and its dropout."""
    base = load(base_folder)
    base.config.decoder_dropout = 0.3
    tuned = get_peft_model(base, prompts_without_text())
    tuned.save_pretrained(base_folder.parent / "dropout")
    for model in (tuned, *loaded_in_every_way(base_folder, base_folder.parent / "dropout")):
        model.set_attn_implementation("eager")
        (name,) = model.decode_head.active_adapters
        parts = list(model.decode_head.modules_to_save[name].modules())
        assert all(part.config is model.config for part in parts if hasattr(part, "config"))
        assert {part.dropout for part in parts if hasattr(part, "dropout")} == {model.config.decoder_dropout} == {0.3}
    model = load(base_folder.parent / "dropout", decoder_dropout=0.2)
    parts = list(model.decode_head.modules_to_save["default"].modules())
    assert {part.dropout for part in parts if hasattr(part, "dropout")} == {model.config.decoder_dropout} == {0.2}


def test_an_adapter_in_a_subfolder_takes_its_base_from_elsewhere(folders, alone, inputs):
    """transformers would look for the base in the same subfolder."""
    assert_is(load(folders["few"].parent, subfolder="few"), inputs, alone["few"])


def test_changes_of_the_configuration_stay_with_the_adapter(together, alone, tmp_path):
    together.set_adapter("few")
    together.config.id2label = {0: "fish"}
    together.config.label2id = {"fish": 0}
    together.config.prompt_templates = ["the {}", "a photo of a {}"]
    together.set_adapter("many")
    assert description(together) == alone["many"][1]
    together.set_adapter("few")
    assert together.config.id2label == {0: "fish"}
    together.save_pretrained(tmp_path / "renamed")
    again = load(tmp_path / "renamed")
    assert again.config.id2label == {0: "fish"}
    assert again.config.prompt_templates == ["the {}", "a photo of a {}"]


def test_what_is_asked_for_at_loading_stays_with_the_adapter(folders):
    model = load(folders["few"], focal_weight=7.0)
    model.load_adapter(folders["many"], "many")
    assert model.config.focal_weight == 2.0
    model.set_adapter("default")
    assert model.config.focal_weight == 7.0


def test_fields_that_an_old_adapter_lacks_are_at_their_defaults(base_folder, folders, own):
    path = own / "adapter_config.json"
    described = json.loads(path.read_text())
    del described["model_config"]["focal_weight"]
    path.write_text(json.dumps(described))
    model = load(base_folder)
    model.load_adapter(folders["many"], "many")
    model.load_adapter(own, "few")
    assert model.config.focal_weight == ZegClipConfig().focal_weight


def break_weights(folder, change):
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")


def lose_a_tensor(folder):
    break_weights(folder, lambda weights: weights.pop(next(name for name in weights if "deep_prompt_norm" in name)))


def grow_a_tensor(folder):
    def grow(weights):
        name = next(name for name in weights if "deep_prompt_tokens" in name)
        weights[name] = torch.zeros(2, 7, 32)

    break_weights(folder, grow)


def add_a_tensor(folder):
    name = "base_model.model.clip.vision_model.encoder.deep_prompt_filter"
    break_weights(folder, lambda weights: weights.update({name: torch.zeros(4, 3, 32, 2)}))


def tear_the_file(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def lose_the_file(folder):
    (folder / "adapter_model.safetensors").unlink()


def change_the_head(folder):
    path = folder / "adapter_config.json"
    described = json.loads(path.read_text())
    described["model_config"]["descriptor"] = ["text"]
    path.write_text(json.dumps(described))


@pytest.mark.parametrize("kind", ["first", "further"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_a_tensor, r"does not fit: it has no weights for .*deep_prompt_norm\.bad"),
        (grow_a_tensor, r"does not fit: .*deep_prompt_tokens\.bad is \(2, 7, 32\) there, \(2, 2, 32\) in this model"),
        (add_a_tensor, r"does not fit: the model has no .*deep_prompt_filter"),
        (tear_the_file, "the weights of this adapter cannot be read"),
        (lose_the_file, "adapter_model"),
        (change_the_head, r"trained with descriptor=\['text'\], but this model has \['product', 'text'\]"),
    ],
)
def test_what_cannot_be_loaded_leaves_the_model_as_it_was(
    base_folder, folders, own, alone, inputs, processor, kind, damage, message
):
    model = load(base_folder)
    if kind == "further":
        model.load_adapter(folders["worded"], "worded")
        model.add_adapter(prompts("many", processor), "mine")
        model.train()
    before = snapshot(model)
    damage(own)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        model.load_adapter(own, "bad")
    assert isinstance(caught.value, OSError if damage is lose_the_file else ValueError)
    assert "\n" not in str(caught.value)
    assert_unchanged(model, before)
    model.load_adapter(folders["few"], "bad")
    assert_is(model.eval(), inputs, alone["few"])


@pytest.mark.parametrize("name", ["decode_head", "layers", "weight", "0", "modules_to_save", "a.b", "few"])
def test_names_that_cannot_be_used(together, folders, processor, name):
    before = snapshot(together)
    with pytest.raises(ValueError, match=r"cannot be called|There is an adapter 'few' already"):
        together.add_adapter(prompts("few", processor), name)
    with pytest.raises(ValueError, match=r"cannot be called|There is an adapter 'few' already"):
        together.load_adapter(folders["few"], name)
    assert_unchanged(together, before)


def test_one_adapter_is_active_and_it_is_there(model, together, inputs, alone, tmp_path):
    for wrong, message in (
        (["few", "many"], r"cannot be mixed: activate one adapter, not \['few', 'many'\]"),
        ([], "activate one adapter"),
        ("fewer", "There is no adapter 'fewer'; loaded are 'few', 'many'"),
    ):
        with pytest.raises(ValueError, match=message):
            together.set_adapter(wrong)
    assert_is(together, inputs, alone["worded"])
    with pytest.raises(ValueError, match="nowhere: there is no such adapter folder"):
        together.load_adapter(tmp_path / "nowhere", "new")
    with pytest.raises(ValueError, match="No adapter loaded"):
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
        together.save_pretrained(tmp_path / "again" / kind)
        names = {path.name for path in (tmp_path / "again" / kind).iterdir()}
        assert names == {"adapter_config.json", "adapter_model.safetensors", "config.json"}
        assert_is(load(tmp_path / "again" / kind), inputs, alone[kind])


def test_a_further_adapter_does_not_bring_the_base_along(folders, processor, tmp_path):
    """The base of the first lies beside it; that of the second is then there."""
    load(folders["few"]).save_with_base(tmp_path / "both")
    model = load(tmp_path / "both")
    model.add_adapter(prompts("many", processor), "mine")
    model.save_pretrained(tmp_path / "mine")
    assert not (tmp_path / "mine" / "model.safetensors").exists()
    load(tmp_path / "mine")


@pytest.fixture
def fine_tuned(model, tmp_path):
    """The same architecture with other weights, as a plain CLIP and as a whole model."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.clip.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    other.save_pretrained(tmp_path / "fine_tuned")
    other.clip.save_pretrained(tmp_path / "fine_tuned_clip")
    return other


@pytest.mark.parametrize("kind", ["few", "worded"])
def test_adapters_apply_to_a_fine_tuned_base(fine_tuned, folders, alone, inputs, tmp_path, kind, logged):
    reference = copy.deepcopy(fine_tuned)
    reference.load_adapter(folders[kind])
    expected = (logits(reference.eval(), inputs), alone[kind][1])
    assert not torch.equal(expected[0], alone[kind][0])
    for base in ("fine_tuned", "fine_tuned_clip"):
        model = load(folders[kind], base_model_name_or_path=tmp_path / base)
        assert not any("REPORT" in message for message in logged)
        logged.clear()
        assert_is(model, inputs, expected)
        model.save_pretrained(tmp_path / "again" / base)
        assert_is(load(tmp_path / "again" / base), inputs, expected)
        config = ZegClipConfig.from_pretrained(folders[kind])
        model = load(tmp_path / base, config=config)
        model.load_adapter(folders[kind])
        assert_is(model, inputs, expected)
        wrapped = PeftModel.from_pretrained(load(tmp_path / base, config=config), folders[kind]).eval()
        assert_is(wrapped, inputs, expected)
        logged.clear()  # the plain CLIP has no decode head, which may be said


def test_another_base_must_be_there_and_needs_an_adapter(base_folder, folders, tmp_path):
    with pytest.raises(ValueError, match="nowhere: there is no such model folder"):
        load(folders["few"], base_model_name_or_path=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="needs an adapter"):
        load(base_folder, base_model_name_or_path=base_folder)


def test_the_configuration_of_an_adapter_alone(folders, alone):
    for kind, folder in folders.items():
        config = ZegClipConfig.from_pretrained(folder)
        assert config.describe_head() == alone[kind][1]
        assert config.clip_config.vision_config.patch_size == 8


@pytest.mark.parametrize("way", ["from_pretrained", "load_adapter", "PeftModel", "to"])
def test_adapters_apply_to_a_bf16_base(base_folder, folders, alone, inputs, way):
    model = load(folders["worded"], dtype=torch.bfloat16)
    if way == "load_adapter":
        model = load(base_folder, dtype=torch.bfloat16)
        for kind in ("few", "worded"):
            model.load_adapter(folders[kind], kind)
    elif way == "PeftModel":
        model = PeftModel.from_pretrained(load(base_folder, dtype=torch.bfloat16), folders["worded"]).eval()
    elif way == "to":
        model = load(folders["worded"]).to(torch.bfloat16)
    half = logits(model, inputs | {"pixel_values": inputs["pixel_values"].bfloat16()})
    exact = alone["worded"][0]
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert model.config.id2label == dict(enumerate(TRAINED_ON["worded"]))


def test_a_base_with_another_head_is_named(model, folders):
    config = copy.deepcopy(model.config)
    config.num_decoder_layers = 1
    other = ZegClipForSemanticSegmentation(config)
    before = snapshot(other)
    with pytest.raises(ValueError, match="trained with num_decoder_layers=3, but this model has 1"):
        other.load_adapter(folders["few"])
    assert_unchanged(other, before)
    assert load_base(folders["few"], {}).config.num_decoder_layers == 3


def test_an_adapter_is_no_base(folders):
    adapters = [folder for folder in folders.values() if not (folder / "model.safetensors").is_file()]
    with pytest.raises(ValueError, match="this is an adapter alone"):
        ZegClipForSemanticSegmentation.from_pretrained(adapters[0], base_model_name_or_path=adapters[1])
