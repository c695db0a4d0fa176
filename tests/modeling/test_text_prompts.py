"""Text prompts: class names through CLIP's layers with learned tokens in the place of the template."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from tiny_models import gradients, labels, load, logits, move, pictures, trained
from transformers import CLIPModel

from zegclip import DEFAULT_MODEL, DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation, ZegClipProcessor
from zegclip.loading import load_base, load_processor
from zegclip.modeling.model_error import ModelError

NAMES = ["cat", "b", "tree", "a longer name", "tree house"]


@pytest.fixture
def model(model):
    """The tiny model with three text layers, whose names and positions all make a difference."""
    config = copy.deepcopy(model.config)
    config.clip_config.text_config.num_hidden_layers = 3
    torch.manual_seed(0)
    model = ZegClipForSemanticSegmentation(config).eval()
    text = model.clip.text_model
    with torch.no_grad():
        for table in (text.embeddings.token_embedding, text.embeddings.position_embedding):
            table.weight.mul_(20)
        for parameter in (*text.encoder.parameters(), *text.final_layer_norm.parameters()):
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


@pytest.fixture
def text(processor):
    return dict(processor(text=NAMES, return_tensors="pt"))


def prompt_config(processor, kind="whole", **fields):
    return DeepPromptConfig(**{"text_prompts": kind, "text_prompt_ids": processor.text_prompt_ids()} | fields)


@torch.no_grad()
def results(model, text):
    """Class embeddings, and the whole model's logits."""
    return model.get_class_embeds(**text), logits(model, {"pixel_values": pictures(2, 32, 40), **text})


