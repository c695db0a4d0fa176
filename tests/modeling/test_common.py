"""What the common tests of transformers and PEFT ask of any model, where no other file here asks it."""

import io
import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import HEADS, gradients, labels, load, logits, move, names, pictures, trained
from transformers import AutoModelForSemanticSegmentation

from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.modeling.model_error import ModelError

KINDS = [*HEADS, "similarity"]
FULL = {"pixel_values": pictures(2, 40, 24), "class_embeds": names(), "labels": labels(3, 40, 24)}


@pytest.fixture
def make(model):
    """A function that builds a model with each head, with an adapter if asked, its values away from initial ones."""

    def make(kind="zegclip", adapter=False, **fields):
        fields = {"clip_config": model.config.clip_config, "decode_head_type": kind} | HEADS.get(kind, {}) | fields
        torch.manual_seed(0)
        made = ZegClipForSemanticSegmentation(ZegClipConfig(**fields)).eval()
        if adapter:
            head = None if kind == "similarity" else ["decode_head"]
            made.add_adapter(DeepPromptConfig(num_tokens=3, spectral_prompt=True, modules_to_save=head))
            move(made, by=0.05)
        return made

    return make


@pytest.fixture
def text(processor):
    return dict(processor(text=["cat", "a tree"], return_tensors="pt"))


def without_labels(inputs):
    return {name: value for name, value in inputs.items() if name != "labels"}


