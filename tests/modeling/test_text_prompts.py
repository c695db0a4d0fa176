"""Text prompts: class names through CLIP's layers with learned tokens in the place of the template."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from PIL import Image
from transformers import CLIPModel, pipeline

from zegclip import DEFAULT_MODEL, DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation, ZegClipProcessor
from zegclip.loading import load_base, load_processor
from zegclip.modeling.prompt_layers import TextPromptLayer

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
def base_folder(model, tmp_path):
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def text(processor):
    return dict(processor(text=NAMES, return_tensors="pt"))


def picture(height=32, width=40):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def prompt_config(processor, kind="whole", **fields):
    return DeepPromptConfig(**{"text_prompts": kind, "text_prompt_ids": processor.text_prompt_ids()} | fields)


@torch.no_grad()
def move(model, seed=5):
    """Take the trained values away from their initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def trained(base_folder, config, seed=5):
    torch.manual_seed(seed)
    base = ZegClipForSemanticSegmentation.from_pretrained(base_folder)
    return move(get_peft_model(base, config), seed)


@torch.no_grad()
def results(model, text):
    """Class embeddings, and what the whole model makes of them."""
    return model.get_class_embeds(**text), model(picture(), **text).logits


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
    expected = torch.stack(
        [
            class_embed_by_hand(
                clip,
                entering_by_hand(clip, [start, *words])[:-1, 1:],
                [start],
                name_ids(processor, name),
            )
            for name in NAMES
        ]
    )
    actual = model.get_class_embeds(**text)
    torch.testing.assert_close(actual, expected.float(), atol=1e-5, rtol=0)
    assert (actual @ actual.T - torch.eye(len(NAMES))).max() < 0.98  # names differ


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_the_template_s_own_words_start_at_the_frozen_embeddings(model, processor, text, implementation, masked):
    model.set_attn_implementation(implementation)
    if not masked:
        del text["attention_mask"]
    expected = model.get_class_embeds(**text)
    model.add_adapter(prompt_config(processor, "words"))
    assert isinstance(model.clip.text_model.encoder, TextPromptLayer)
    actual = model.get_class_embeds(**text)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)

    # Alone, where there is no padding.
    for index, name in enumerate(NAMES):
        alone = processor(text=[name], return_tensors="pt")
        if not masked:
            del alone["attention_mask"]
        torch.testing.assert_close(model.get_class_embeds(**alone)[0], expected[index], atol=1e-5, rtol=0)

    # Nothing behind the end token is looked at.
    garbage = torch.randint(0, 70, (len(NAMES), 3), generator=torch.Generator().manual_seed(0))
    behind = {"input_ids": torch.cat([text["input_ids"], garbage], dim=1)}
    if masked:
        behind["attention_mask"] = F.pad(text["attention_mask"], (0, 3))
    torch.testing.assert_close(model.get_class_embeds(**behind), expected, atol=1e-5, rtol=0)

    # And it is the prompts that are looked at.
    move(model)
    assert (model.get_class_embeds(**text) - expected).abs().amax(dim=-1).min() > 1e-2


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


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_padding_and_neighbours_do_not_matter_to_whole_templates(model, processor, text, implementation):
    model.set_attn_implementation(implementation)
    model.add_adapter(prompt_config(processor))
    expected = move(model).get_class_embeds(**text)
    for index, name in enumerate(NAMES):
        alone = processor(text=[name], return_tensors="pt")
        torch.testing.assert_close(model.get_class_embeds(**alone)[0], expected[index], atol=1e-5, rtol=0)
    garbage = torch.randint(0, 70, (len(NAMES), 3), generator=torch.Generator().manual_seed(0))
    behind = torch.cat([text["input_ids"], garbage], dim=1)
    for mask in (None, F.pad(text["attention_mask"], (0, 3)), torch.ones_like(behind)):
        torch.testing.assert_close(model.get_class_embeds(behind, mask), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["whole", "words"])