def assert_alike(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def prompts_of(tuned):
    return tuned.base_model.model.clip.text_model.encoder.deep_prompt_tokens["default"]


def layer_by_hand(layer, states):
    """One of CLIP's layers on `(tokens, width)`: attention under a causal mask that is spelt out, and the MLP."""
    attention, tokens = layer.self_attn, len(states)
    normed = F.layer_norm(states, states.shape[1:], layer.layer_norm1.weight, layer.layer_norm1.bias, eps=1e-5)
    query, key, value = (
        F.linear(normed, part.weight, part.bias) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    behind = torch.arange(tokens)[None] > torch.arange(tokens)[:, None]
    heads = []
    for head in torch.arange(states.shape[1]).chunk(layer.self_attn.config.num_attention_heads):
        scores = query[:, head] @ key[:, head].T / len(head) ** 0.5
        heads.append(scores.masked_fill(behind, -torch.inf).softmax(dim=-1) @ value[:, head])
    states = states + F.linear(torch.cat(heads, dim=-1), attention.out_proj.weight, attention.out_proj.bias)
    normed = F.layer_norm(states, states.shape[1:], layer.layer_norm2.weight, layer.layer_norm2.bias, eps=1e-5)
    hidden = F.linear(normed, layer.mlp.fc1.weight, layer.mlp.fc1.bias)
    return states + F.linear(hidden * (1.702 * hidden).sigmoid(), layer.mlp.fc2.weight, layer.mlp.fc2.bias)


def entering_by_hand(clip, ids):
    """The states `(layers + 1, tokens, width)` with which a text enters each layer of a frozen tower, and leaves."""
    embeddings = clip.text_model.embeddings
    states = [embeddings.token_embedding.weight[ids] + embeddings.position_embedding.weight[: len(ids)]]
    for layer in clip.text_model.encoder.layers:
        states.append(layer_by_hand(layer, states[-1]))
    return torch.stack(states)


def class_embed_by_hand(clip, prompts, before, name_ids):
    """
    Encode `before`, `prompts` and `name_ids` as one sequence with positions from 0 on.

    Args:
        clip: In float64, without an adapter.
        prompts: `(layers, tokens, width)`, which take their place anew at each layer.
        before: Token ids in front of the prompts, not replaced.
        name_ids: Token ids behind the prompts, the end token last.
    """
    embeddings = clip.text_model.embeddings
    ids = torch.tensor([*before, *[0] * prompts.shape[1], *name_ids])
    states = embeddings.token_embedding.weight[ids] + embeddings.position_embedding.weight[: len(ids)]
    start, stop = len(before), len(before) + prompts.shape[1]
    for layer, prompt in zip(clip.text_model.encoder.layers, prompts, strict=True):
        states = layer_by_hand(layer, torch.cat([states[:start], prompt, states[stop:]]))
    norm = clip.text_model.final_layer_norm
    end = F.layer_norm(states[-1], states.shape[1:], norm.weight, norm.bias, eps=1e-5)
    return F.normalize(clip.text_projection.weight @ end, dim=-1)


def name_ids(processor, name):
    return processor.tokenizer(name)["input_ids"][1:]


@torch.no_grad()
def test_the_reference_is_clip(model, processor, text):
    """The layers written out in this file give CLIP's own class embeddings."""
    clip = copy.deepcopy(model.clip).double()
    start, *words, _ = processor.text_prompt_ids()
    states = entering_by_hand(clip, [start, *words])[:-1, 1:]
    expected = [class_embed_by_hand(clip, states, [start], name_ids(processor, name)) for name in NAMES]
    actual = model.get_class_embeds(**text)
    torch.testing.assert_close(actual, torch.stack(expected).float(), atol=1e-5, rtol=0)
    assert (actual @ actual.T - torch.eye(len(NAMES))).max() < 0.98  # names differ


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_the_embedded_clip_s_names_start_at_the_frozen_embeddings(implementation):
    model, processor = load_base(DEFAULT_MODEL, {}), load_processor(DEFAULT_MODEL)
    model.eval().set_attn_implementation(implementation)
    text = processor(text=["cat", "tree", "dining table", "road", "sky"], return_tensors="pt")
    expected = model.get_class_embeds(**text)
    assert (expected @ expected.T - torch.eye(5)).max() < 0.9
    tuned = get_peft_model(model, prompt_config(processor, "words"))
    torch.testing.assert_close(tuned.get_class_embeds(**text), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["whole", "words"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("masked", [True, False])
def test_class_embeddings_equal_clip_by_hand(model, processor, text, kind, implementation, masked):
    """Values, and the gradients that prompts of each layer get."""
    clip = copy.deepcopy(model.clip).double()
    model.set_attn_implementation(implementation)
    model.add_adapter(prompt_config(processor, kind))
    tokens = model.clip.text_model.encoder.deep_prompt_tokens["default"]
    template = processor.text_prompt_ids()
    before = [] if kind == "whole" else template[:1]
    # They start as what enters each layer.
    started = entering_by_hand(clip, template)[:-1]
    started = started if kind == "whole" else started[:, 1:-1]
    assert tokens.shape == (3, len(template) - (0 if kind == "whole" else 2), 32)
    torch.testing.assert_close(tokens.detach(), started.detach().float(), atol=1e-5, rtol=0)

    move(model)
    prompts = tokens.detach().double().requires_grad_()
    expected = [class_embed_by_hand(clip, prompts, before, name_ids(processor, name)) for name in NAMES]
    if not masked:
        del text["attention_mask"]
    actual = model.get_class_embeds(**text)
    torch.testing.assert_close(actual, torch.stack(expected).float(), atol=1e-5, rtol=0)

    weight = torch.randn(actual.shape, generator=torch.Generator().manual_seed(1))
    (actual * weight).sum().backward()
    (torch.stack(expected) * weight).sum().backward()
    torch.testing.assert_close(tokens.grad, prompts.grad.float(), atol=1e-5, rtol=1e-4)
    assert tokens.grad.abs().amax(dim=-1).min() > 1e-4  # of each token of each layer


@pytest.mark.parametrize("kind", ["whole", "words"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_padding_and_neighbours_do_not_matter(model, processor, text, kind, implementation):
    """Alone, padded to the tower's length as is usual for CLIP, and with garbage behind the end token."""
    model.set_attn_implementation(implementation)
    model.add_adapter(prompt_config(processor, kind))
    expected = move(model).get_class_embeds(**text)
    for index, name in enumerate(NAMES):
        alone = processor(text=[name], return_tensors="pt")
        torch.testing.assert_close(model.get_class_embeds(**alone)[0], expected[index], atol=1e-5, rtol=0)
    padded = processor(text=NAMES, padding="max_length", max_length=32, return_tensors="pt")
    torch.testing.assert_close(model.get_class_embeds(**padded), expected, atol=1e-5, rtol=0)
    garbage = torch.randint(0, 70, (len(NAMES), 3), generator=torch.Generator().manual_seed(0))
    behind = torch.cat([text["input_ids"], garbage], dim=1)
    for mask in (None, F.pad(text["attention_mask"], (0, 3)), torch.ones_like(behind)):
        torch.testing.assert_close(model.get_class_embeds(behind, mask), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_on_a_cpu_many_short_names_are_not_padded_to_a_long_one(model, processor):
    short = [f"{letter} {other}" for letter in "abcdefgh" for other in "abcdefgh"]
    long = [f"a b c d e f g {letter}" for letter in "abcdefghijklmnopqrst"]
    text = processor(text=[*short, *long, "a b c d e f g h a b"], return_tensors="pt")
    tokens = []
    model.clip.text_model.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    embeds = model.get_class_embeds(**text)
    assert len(tokens) == 2  # The last one alone would be a pass of its own.
    assert sum(tokens) < 0.8 * text["attention_mask"].numel()
    tokens.clear()
    few = processor(text=[short[1], *long], return_tensors="pt")
    torch.testing.assert_close(model.get_class_embeds(**few), embeds[[1, *range(64, 84)]], atol=1e-6, rtol=0)
    assert len(tokens) == 1  # A pass for one name would take longer than its padding.


@pytest.mark.parametrize("template", ["a photo of a {}", "the {}", "b {}"])
@pytest.mark.parametrize("kind", ["whole", "words"])
@pytest.mark.parametrize("init", ["template", "random"])
@torch.no_grad()
def test_the_number_of_prompts_follows_from_the_template(model, processor, template, kind, init):
    processor.prompt_templates = [template]
    text = processor(text=NAMES, return_tensors="pt")
    frozen = model.get_class_embeds(**text)
    config = prompt_config(processor, kind, text_prompt_init=init)
    tuned = get_peft_model(model, config)
    tokens = prompts_of(tuned)
    count = {"a photo of a {}": 9, "the {}": 3, "b {}": 1}[template]  # letters: the tiny vocabulary knows few words
    assert tokens.shape == (3, count + (2 if kind == "whole" else 0), 32)
    assert tokens.requires_grad
    started = tuned.get_class_embeds(**text)
    if init == "random":
        assert (started - frozen).abs().amax(dim=-1).min() > 1e-2
        assert 0.75 * 0.02 < tokens.std() < 1.25 * 0.02
    elif kind == "words":
        torch.testing.assert_close(started, frozen, atol=1e-5, rtol=0)


def test_random_prompts_differ_from_draw_to_draw(base_folder, processor):
    config = prompt_config(processor, text_prompt_init="random")
    first, again, other = (prompts_of(trained(base_folder, copy.deepcopy(config), seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["whole", "words", None])
@pytest.mark.parametrize("num_tokens", [2, 0])
def test_prompts_of_all_layers_learn_and_nothing_frozen_does(base_folder, processor, text, kind, num_tokens):
    tuned = trained(base_folder, prompt_config(processor, kind, num_tokens=num_tokens))
    tuned(pictures(2, 32, 40), **text, labels=labels(len(NAMES), 32, 40)).loss.backward()
    for name, parameter in tuned.named_parameters():
        learns = "deep_prompt_" in name or "modules_to_save" in name
        assert parameter.requires_grad == learns, name
        assert (parameter.grad is not None) == learns, name
        if "deep_prompt_tokens" in name:
            assert parameter.grad.abs().amax(dim=-1).min() > 0, name
    prompts = {
        name.split(".deep_prompt_tokens")[0] for name, _ in tuned.named_parameters() if "_prompt_tokens" in name
    }
    assert len(prompts) == bool(kind) + bool(num_tokens)


@pytest.mark.parametrize("kind", ["whole", "words"])
def test_gradient_checkpointing_changes_nothing(base_folder, processor, text, kind):
    tuned = trained(base_folder, prompt_config(processor, kind, num_tokens=2))
    inputs = {"pixel_values": pictures(2, 32, 40), **text, "labels": labels(len(NAMES), 32, 40)}
    expected, actual = (gradients(tuned, inputs, checkpointing) for checkpointing in (False, True))
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, msg=name)


@pytest.mark.parametrize("kind", ["whole", "words"])
def test_disabled_adapters_are_the_frozen_tower(base_folder, processor, text, kind, tmp_path):
    frozen = results(load(base_folder), text)
    tuned = trained(base_folder, prompt_config(processor, kind, spectral_prompt=True))
    moved = results(tuned, text)
    for ours, theirs in zip(moved, frozen):
        assert (ours - theirs).abs().max() > 1e-2
    with tuned.disable_adapter():
        assert_alike(results(tuned, text), frozen)
        # Then any text is taken, also by CLIP itself.
        tuned.get_class_embeds(processor.tokenizer(["no template"], return_tensors="pt")["input_ids"])
        tuned.base_model.model.clip.get_text_features(text["input_ids"])
    assert_alike(results(tuned, text), moved)
    tuned.save_pretrained(tmp_path / "adapter")
    injected = load(tmp_path / "adapter")
    injected.disable_adapters()
    assert_alike(results(injected, text), frozen)
    injected.enable_adapters()
    assert_alike(results(injected, text), moved)


@pytest.mark.parametrize("kind", ["whole", "words"])
def test_other_templates_are_refused(model, processor, kind):
    model.add_adapter(prompt_config(processor, kind))
    processor.prompt_templates = ["a photo of a {}", "the {}"]
    both = processor(text=NAMES, return_tensors="pt")
    right = processor.tokenizer(["a photo of a cat"] * 2, return_tensors="pt")["input_ids"]
    one_wrong = right.clone()
    one_wrong[1, 4] = 7
    for ids in (both["input_ids"], right[:, :2], one_wrong, right[:, 1:]):
        with pytest.raises(ModelError, match="input_ids"):
            model.get_class_embeds(ids)
        with pytest.raises(ModelError, match="input_ids"):
            model(pictures(2, 32, 40), input_ids=ids)
    model.get_class_embeds(right)
    with pytest.raises(ModelError, match="template"):
        model.get_class_embeds(**both)


@pytest.mark.parametrize(("kind", "longest"), [("words", 21), ("whole", 20)])
def test_names_that_are_too_long_are_refused(model, processor, kind, longest):
    """The tiny tower has 32 places, of which the template's start and words take 10."""
    model.add_adapter(prompt_config(processor, kind))
    model.get_class_embeds(**processor(text=["cat", "x" * longest], return_tensors="pt"))
    if kind == "whole":  # the processor itself cuts what is too long for the tower without an adapter
        with pytest.raises(ModelError, match=r"Row 2 .* 33 tokens"):
            model.get_class_embeds(**processor(text=["cat", "x" * (longest + 1)], return_tensors="pt"))


@pytest.mark.parametrize(
    ("target_modules", "kind"),
    [
        (r".*\.vision_model\.encoder", "whole"),
        (r".*\.vision_model\.encoder", "words"),
        (r".*\.(vision|text)_model\.encoder", None),
        (r".*\.text_model\.encoder", None),
        (["encoder"], None),
    ],
)
def test_the_text_encoder_is_wrapped_for_text_prompts_alone(model, processor, target_modules, kind):
    with pytest.raises(ModelError, match=r"target_modules|text_prompts"):
        get_peft_model(model, prompt_config(processor, kind, target_modules=target_modules))


@pytest.mark.parametrize("towers", ["(vision|text)", "text"])
def test_target_modules_may_be_given(base_folder, processor, text, tmp_path, towers):
    fields = {"num_tokens": 0, "target_modules": rf".*\.{towers}_model\.encoder"}
    tuned = trained(base_folder, prompt_config(processor, **fields))
    expected = results(trained(base_folder, prompt_config(processor, num_tokens=0)), text)
    assert_alike(results(tuned, text), expected)
    tuned.save_pretrained(tmp_path / "adapter")
    assert_alike(results(load(tmp_path / "adapter"), text), expected)


def test_a_bare_clip_has_no_room_for_text_prompts(model, processor):
    clip, config = CLIPModel(model.clip.config), prompt_config(processor, modules_to_save=None)
    for add in (lambda: get_peft_model(clip, config), lambda: clip.add_adapter(config)):
        with pytest.raises(ModelError, match="text_prompts"):
            add()


def test_clip_alone_does_not_encode_names(model, processor, text):
    model.add_adapter(prompt_config(processor, "words"))
    for encode in (model.clip.get_text_features, model.clip.text_model):
        with pytest.raises(ModelError, match="get_class_embeds"):
            encode(**text)


@pytest.mark.parametrize("first", ["zegclip", "ldvc"])
@pytest.mark.parametrize("kind", ["whole", "words"])
def test_adapters_with_and_without_text_prompts_side_by_side(base_folder, processor, text, tmp_path, first, kind):
    """Class embeddings follow the switch; a template of its own comes with each adapter."""
    other_template = ZegClipProcessor(processor.image_processor, processor.tokenizer, prompt_templates=["the {}"])
    texts = {"zegclip": text, "ldvc": text, "other": other_template(text=NAMES, return_tensors="pt")}
    configs = {
        "zegclip": DeepPromptConfig(num_tokens=2),
        "ldvc": prompt_config(processor, kind, num_tokens=3),
        "other": prompt_config(other_template, "whole", num_tokens=0),
    }
    expected = {}
    for seed, (name, config) in enumerate(configs.items()):
        tuned = trained(base_folder, config, seed=6 + seed)
        tuned.save_pretrained(tmp_path / name)
        expected[name] = results(tuned, texts[name])
    order = [first, *(name for name in configs if name != first)]
    in_peft = PeftModel.from_pretrained(load(base_folder), tmp_path / first, adapter_name=first)
    injected = load(base_folder)
    injected.load_adapter(tmp_path / first, adapter_name=first)
    for both in (in_peft, injected):
        for name in order[1:]:
            both.load_adapter(tmp_path / name, adapter_name=name)
        for name in [*order, *order[::-1]]:
            both.set_adapter(name)
            assert_alike(results(both.eval(), texts[name]), expected[name])
        both.set_adapter("other")
        with pytest.raises(ModelError, match="input_ids"):
            both.get_class_embeds(**text)
        for gone in ("ldvc", "other"):
            both.delete_adapter(gone)
            both.set_adapter("zegclip")
            assert not any(f".{gone}" in name for name in both.state_dict())
            assert_alike(results(both.eval(), text), expected["zegclip"])
        with torch.no_grad():
            frozen = load(base_folder).get_class_embeds(**text)
            torch.testing.assert_close(both.get_class_embeds(**text), frozen, atol=1e-6, rtol=0)


def test_an_adapter_starts_from_the_frozen_tower_whatever_is_active(model, processor, text):
    """Not from the prompts of the one that is there before."""
    clip = copy.deepcopy(model.clip).double()
    model.add_adapter(prompt_config(processor), adapter_name="first")
    move(model)
    model.add_adapter(prompt_config(processor, "words"), adapter_name="second")
    tokens = model.clip.text_model.encoder.deep_prompt_tokens["second"]
    started = entering_by_hand(clip, processor.text_prompt_ids())[:-1, 1:-1]
    torch.testing.assert_close(tokens.detach(), started.detach().float(), atol=1e-5, rtol=0)


def test_the_only_adapter_can_be_deleted_and_others_come(base_folder, processor, text):
    frozen = results(load(base_folder), text)[0]
    injected = load(base_folder)
    injected.add_adapter(prompt_config(processor), adapter_name="first")
    moved = results(move(injected), text)[0]
    injected.delete_adapter("first")
    assert not any("deep_prompt_" in name for name in injected.state_dict())
    torch.testing.assert_close(results(injected, text)[0], frozen, atol=1e-6, rtol=0)
    # Under the same name, without text prompts: nothing of the old one is left.
    injected.add_adapter(DeepPromptConfig(num_tokens=2), adapter_name="first")
    torch.testing.assert_close(results(move(injected), text)[0], frozen, atol=1e-6, rtol=0)
    injected.delete_adapter("first")
    injected.add_adapter(prompt_config(processor), adapter_name="second")
    injected.set_adapter("second")
    torch.testing.assert_close(results(move(injected), text)[0], moved, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [None, "whole"])
@pytest.mark.parametrize("num_deep_layers", [None, 0, -1, 1])
@torch.no_grad()
def test_without_visual_prompts_pictures_look_as_to_the_frozen_tower(base_folder, processor, kind, num_deep_layers):
    frozen = load(base_folder)
    tuned = trained(base_folder, prompt_config(processor, kind, num_tokens=0, num_deep_layers=num_deep_layers))
    for size in ((32, 32), (40, 24), (33, 50)):
        (*ours, outputs), (*theirs, expected) = (
            model.get_image_embeds(pictures(2, *size)) for model in (tuned, frozen)
        )
        assert torch.equal(outputs.last_hidden_state, expected.last_hidden_state)
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert not any("vision_model" in name and ".default" in name for name in tuned.state_dict())


@pytest.mark.parametrize("init", ["template", "random"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_prompts_are_made_on_the_meta_device(model, processor, init, implementation):
    with torch.device("meta"):
        empty = ZegClipForSemanticSegmentation(ZegClipConfig.from_dict(model.config.to_dict()))
        empty.set_attn_implementation(implementation)
        tuned = get_peft_model(empty, prompt_config(processor, text_prompt_init=init))
    tokens = prompts_of(tuned)
    assert tokens.device.type == "meta"
    assert tokens.shape == (3, 11, 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["whole", "words"])
@torch.no_grad()
def test_half_precision(base_folder, processor, text, dtype, kind):
    """Moved to it after training, and added to a base that was loaded in it."""
    tuned = trained(base_folder, prompt_config(processor, kind))
    exact = tuned.get_class_embeds(**text)
    half = tuned.to(dtype).get_class_embeds(**text)
    assert half.dtype == dtype
    assert (half.float() - exact).norm(dim=-1).max() < 0.1

    base = load(base_folder, dtype=dtype)
    frozen = base.get_class_embeds(**text)
    started = get_peft_model(base, prompt_config(processor, kind)).eval().get_class_embeds(**text)
    assert started.dtype == dtype
    if kind == "words":
        assert (started.float() - frozen.float()).norm(dim=-1).max() < 0.05


def test_wrapped_encoders_get_their_arguments(base_folder, processor, text):
    """The text tower: whether there is room; the vision tower: the grid, as 2x8 patches are as many as 4x4."""
    tuned = trained(base_folder, prompt_config(processor, spectral_prompt=True))
    inputs = {"pixel_values": pictures(1, 16, 64), **text}
    expected = logits(tuned, inputs)
    clip = tuned.base_model.model.clip
    for tower in (clip.text_model, clip.vision_model):
        tower.encoder = torch.compile(tower.encoder, backend="eager")
    torch.testing.assert_close(logits(tuned, inputs), expected, atol=1e-6, rtol=0)


def test_names_given_as_embeddings_are_taken_as_they_are(base_folder, processor, text):
    tuned = trained(base_folder, prompt_config(processor))
    embeds, expected = results(tuned, text)
    assert torch.equal(logits(tuned, {"pixel_values": pictures(2, 32, 40), "class_embeds": embeds}), expected)