ASKED = without_labels(FULL)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_all_tensors_are_parameters_or_buffers_and_answers_repeat(make, kind, adapter):
    made = make(kind, adapter)
    known = {tensor.data_ptr() for tensor in (*made.parameters(), *made.buffers())}
    for module in made.modules():
        for value in vars(module).values():
            assert not isinstance(value, torch.Tensor) or value.data_ptr() in known
    stream = io.BytesIO()
    torch.save(made, stream)  # before it has captured states, for which transformers adds hooks that are no pickles
    assert torch.equal(logits(made, ASKED), logits(made, ASKED))
    stream.seek(0)
    again = torch.load(stream, weights_only=False)
    assert again.config.to_dict() == made.config.to_dict()
    torch.testing.assert_close(logits(again, ASKED), logits(made, ASKED), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_weights_start_as_those_of_a_new_model(make, kind):
    config = make(kind).config
    new = ZegClipForSemanticSegmentation(config).state_dict()
    loaded = ZegClipForSemanticSegmentation.from_pretrained(None, config=config, state_dict={}).state_dict()
    assert loaded.keys() == new.keys()
    for name, tensor in new.items():
        if name.startswith("clip.") and name != "clip.logit_scale":
            continue  # transformers starts a CLIP's attention otherwise, also without us
        if tensor.numel() == 1 or tensor.std() == 0:
            assert torch.equal(loaded[name], tensor), name
        else:
            assert 0.5 < loaded[name].float().std() / tensor.float().std() < 2, name


def test_all_parts_share_the_configuration(make):
    made = make(adapter=True)
    assert made.clip.config is made.config.clip_config
    assert made.clip.vision_model.config is made.config.clip_config.vision_config
    assert made.clip.text_model.config is made.config.clip_config.text_config
    parts = [part for part in made.decode_head.modules_to_save["default"].modules() if hasattr(part, "config")]
    assert parts
    assert all(part.config is made.config for part in parts)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_attentions_can_be_asked_for_in_the_configuration(make, kind, adapter):
    made = make(kind, adapter)
    made.set_attn_implementation("eager")
    length = 1 + 3 * adapter + 5 * 3
    asked = {"output_hidden_states": True, "output_attentions": True}

    def shapes(**kwargs):
        output = made(**ASKED, **kwargs)
        states, attentions = output.hidden_states or (), output.attentions or ()
        return [tuple(state.shape) for state in states], [tuple(attention.shape) for attention in attentions]

    expected = shapes(**asked)
    assert len(expected[0]) == 3
    assert expected[0][1] == (2, length, 32)
    assert expected[1] == [(2, 2, length, length)] * 2
    plain = shapes()
    for config in (made.config, made.config.clip_config.vision_config):
        for name in asked:
            setattr(config, name, True)
        assert shapes() == expected
        assert shapes(output_hidden_states=False, output_attentions=False) == plain == ([], [])
        for name in asked:
            setattr(config, name, False)
    made.config.return_dict = False
    as_tuple = made(**ASKED)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], made(**ASKED, return_dict=True).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_states_and_attentions(make, kind):
    made = make(kind, adapter=True)
    made.set_attn_implementation("eager")
    output = made(**ASKED, output_hidden_states=True, output_attentions=True)
    kept = [output.hidden_states[1], output.attentions[-1]]
    for tensor in kept:
        tensor.retain_grad()
    output.logits.flatten()[0].backward()
    assert all(tensor.grad is not None for tensor in kept)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_both_ways_of_gradient_checkpointing(make, kind, use_reentrant):
    made = make(kind, adapter=True, decoder_dropout=0.0)
    made.peft_config["default"].dropout = 0.0
    expected = gradients(made, FULL)
    made.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    made.enable_input_require_grads()
    actual = gradients(made, FULL)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_keeps_the_precision_that_it_was_saved_in(make, tmp_path, dtype):
    make("spectral").to(dtype).save_pretrained(tmp_path)
    for loaded in (load(tmp_path), load(tmp_path, dtype="auto")):
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        assert loaded.config.dtype == loaded.config.clip_config.dtype == dtype
    exact = load(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in exact.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", HEADS)
def test_a_whole_model_may_be_offloaded(make, tmp_path, kind):
    made = move(make(kind), by=0.05)
    made.save_pretrained(tmp_path / "model", max_shard_size="50KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    places = {"clip.text_model": "disk", "decode_head": "disk", "clip.visual_projection": "disk"}
    places |= {f"clip.{name}": "cpu" for name in ("vision_model", "text_projection", "logit_scale")}
    for device_map in ({"": "disk"}, places):
        loaded = load(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "disk")
        assert any(parameter.is_meta for parameter in loaded.parameters())
        torch.testing.assert_close(logits(loaded, ASKED), logits(made, ASKED), atol=1e-6, rtol=0)
        with torch.no_grad():
            alone = [model.get_training_free_logits(pictures(), names()).logits for model in (loaded, made)]
        torch.testing.assert_close(*alone, atol=1e-5, rtol=0)


def test_sizes_that_do_not_match_are_started_anew_if_asked(make, tmp_path):
    made = make()
    made.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(tmp_path, decoder_ffn_dim=32)
    loaded, info = ZegClipForSemanticSegmentation.from_pretrained(
        tmp_path, decoder_ffn_dim=32, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key.split(".")[-2] for key, *_ in info["mismatched_keys"]} == {"fc1", "fc2"}
    assert torch.equal(loaded.decode_head.query_proj.weight, made.decode_head.query_proj.weight)
    assert logits(loaded, ASKED).isfinite().all()


# Attention


def implementations(model):
    clip = model.config.clip_config
    configs = (model.config, clip, clip.text_config, clip.vision_config)
    return [config._attn_implementation for config in configs]


@pytest.mark.parametrize("way", ["loaded", "adapter", "set"])
def test_each_part_may_have_its_own_attention(make, base_folder, text, tmp_path, way):
    trained(base_folder).save_pretrained(tmp_path / "adapter")
    place = tmp_path / "adapter" if way == "adapter" else base_folder
    wanted = {"": "eager", "clip_config": {"text_config": "eager", "vision_config": "sdpa"}}
    inputs = {"pixel_values": pictures(), **text}
    expected = logits(load(place), inputs)
    if way == "set":
        made = load(place)
        made.set_attn_implementation(wanted)
    else:
        made = load(place, attn_implementation=wanted)
    assert implementations(made) == ["eager", "sdpa", "eager", "sdpa"]
    torch.testing.assert_close(logits(made, inputs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "text_prompts"),
    [("zegclip", None), ("spectral", "words"), ("consensus", "whole"), ("similarity", "words")],
)
def test_flex_attention_equals_sdpa(make, processor, text, tmp_path, kind, text_prompts):
    made = make(kind)
    made.save_pretrained(tmp_path / "base")
    head = None if kind == "similarity" else ["decode_head"]
    ids = processor.text_prompt_ids()
    config = DeepPromptConfig(num_tokens=3, text_prompts=text_prompts, text_prompt_ids=ids, modules_to_save=head)
    made = load(tmp_path / "base")
    made.add_adapter(config)
    move(made, by=0.05).save_pretrained(tmp_path / "adapter")
    inputs = {"pixel_values": pictures(2, 40, 24), **text}
    expected = logits(made, inputs)
    made.set_attn_implementation("flex_attention")
    loaded = load(tmp_path / "adapter", attn_implementation="flex_attention")
    with torch.compiler.set_stance("force_eager"):  # compiling it takes half a minute and changes nothing
        for flexible in (made, loaded):
            assert set(implementations(flexible)) == {"flex_attention"}
            torch.testing.assert_close(logits(flexible, inputs), expected, atol=1e-5, rtol=0)
        # It has neither a gradient on CPUs nor dropout, which the decode head therefore leaves to another kernel.
        head = made.train().decode_head
        if kind != "similarity":
            dim = made.config.clip_config.vision_config.hidden_size
            states = [torch.randn(1, 5, 3, dim) for _ in head.out_indices]
            with torch.no_grad():
                head(torch.randn(1, 32), torch.randn(1, 5, 3, 32), names(), states)


@pytest.mark.parametrize("kind", ["flash_attention_2", "paged|flash_attention_2", "sdpaa"])
def test_other_attention_is_refused_by_name(make, base_folder, kind):
    for use in (lambda: make().set_attn_implementation(kind), lambda: load(base_folder, attn_implementation=kind)):
        with pytest.raises((ImportError, ValueError), match=r"(?i)flash_?attention_?2|sdpaa"):
            use()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_attention_and_dropout_are_those_of_the_configuration(make, tmp_path, kind, wrapped):
    """Of adapters that are loaded before and after they are set, and of a configuration that is changed afterwards."""
    make(kind).save_pretrained(tmp_path / "base")
    trained(tmp_path / "base", dropout=0.0).save_pretrained(tmp_path / "adapter")
    tuned = load(tmp_path / "base")
    if wrapped:
        tuned = PeftModel.from_pretrained(tuned, tmp_path / "adapter", adapter_name="first", is_trainable=True)
    else:
        tuned.load_adapter(tmp_path / "adapter", "first", is_trainable=True)
    tuned.set_attn_implementation("eager")

    def draws_are_equal():
        tuned.train()
        return torch.equal(logits(tuned, ASKED), logits(tuned, ASKED))

    assert not draws_are_equal()
    tuned.config.decoder_dropout = 0.0
    assert draws_are_equal()
    tuned.load_adapter(tmp_path / "adapter", adapter_name="second", is_trainable=True)
    for name in ("second", "first", "second"):
        tuned.set_adapter(name)
        assert draws_are_equal() == (name == "first")
        parts = [part for part in tuned.decode_head.modules_to_save[name].modules() if hasattr(part, "config")]
        assert {part.config._attn_implementation for part in parts} == {"eager"}


# Token embeddings


@pytest.fixture
def with_a_new_token(text, processor):
    """Names, the last token of the first of which was added to the vocabulary."""
    ids, mask = text["input_ids"].clone(), text["attention_mask"]
    ids[0, mask[0].sum() - 2] = len(processor.tokenizer) + 1
    return {"pixel_values": pictures(), "input_ids": ids, "attention_mask": mask}


def vocabulary_sizes(model):
    config = model.config.clip_config.text_config
    return {config.vocab_size, model.get_input_embeddings().num_embeddings}


def test_token_embeddings_are_those_of_the_text_tower(make):
    made = make()
    assert made.get_input_embeddings() is made.clip.text_model.embeddings.token_embedding
    assert made.resize_token_embeddings() is made.get_input_embeddings()
    assert made.get_output_embeddings() is None
    other = torch.nn.Embedding(9, 32)
    made.set_input_embeddings(other)
    assert made.clip.text_model.embeddings.token_embedding is other


@pytest.mark.parametrize("way", ["whole", "then an adapter", "with an adapter", "with a loaded adapter"])
def test_a_resized_vocabulary_is_saved(base_folder, processor, with_a_new_token, tmp_path, way):
    size = len(processor.tokenizer) + 3
    config = DeepPromptConfig(num_tokens=2, text_prompts="words", text_prompt_ids=processor.text_prompt_ids())
    made = load(base_folder)
    if way == "with a loaded adapter":
        trained(base_folder, config).save_pretrained(tmp_path / "adapter")
        made = load(tmp_path / "adapter")
    elif way == "with an adapter":
        made.add_adapter(config)
    made.resize_token_embeddings(size)
    if way == "then an adapter":
        made.add_adapter(config)
    move(made).save_pretrained(tmp_path / "resized")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of another base
        again = load(tmp_path / "resized")
    assert vocabulary_sizes(made) == vocabulary_sizes(again) == {size}
    torch.testing.assert_close(logits(again, with_a_new_token), logits(made, with_a_new_token), atol=1e-6, rtol=0)


def test_peft_does_not_save_an_adapter_of_a_resized_base_as_one_of_the_stored_base(base_folder, processor, tmp_path):
    tuned = trained(base_folder)
    tuned.resize_token_embeddings(len(processor.tokenizer) + 3)
    tuned.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="base"):
        load(tmp_path)


# Arguments of `from_pretrained`

ARGUMENTS = {
    "id2label": {"id2label": {0: "x"}},
    "both": {"id2label": {0: "x", 1: "y", 2: "z"}, "label2id": {"x": 0, "y": 1, "z": 2}},
    "as the base has it": {"id2label": {0: "LABEL_0", 1: "LABEL_1"}},
    "num_labels": {"num_labels": 5},
    "output_hidden_states": {"output_hidden_states": True},
    "output_attentions": {"output_attentions": True},
    "return_dict": {"return_dict": False},
    "config": {"config": "base"},
    "config as object": {"config": "object"},
    "config and field": {"config": "base", "focal_weight": 3.0, "id2label": {0: "x"}},
    "attention": {"attn_implementation": {"clip_config": "eager"}},
    "dtype": {"dtype": "bfloat16"},
    "torch_dtype": {"torch_dtype": torch.float16},
    "field": {"focal_weight": 3.0, "prompt_templates": ["{} !"], "decoder_dropout": 0.5},
    "nested": {"clip_config": {"logit_scale_init_value": 1.0}},
    "misspelt": {"focal_wieght": 3.0},
    "unknown": {"foo": 3},
    "out of range": {"focal_weight": -3.0},
}


def described(load_from, place, arguments):
    """What a model says of itself, or the error."""
    try:
        loaded = load_from(place, **arguments)
    except Exception as error:
        return type(error), str(error)
    frozen = {p.dtype for name, p in loaded.named_parameters() if "default" not in name}
    described = loaded.config.to_dict()
    for name in ("_name_or_path", "architectures"):
        del described[name]
    return described, implementations(loaded), loaded.config.return_dict, frozen


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return tmp_path_factory.mktemp("workshop")


@pytest.fixture
def alike(model, workshop):
    """A base, and what differs from it in the same part of the configuration: a whole model, an adapter in 3 forms."""
    forms = {form: workshop / form for form in ("whole", "of PEFT", "with config", "with base")}
    if not forms["with base"].exists():
        model.save_pretrained(workshop / "base")
        whole, base = load(workshop / "base"), load(workshop / "base")
        for config in (whole.config, base.config):
            config.apply_head({"id2label": {0: "cat", 1: "tree", 2: "sky"}, "focal_alpha": 0.5})
        whole.save_pretrained(forms["whole"])
        get_peft_model(base, DeepPromptConfig(num_tokens=2)).save_pretrained(forms["of PEFT"])
        load(forms["of PEFT"]).save_pretrained(forms["with config"])
        load(forms["of PEFT"]).save_with_base(forms["with base"])
    return forms


@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_an_adapter_takes_the_arguments_of_a_whole_model(alike, workshop, kind, auto):
    load_from = (AutoModelForSemanticSegmentation if auto else ZegClipForSemanticSegmentation).from_pretrained
    arguments = dict(ARGUMENTS[kind])
    if arguments.get("config") == "object":
        arguments["config"] = ZegClipConfig(**ZegClipConfig.from_pretrained(workshop / "base").to_dict())
        arguments["config"].focal_weight = 7.0
    elif "config" in arguments:
        arguments["config"] = str(workshop / "base")
        if auto:
            pytest.skip("Auto classes take no path as configuration")
    expected = described(load_from, alike["whole"], arguments)
    for form, place in alike.items():
        assert described(load_from, place, arguments) == expected, form
    if (
        isinstance(expected[0], dict)
        and "id2label" not in arguments
        and kind not in ("config", "config as object", "num_labels")
    ):
        assert list(expected[0]["id2label"].values()) == ["cat", "tree", "sky"]


def test_labels_of_an_adapters_configuration_agree(alike, workshop):
    config = ZegClipConfig.from_pretrained(workshop / "base")
    config.apply_head({"id2label": {0: "old", 1: "older", 2: "oldest"}})
    config.save_pretrained(workshop / "base")
    for place in alike.values():
        assert ZegClipConfig.from_pretrained(place).label2id == {"cat": 0, "tree": 1, "sky": 2}
        assert load(place).config.label2id == {"cat": 0, "tree": 1, "sky": 2}


# PEFT's own ways


LORA = {"r": 2, "target_modules": r".*vision_model.*\.(q_proj|v_proj)", "init_lora_weights": False}


def step(model):
    """Train one step."""
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 0.1)
    model.train()(**FULL).loss.backward()
    optimizer.step()
    return model.eval()