@torch.no_grad()
def test_names_may_be_padded_to_the_longest_text(model, processor, text, kind):
    """As is usual for CLIP; there is nothing but padding in the last places."""
    model.add_adapter(prompt_config(processor, kind))
    expected = move(model).get_class_embeds(**text)
    padded = processor(text=NAMES, padding="max_length", max_length=32, return_tensors="pt")
    torch.testing.assert_close(model.get_class_embeds(**padded), expected, atol=1e-5, rtol=0)


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
    tokens = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        base = ZegClipForSemanticSegmentation.from_pretrained(base_folder)
        tuned = get_peft_model(base, prompt_config(processor, text_prompt_init="random"))
        tokens.append(prompts_of(tuned))
    assert torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens[0], tokens[2])


@pytest.mark.parametrize("kind", ["whole", "words"])
def test_prompts_of_all_layers_learn_and_nothing_frozen_does(base_folder, processor, text, kind):
    tuned = trained(base_folder, prompt_config(processor, kind, num_tokens=2))
    labels = torch.randint(len(NAMES), (2, 32, 40), generator=torch.Generator().manual_seed(2))
    tuned(picture(), **text, labels=labels).loss.backward()
    for name, parameter in tuned.named_parameters():
        learns = "deep_prompt_" in name or "modules_to_save" in name
        assert parameter.requires_grad == learns, name
        assert (parameter.grad is not None) == learns, name
        if "deep_prompt_tokens" in name:
            assert parameter.grad.abs().amax(dim=-1).min() > 0, name
    assert any("text_model.encoder.deep_prompt_tokens" in name for name, _ in tuned.named_parameters())