def test_lora_alone_and_prompts_on_what_it_was_merged_into(base_folder, tmp_path):
    tuned = step(get_peft_model(load(base_folder), LoraConfig(**LORA, modules_to_save=["decode_head"])))
    expected = logits(tuned, ASKED)
    assert not torch.allclose(expected, logits(load(base_folder), ASKED), atol=1e-3)
    tuned.save_pretrained(tmp_path / "lora")
    for other in (PeftModel.from_pretrained(load(base_folder), tmp_path / "lora").eval(), load(tmp_path / "lora")):
        torch.testing.assert_close(logits(other, ASKED), expected, atol=1e-6, rtol=0)
    load(tmp_path / "lora").save_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(load(tmp_path / "again"), ASKED), expected, atol=1e-6, rtol=0)
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = load(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, ASKED), expected, atol=1e-5, rtol=0)
    prompted = step(get_peft_model(merged, DeepPromptConfig(num_tokens=2)))
    prompted.save_pretrained(tmp_path / "prompted")
    torch.testing.assert_close(logits(load(tmp_path / "prompted"), ASKED), logits(prompted, ASKED), atol=1e-6, rtol=0)


@pytest.mark.parametrize("way", ["add_adapter", "load_adapter", "get_peft_model"])
@pytest.mark.parametrize("first", ["lora", "prompts"])
@pytest.mark.parametrize("target", [LORA["target_modules"], ["k_proj"]])
def test_lora_beside_prompts_is_refused_with_the_way_out(base_folder, tmp_path, first, way, target):
    configs = {"lora": lambda: LoraConfig(**LORA | {"target_modules": target}), "prompts": DeepPromptConfig}
    made = load(base_folder)
    made.add_adapter(configs.pop(first)(), "one")
    (second,) = configs.values()
    get_peft_model(load(base_folder), second()).save_pretrained(tmp_path / "second")
    before = made.state_dict().keys()
    trained_before = [name for name, parameter in made.named_parameters() if parameter.requires_grad]
    if way == "get_peft_model" and first == "prompts":
        pytest.skip("PEFT asks nobody but its own LoRA")
    ways = {
        "add_adapter": lambda: made.add_adapter(second(), "two"),
        "load_adapter": lambda: made.load_adapter(tmp_path / "second", "two"),
        "get_peft_model": lambda: get_peft_model(made, second()),
    }
    with pytest.raises(ModelError, match="merge_and_unload"):
        ways[way]()
    if way != "get_peft_model":
        assert made.state_dict().keys() == before
        assert made.active_adapters() == ["one"]
        assert [name for name, parameter in made.named_parameters() if parameter.requires_grad] == trained_before