@pytest.mark.parametrize("kind", ["whole", "words"])
def test_gradient_checkpointing_changes_nothing(base_folder, processor, text, kind):
    labels = torch.randint(len(NAMES), (2, 32, 40), generator=torch.Generator().manual_seed(2))
    gradients = []
    for checkpointing in (False, True):
        tuned = trained(base_folder, prompt_config(processor, kind, num_tokens=2, dropout=0.0))
        for module in tuned.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        if checkpointing:
            tuned.gradient_checkpointing_enable()
        tuned.train()(picture(), **text, labels=labels).loss.backward()
        gradients.append({name: p.grad for name, p in tuned.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("kind", ["whole", "words"])
def test_disabled_adapters_are_the_frozen_tower(base_folder, processor, text, kind, tmp_path):
    frozen = results(ZegClipForSemanticSegmentation.from_pretrained(base_folder).eval(), text)
    tuned = trained(base_folder, prompt_config(processor, kind))
    moved = results(tuned, text)
    assert (moved[0] - frozen[0]).abs().amax(dim=-1).min() > 1e-2
    with tuned.disable_adapter():
        assert_alike(results(tuned, text), frozen)
        # Then any text is taken, also by CLIP itself.
        tuned.get_class_embeds(processor.tokenizer(["no template"], return_tensors="pt")["input_ids"])
        tuned.base_model.model.clip.get_text_features(text["input_ids"])
    assert_alike(results(tuned, text), moved)

    tuned.save_pretrained(tmp_path / "adapter")
    injected = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter").eval()
    injected.disable_adapters()
    assert_alike(results(injected, text), frozen)
    injected.enable_adapters()
    assert_alike(results(injected, text), moved)


def one_sentence(refused):
    message = str(refused.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("kind", ["whole", "words"])
def test_other_templates_are_refused(model, processor, kind):
    model.add_adapter(prompt_config(processor, kind))
    processor.prompt_templates = ["the {}"]
    other = processor(text=NAMES, return_tensors="pt")
    short = other["input_ids"][:, :2]
    right = processor.tokenizer(["a photo of a cat"] * 2, return_tensors="pt")["input_ids"]
    one_wrong = right.clone()
    one_wrong[1, 4] = 7
    for ids in (other["input_ids"], short, one_wrong, right[:, 1:]):
        with pytest.raises(ValueError, match="every row of input_ids must begin") as refused:
            model.get_class_embeds(ids)
        one_sentence(refused)
        with pytest.raises(ValueError, match="every row of input_ids must begin"):
            model(picture(), input_ids=ids)
    model.get_class_embeds(right)


def test_several_templates_are_refused(model, processor):
    model.add_adapter(prompt_config(processor))
    processor.prompt_templates = ["a photo of a {}", "the {}"]
    text = processor(text=NAMES, return_tensors="pt")
    with pytest.raises(ValueError, match="one template") as refused:
        model.get_class_embeds(**text, num_templates=2)
    one_sentence(refused)


def test_names_that_are_too_long_are_refused(model, processor):
    """The tiny tower has 32 places, of which the template's start and words take 10."""
    longest, too_long = "x" * 20, "x" * 21
    for kind, fits in (("words", longest + "x"), ("whole", longest)):
        tuned = copy.deepcopy(model)
        tuned.add_adapter(prompt_config(processor, kind))
        tuned.get_class_embeds(**processor(text=[fits], return_tensors="pt"))
    with pytest.raises(
        ValueError, match="too long: with its text prompts it has 33 tokens, but at most 32"
    ) as refused:
        tuned.get_class_embeds(**processor(text=["cat", too_long], return_tensors="pt"))
    one_sentence(refused)


@pytest.mark.parametrize(
    ("towers", "kind"), [("vision", "whole"), ("vision", "words"), ("(vision|text)", None), ("text", None)]
)
def test_the_text_encoder_is_wrapped_for_text_prompts_alone(model, processor, towers, kind):
    fields = {"target_modules": rf".*\.{towers}_model\.encoder"}
    config = prompt_config(processor, kind, **fields) if kind else DeepPromptConfig(**fields)
    with pytest.raises(ValueError, match=r"target_modules=.*text_prompts=") as refused:
        get_peft_model(model, config)
    one_sentence(refused)


@pytest.mark.parametrize("towers", ["(vision|text)", "text"])
def test_target_modules_may_be_given(base_folder, processor, text, tmp_path, towers):
    config = prompt_config(processor, num_tokens=0, target_modules=rf".*\.{towers}_model\.encoder")
    tuned = trained(base_folder, config)
    found = results(trained(base_folder, prompt_config(processor, num_tokens=0)), text)
    assert_alike(results(tuned, text), found)
    tuned.save_pretrained(tmp_path / "adapter")
    assert_alike(results(ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter").eval(), text), found)


def test_a_bare_clip_has_no_room_for_text_prompts(model, processor):
    clip = CLIPModel(model.clip.config)
    with pytest.raises(ValueError, match="text_prompts needs a ZegClipForSemanticSegmentation") as refused:
        get_peft_model(clip, prompt_config(processor, modules_to_save=None))
    one_sentence(refused)
    with pytest.raises(ValueError, match="text_prompts needs a ZegClipForSemanticSegmentation"):
        clip.add_adapter(prompt_config(processor, modules_to_save=None))


def test_clip_alone_does_not_encode_names(model, processor, text):
    model.add_adapter(prompt_config(processor, "words"))
    for encode in (model.clip.get_text_features, model.clip.text_model):
        with pytest.raises(ValueError, match="Encode class names with get_class_embeds") as refused:
            encode(**text)
        one_sentence(refused)


@pytest.mark.parametrize("kind", ["whole", "words"])
@pytest.mark.parametrize("num_tokens", [3, 0])
def test_an_adapter_loads_everywhere(base_folder, processor, text, tmp_path, kind, num_tokens):
    tuned = trained(base_folder, prompt_config(processor, kind, num_tokens=num_tokens))
    expected = results(tuned, text)
    tuned.save_pretrained(tmp_path / "adapter")
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert described["text_prompt_ids"] == processor.text_prompt_ids()
    load = ZegClipForSemanticSegmentation.from_pretrained
    injected = load(base_folder)
    injected.load_adapter(tmp_path / "adapter")
    loaded = {
        "PeftModel": PeftModel.from_pretrained(load(base_folder), tmp_path / "adapter"),
        "low memory": PeftModel.from_pretrained(load(base_folder), tmp_path / "adapter", low_cpu_mem_usage=True),
        "load_adapter": injected,
        "adapter folder alone": load(tmp_path / "adapter"),
        "device map": load(tmp_path / "adapter", device_map="cpu"),
    }
    weights = {name: tensor for name, tensor in tuned.state_dict().items() if ".default" in name}
    assert any("text_model" in name for name in weights)
    assert any("vision_model" in name for name in weights) == (num_tokens > 0)
    for title, other in loaded.items():
        state_dict = {name.removeprefix("base_model.model."): tensor for name, tensor in other.state_dict().items()}
        for name, tensor in weights.items():
            assert torch.equal(state_dict[name.removeprefix("base_model.model.")], tensor), (title, name)
        assert_alike(results(other.eval(), text), expected)


def test_an_adapter_from_before_text_prompts_loads(base_folder, text, tmp_path):
    tuned = trained(base_folder, DeepPromptConfig(num_tokens=2))
    tuned.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    described = json.loads(path.read_text())
    for name in ("text_prompts", "text_prompt_ids", "text_prompt_init"):
        del described[name]
    for name in ("decoder_top_k", "out_indices", "cross_entropy_weight"):
        del described["model_config"][name]
    path.write_text(json.dumps(described))
    injected = ZegClipForSemanticSegmentation.from_pretrained(base_folder)
    injected.load_adapter(tmp_path / "adapter")
    for other in (ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter"), injected):
        assert_alike(results(other.eval(), text), results(tuned, text))


@pytest.mark.parametrize("first", ["zegclip", "ldvc"])
@pytest.mark.parametrize("kind", ["whole", "words"])
def test_adapters_with_and_without_text_prompts_side_by_side(base_folder, processor, text, tmp_path, first, kind):
    """Class embeddings follow the switch; a template of its own comes with each adapter."""
    other_template = ZegClipProcessor(processor.image_processor, processor.tokenizer, prompt_templates=["the {}"])
    texts = {"zegclip": text, "ldvc": text, "other": other_template(text=NAMES, return_tensors="pt")}
    adapters = {
        "zegclip": trained(base_folder, DeepPromptConfig(num_tokens=2), seed=6),
        "ldvc": trained(base_folder, prompt_config(processor, kind, num_tokens=3), seed=7),
        "other": trained(base_folder, prompt_config(other_template, "whole", num_tokens=0), seed=8),
    }
    expected = {name: results(tuned, texts[name]) for name, tuned in adapters.items()}
    order = [first, *(name for name in adapters if name != first)]
    for name in order:
        adapters[name].save_pretrained(tmp_path / name)
    base = ZegClipForSemanticSegmentation.from_pretrained
    in_peft = PeftModel.from_pretrained(base(base_folder), tmp_path / first, adapter_name=first)
    injected = base(base_folder)
    for name in order:
        injected.load_adapter(tmp_path / name, adapter_name=name)
        if name != first:
            in_peft.load_adapter(tmp_path / name, adapter_name=name)
    for both in (in_peft, injected):
        for name in [*order, *order[::-1]]:
            both.set_adapter(name)
            assert_alike(results(both.eval(), texts[name]), expected[name])
        both.set_adapter("other")
        with pytest.raises(ValueError, match="every row of input_ids must begin"):
            both.get_class_embeds(**text)
        for gone, left in (("ldvc", "zegclip"), ("other", "zegclip")):
            both.delete_adapter(gone)
            both.set_adapter(left)
            assert not any(f".{gone}" in name for name in both.state_dict())
            assert_alike(results(both.eval(), text), expected["zegclip"])
        with torch.no_grad():
            frozen = base(base_folder).get_class_embeds(**text)
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
    frozen = results(ZegClipForSemanticSegmentation.from_pretrained(base_folder).eval(), text)[0]
    injected = ZegClipForSemanticSegmentation.from_pretrained(base_folder)
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


@pytest.mark.parametrize("num_tokens", [3, 0])
def test_unloading_removes_the_prompts(base_folder, processor, text, num_tokens):
    frozen = ZegClipForSemanticSegmentation.from_pretrained(base_folder).eval()
    tuned = trained(base_folder, prompt_config(processor, num_tokens=num_tokens))
    with pytest.raises(ValueError, match="cannot be merged"):
        tuned.merge_and_unload()
    plain = tuned.unload()
    assert not any("deep_prompt_" in name or "base_layer" in name for name in plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain.get_class_embeds(**text), frozen.get_class_embeds(**text), atol=1e-6, rtol=0)
        plain.clip.get_text_features(text["input_ids"])


@pytest.mark.parametrize("num_tokens", [3, 0])
def test_base_and_adapter_in_one_folder(base_folder, processor, text, tmp_path, num_tokens):
    tuned = trained(base_folder, prompt_config(processor, num_tokens=num_tokens))
    expected = results(tuned, text)
    tuned.save_pretrained(tmp_path / "adapter")
    injected = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter").eval()
    injected.save_with_base(tmp_path / "both")
    both = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "both").eval()
    assert_alike(results(both, text), expected)
    both.save_pretrained(tmp_path / "again")
    assert_alike(results(ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "again").eval(), text), expected)
    both.disable_adapters()
    frozen = ZegClipForSemanticSegmentation.from_pretrained(base_folder).eval()
    assert_alike(results(both, text), results(frozen, text))


def test_an_adapter_opens_on_a_plain_clip(model, processor, text, tmp_path):
    model.clip.save_pretrained(tmp_path / "clip")
    base = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "clip", config=model.config)
    tuned = move(get_peft_model(base, prompt_config(processor)))
    tuned.save_pretrained(tmp_path / "adapter")
    again = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter").eval()
    assert_alike(results(again, text), results(tuned, text))


def test_a_pipeline_puts_the_prompts_before_the_names(base_folder, processor, text, tmp_path):
    tuned = trained(base_folder, prompt_config(processor))
    tuned.save_pretrained(tmp_path / "adapter")
    tuned.config.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    segmenter = pipeline("zero-shot-image-segmentation", model=str(tmp_path / "adapter"))
    seen = []
    segmenter.model.clip.text_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    found = segmenter(Image.new("RGB", (32, 32)), candidate_labels=NAMES)
    assert {result["label"] for result in found} <= set(NAMES)
    assert seen == [(len(NAMES), text["input_ids"].shape[1] + 1)]
    assert_alike(results(segmenter.model, text), results(tuned, text))


def features(model, pixel_values):
    image_embeds, patch_embeds, outputs = model.get_image_embeds(pixel_values)
    return image_embeds, patch_embeds, outputs.last_hidden_state


@pytest.mark.parametrize("kind", [None, "whole", "words"])
@pytest.mark.parametrize("num_deep_layers", [None, 0, -1, 1])
def test_without_visual_prompts_pictures_look_as_to_the_frozen_tower(
    base_folder, processor, tmp_path, kind, num_deep_layers
):
    frozen = ZegClipForSemanticSegmentation.from_pretrained(base_folder).eval()
    config = DeepPromptConfig(num_tokens=0, num_deep_layers=num_deep_layers)
    if kind:
        config = prompt_config(processor, kind, num_tokens=0, num_deep_layers=num_deep_layers)
    tuned = trained(base_folder, config)
    tuned.save_pretrained(tmp_path / "adapter")
    again = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter").eval()
    text = dict(processor(text=NAMES, return_tensors="pt"))
    assert_alike(results(again, text), results(tuned, text))
    with torch.no_grad():
        for size in ((32, 32), (40, 24), (33, 50)):
            expected = features(frozen, picture(*size))
            for model in (tuned, again):
                assert all(torch.equal(*pair) for pair in zip(features(model, picture(*size)), expected, strict=True))
    assert not any("vision_model" in name and ".default" in name for name in tuned.state_dict())


@pytest.mark.parametrize("kind", [None, "whole"])
def test_without_visual_prompts_there_is_something_to_train(base_folder, processor, text, kind):
    config = prompt_config(processor, kind, num_tokens=0) if kind else DeepPromptConfig(num_tokens=0)
    tuned = trained(base_folder, config)
    before = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    parts = {"decode_head", "text_model"} if kind else {"decode_head"}
    learned = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    labels = torch.randint(len(NAMES), (2, 32, 40), generator=torch.Generator().manual_seed(2))
    tuned.train()(picture(), **text, labels=labels).loss.backward()
    torch.optim.SGD(learned, lr=0.1).step()
    changed = [name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {part for name in changed for part in parts if part in name} == parts
    assert all(".default" in name for name in changed)


def test_a_spectral_prompt_needs_no_visual_tokens(base_folder, processor, text, tmp_path):
    tuned = trained(base_folder, prompt_config(processor, num_tokens=0, spectral_prompt=True))
    frozen = ZegClipForSemanticSegmentation.from_pretrained(base_folder).eval()
    with torch.no_grad():
        assert not torch.allclose(features(tuned, picture())[1], features(frozen, picture())[1], atol=1e-3)
    tuned.save_pretrained(tmp_path / "adapter")
    again = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter").eval()
    assert_alike(results(again, text), results(tuned, text))


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
    tuned = trained(base_folder, prompt_config(processor, kind))
    exact = tuned.get_class_embeds(**text)
    half = tuned.to(dtype).get_class_embeds(**text)
    assert half.dtype == dtype
    assert (half.float() - exact).norm(dim=-1).max() < 0.1

    base = ZegClipForSemanticSegmentation.from_pretrained(base_folder, dtype=dtype).eval()
    frozen = base.get_class_embeds(**text)
    injected = copy.deepcopy(base)
    injected.add_adapter(prompt_config(processor, kind))
    started = get_peft_model(base, prompt_config(processor, kind)).eval()
    assert injected.clip.text_model.encoder.deep_prompt_tokens["default"].dtype == torch.float32
    assert prompts_of(started).dtype == torch.float32  # what is trained
    embeds = started.get_class_embeds(**text)
    assert embeds.dtype == dtype
    if kind == "words":
        assert (embeds.float() - frozen.float()).norm(dim=-1).max() < 0.05


def test_a_wrapped_encoder_still_makes_room(base_folder, processor, text):
    tuned = trained(base_folder, prompt_config(processor))
    expected = results(tuned, text)
    tower = tuned.base_model.model.clip.text_model
    tower.encoder = torch.compile(tower.encoder, backend="eager")
    assert_alike(results(tuned, text), expected)


def test_text_prompts_are_not_mixed(model, processor, text):
    model.add_adapter(prompt_config(processor), adapter_name="first")
    model.add_adapter(prompt_config(processor, "words"), adapter_name="second")
    model.clip.text_model.encoder.set_adapter(["first", "second"])
    with pytest.raises(ValueError, match="activate one adapter") as refused:
        model.get_class_embeds(**text)
    one_sentence(refused)


def test_names_given_as_embeddings_are_taken_as_they_are(base_folder, processor, text):
    tuned = trained(base_folder, prompt_config(processor))
    embeds, logits = results(tuned, text)
    with torch.no_grad():
        assert torch.equal(tuned(picture(), class_embeds=embeds).logits, logits)