@pytest.mark.parametrize("order", [("lora", "prompts"), ("prompts", "lora")])
def test_peft_models_have_one_method(base_folder, order):
    configs = {"lora": LoraConfig(**LORA), "prompts": DeepPromptConfig()}
    tuned = get_peft_model(load(base_folder), configs[order[0]], adapter_name="one")
    with pytest.raises(ValueError, match=r"DEEP_PROMPT.*LORA|LORA.*DEEP_PROMPT"):
        tuned.add_adapter("two", configs[order[1]])


def test_a_deleted_lora_leaves_the_plain_base(base_folder):
    made = load(base_folder)
    made.add_adapter(LoraConfig(**LORA), "one")
    made.delete_adapter("one")
    assert made.state_dict().keys() == load(base_folder).state_dict().keys()
    made.add_adapter(DeepPromptConfig(num_tokens=2))


def test_low_memory_loading_in_half_precision(base_folder, processor, text, tmp_path):
    ids = processor.text_prompt_ids()
    trained(base_folder, spectral_prompt=True, text_prompts="words", text_prompt_ids=ids).save_pretrained(tmp_path)
    answers = []
    for low in (False, True):
        base, injected = (load(base_folder, dtype=torch.bfloat16) for _ in range(2))
        injected.load_adapter(tmp_path, low_cpu_mem_usage=low)
        for tuned in (PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low).eval(), injected):
            answers.append(logits(tuned, {"pixel_values": pictures().bfloat16(), **text}))
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], atol=1e-2, rtol=0)  # one rounding of a logit


def test_selected_adapters_are_saved_and_fields_of_later_versions_are_left_out(base_folder, tmp_path):
    tuned = trained(base_folder)
    tuned.add_adapter("other", DeepPromptConfig(num_tokens=2))
    tuned.save_pretrained(tmp_path, selected_adapters=["default"])
    assert not (tmp_path / "other").exists()
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"field_of_tomorrow": 1}))
    with pytest.warns(UserWarning, match="field_of_tomorrow"):
        loaded = load(tmp_path)
    torch.testing.assert_close(logits(loaded, ASKED), logits(tuned, ASKED), atol=1e-6, rtol=0)


def test_a_batch_has_one_adapter(base_folder):
    tuned = trained(base_folder)
    with pytest.raises((TypeError, ValueError), match="adapter_names"):
        tuned(**ASKED, adapter_names=["default", "__base__"])
