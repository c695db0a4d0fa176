"""The local-consensus decode head against gathers over padded windows, and in a whole model."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import CLIPModel

from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.loading import load_base
from zegclip.modeling.head_consensus import (
    ConsensusDecodeHead,
    ConsensusDecoderLayer,
    LocalConsensusAttention,
    routed_mask,
)

GRIDS = [(8, 8), (4, 4), (5, 7), (1, 1), (3, 2), (9, 6)]
TOP_KS = [1, 2, 6, 1000]
HEADS = 4


def configured(model, depth=4, **fields):
    """The consensus head at its smallest, on towers whose width (32) is not the embeddings' (24)."""
    clip_config = copy.deepcopy(model.config.clip_config)
    clip_config.projection_dim = 24
    clip_config.vision_config.num_hidden_layers = depth
    fields = {
        "decode_head_type": "consensus",
        "num_decoder_layers": 2,
        "out_indices": [1, 3],
        "decoder_attention_heads": HEADS,
        "decoder_ffn_dim": 48,
        "decoder_window_size": 2,
        "decoder_top_k": 2,
    } | fields
    config = ZegClipConfig(clip_config=clip_config, **fields)
    config._attn_implementation = "sdpa"  # for heads on their own; exact in float64, unlike eager
    return config


@torch.no_grad()
def spread(module, seed=3):
    """Give every parameter random values, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return module


def random(*shape, seed=4):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def names(count=3, dim=24, seed=5):
    return F.normalize(random(count, dim, seed=seed), dim=-1)


def pictures(count=2, height=32, width=32, seed=6):
    return random(count, 3, height, width, seed=seed)


def consensus_by_gather(module, picture, window, top_k):
    """Equations 8 to 12 for one picture `(height, width, dim)`, window by window and head by head."""
    height, width, dim = picture.shape
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    missing = (0, 0, 0, columns * window - width, 0, rows * window - height)
    # On the right and below; with ones, so that padding which takes part anywhere shows.
    padded, real = F.pad(picture, missing, value=1.0), F.pad(torch.ones(height, width), missing[2:]).bool()
    projected = F.linear(padded, module.qkv.weight, module.qkv.bias)
    query, key, value = projected[..., :dim], projected[..., dim : 2 * dim], projected[..., 2 * dim :]
    areas = [
        (slice(row * window, (row + 1) * window), slice(column * window, (column + 1) * window))
        for row, column in itertools.product(range(rows), range(columns))
    ]
    means = torch.stack([padded[area][real[area]].mean(dim=0) for area in areas])
    attended = torch.empty(rows * window, columns * window, dim, dtype=picture.dtype)
    for area, mean in zip(areas, means):
        alike = (means @ mean).argsort(descending=True)[:top_k].tolist()
        keys, values, seen = (
            torch.cat([source[areas[index]].flatten(0, 1) for index in alike]) for source in (key, value, real)
        )
        heads = []
        for head in torch.arange(dim).chunk(HEADS):
            scores = query[area][..., head] @ keys[:, head].T / math.sqrt(dim / HEADS)
            heads.append(scores.masked_fill(~seen, -torch.inf).softmax(dim=-1) @ values[:, head])
        attended[area] = torch.cat(heads, dim=-1)
    return F.linear(attended[:height, :width], module.out_proj.weight, module.out_proj.bias)


def gradients(output, *inputs):
    (output * random(*output.shape, seed=9)).sum().backward()
    result = [tensor.grad.clone() for tensor in inputs]
    for tensor in inputs:
        tensor.grad = None
    return result


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("window", [2, 3, 4])
def test_attention_equals_gathered_windows(model, grid, window):
    for top_k in TOP_KS:
        module = LocalConsensusAttention(configured(model, decoder_window_size=window, decoder_top_k=top_k))
        spread(module).double().eval()
        patches = random(2, *grid, 24).double().requires_grad_()
        learned = [patches, *module.parameters()]
        actual = module(patches)
        expected = torch.stack([consensus_by_gather(module, picture, window, top_k) for picture in patches])
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-9)
        for ours, theirs in zip(gradients(actual, *learned), gradients(expected, *learned), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("more", [0, 1, 1000])
def test_with_all_windows_it_is_plain_self_attention(model, grid, more):
    windows = math.ceil(grid[0] / 3) * math.ceil(grid[1] / 3)
    config = configured(model, decoder_window_size=3, decoder_top_k=windows + more)
    module = spread(LocalConsensusAttention(config)).double().eval()
    plain = nn.MultiheadAttention(24, HEADS, batch_first=True).double()
    plain.load_state_dict(
        {
            "in_proj_weight": module.qkv.weight,
            "in_proj_bias": module.qkv.bias,
            "out_proj.weight": module.out_proj.weight,
            "out_proj.bias": module.out_proj.bias,
        }
    )
    patches = random(2, *grid, 24).double()
    tokens = patches.flatten(1, 2)
    expected = plain(tokens, tokens, tokens, need_weights=False)[0].view_as(patches)
    torch.testing.assert_close(module(patches), expected, atol=1e-12, rtol=1e-9)


def test_a_window_looks_at_as_many_windows_as_asked_for():
    """Of 3 x 4 windows, those of the last row and column are smaller."""
    patches = random(2, 8, 10, 24)
    for top_k in (1, 5, 12, 13):
        mask = routed_mask(patches, 3, top_k)
        assert mask.shape == (2, 1, 80, 80)
        windows = mask.view(2, 8, 10, 8, 10)[:, ::3, ::3, ::3, ::3]
        assert (windows.sum(dim=(3, 4)) == min(top_k, 12)).all()
        # All patches of a window look alike, and are seen alike.
        for dim, side in zip((1, 2, 3, 4), (8, 10, 8, 10)):
            windows = windows.repeat_interleave(3, dim=dim).narrow(dim, 0, side)
        assert torch.equal(windows.reshape(mask.shape), mask)


def test_windows_are_chosen_in_full_precision():
    """Sums and products of half precision would choose others, in another order on each device."""
    patches = random(2, 32, 32, 24)
    expected = routed_mask(patches, 4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(routed_mask(patches, 4, 16), expected)
    rounded = patches.bfloat16()
    assert torch.equal(routed_mask(rounded, 4, 16), routed_mask(rounded.float(), 4, 16))
    assert not routed_mask(patches.requires_grad_(), 4, 16).requires_grad


def test_what_a_window_looks_at_is_decided_by_the_picture_alone(model):
    """Another picture in the batch changes nothing, and neither do windows that are not looked at."""
    module = spread(LocalConsensusAttention(configured(model))).eval()
    patches = random(2, 6, 6, 24)
    before = module(patches)
    other = patches.clone()
    other[1] = random(6, 6, 24, seed=8)
    torch.testing.assert_close(module(other)[0], before[0], atol=1e-6, rtol=0)
    seen = routed_mask(patches, 2, 2)[0, 0, 0].view(6, 6)
    assert seen.sum() == 8
    changed = patches.clone()
    changed[0, ~seen] *= 0.9  # less alike than before
    torch.testing.assert_close(module(changed)[0, 0, 0], before[0, 0, 0], atol=1e-6, rtol=0)
    changed[0, seen] *= 1.1
    assert not torch.allclose(module(changed)[0, 0, 0], before[0, 0, 0], atol=1e-3)


def cross_attention(layer, patches, queries):
    """Equation 6's CA by PyTorch's own module: patches ask, class queries answer."""
    plain = nn.MultiheadAttention(24, HEADS, batch_first=True).double()
    parts = (layer.q_proj, layer.k_proj, layer.v_proj)
    plain.load_state_dict(
        {
            "in_proj_weight": torch.cat([part.weight for part in parts]),
            "in_proj_bias": torch.cat([part.bias for part in parts]),
            "out_proj.weight": layer.out_proj.weight,
            "out_proj.bias": layer.out_proj.bias,
        }
    )
    return plain(patches.flatten(1, 2), queries, queries, need_weights=False)[0].view_as(patches)


def layer_by_equations(layer, patches, hidden_state, queries, window, top_k):
    """Equations 4 to 7, with the norms after each sum."""
    channels_first = hidden_state.permute(0, 3, 1, 2)
    states = patches + F.conv2d(channels_first, layer.fuse.weight[..., None, None], layer.fuse.bias).permute(
        0, 2, 3, 1
    )
    if top_k:
        attended = [consensus_by_gather(layer.self_attention, picture, window, top_k) for picture in states]
        states = F.layer_norm(
            states + torch.stack(attended), (24,), layer.self_norm.weight, layer.self_norm.bias, eps=1e-5
        )
    layer = layer.text_layer
    states = states + cross_attention(layer, states, queries)
    states = F.layer_norm(states, (24,), layer.norm1.weight, layer.norm1.bias, eps=1e-5)
    hidden = (states @ layer.fc1.weight.T + layer.fc1.bias).clamp(min=0)
    states = states + hidden @ layer.fc2.weight.T + layer.fc2.bias
    return F.layer_norm(states, (24,), layer.norm2.weight, layer.norm2.bias, eps=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("top_k", [0, 2, 1000])
@torch.no_grad()
def test_a_layer_equals_the_equations(model, grid, top_k):
    layer = ConsensusDecoderLayer(configured(model, decoder_window_size=3, decoder_top_k=top_k))
    spread(layer).double().eval()
    patches, hidden_state, queries = (
        random(2, *grid, 24).double(),
        random(2, *grid, 32, seed=7).double(),
        random(2, 5, 24, seed=8).double(),
    )
    expected = layer_by_equations(layer, patches, hidden_state, queries, 3, top_k)
    torch.testing.assert_close(layer(patches, hidden_state, queries), expected, atol=1e-11, rtol=1e-9)


def queries_by_loops(head, image, classes, descriptor):
    """Equation 3, a picture and a class at a time, or an ablation of its terms."""
    terms = {
        "product": lambda picture, name: picture * name,
        "text": lambda picture, name: name,
        "difference": lambda picture, name: (picture - name).abs(),
    }
    rows = []
    for picture in image:
        described = [torch.cat([terms[term](picture, name) for term in descriptor]) for name in classes]
        rows.append(torch.stack([head.query_proj.weight @ row + head.query_proj.bias for row in described]))
    return torch.stack(rows)


@pytest.mark.parametrize("descriptor", [["product", "text"], ["difference", "product"], ["difference"], ["text"]])
@torch.no_grad()
def test_the_head_equals_the_equations(model, descriptor):
    head = spread(ConsensusDecodeHead(configured(model, descriptor=descriptor))).double().eval()
    image, classes = names(2, seed=8).double(), names().double()
    patches, hidden_states = random(2, 5, 4, 24).double(), random(2, 2, 5, 4, 32, seed=7).double().unbind()
    queries = queries_by_loops(head, image, classes, descriptor)
    refined = patches
    for layer, hidden_state in zip(head.layers, hidden_states):
        refined = layer_by_equations(layer, refined, hidden_state, queries, 2, 2)
    expected = torch.stack([(refined * query[:, None, None]).sum(dim=-1) for query in queries.unbind(1)], dim=1)
    actual = head(image, patches, classes, hidden_states)
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-9)
    # Each layer has a hidden state of its own, and the first has the first.
    assert not torch.allclose(head(image, patches, classes, hidden_states[::-1]), actual, atol=1e-2)
    for wrong in (hidden_states[:1], (*hidden_states, hidden_states[0])):
        with pytest.raises(ValueError, match="zip"):
            head(image, patches, classes, wrong)


def test_without_windows_to_look_at_there_is_no_self_attention(model):
    without = ConsensusDecodeHead(configured(model, decoder_top_k=0))
    whole = ConsensusDecodeHead(configured(model))
    missing = whole.state_dict().keys() - without.state_dict().keys()
    assert not without.state_dict().keys() - whole.state_dict().keys()
    parts = {"self_attention.qkv", "self_attention.out_proj", "self_norm"}
    kinds = ("weight", "bias")
    assert missing == {f"layers.{i}.{part}.{kind}" for i in range(2) for part in parts for kind in kinds}


@pytest.mark.parametrize("fields", [{}, {"decoder_top_k": 0}, {"num_decoder_layers": 1, "out_indices": [3]}])
def test_every_parameter_learns(model, fields):
    head = spread(ConsensusDecodeHead(configured(model, **fields)))
    hidden_states = random(2, 2, 5, 4, 32, seed=7).unbind()[: len(head.layers)]
    logits = head(names(2, seed=8), random(2, 5, 4, 24), names(), hidden_states)
    (logits * random(*logits.shape, seed=9)).sum().backward()
    for name, parameter in head.named_parameters():
        if name.endswith("k_proj.bias"):  # a softmax does not feel what is added to all of its scores
            assert parameter.grad.abs().max() < 1e-4, name
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-4, name


@pytest.mark.parametrize("source", ["fresh", "meta device", "plain CLIP", "model with another head"])
def test_initial_values(model, tmp_path, source):
    config = configured(model, decoder_ffn_dim=256)
    torch.manual_seed(0)
    if source == "fresh":
        whole = ZegClipForSemanticSegmentation(config)
    elif source == "meta device":
        with torch.device("meta"):
            whole = ZegClipForSemanticSegmentation(config)
        whole = whole.to_empty(device="cpu")
        for parameter in whole.parameters():
            parameter.data.fill_(7.0)
        whole.initialize_weights()
    elif source == "plain CLIP":
        CLIPModel(config.clip_config).save_pretrained(tmp_path)
        whole = ZegClipForSemanticSegmentation.from_pretrained(tmp_path, config=config)
    else:
        other = ZegClipConfig(clip_config=config.clip_config, decoder_attention_heads=2, decoder_ffn_dim=256)
        ZegClipForSemanticSegmentation(other).save_pretrained(tmp_path)
        overrides = {name: getattr(config, name) for name in config.describe_head() if hasattr(config, name)}
        whole = load_base(tmp_path, overrides)
    assert isinstance(whole.decode_head, ConsensusDecodeHead)
    weights = []
    for name, module in whole.decode_head.named_modules():
        if isinstance(module, nn.Linear):
            assert (module.bias == 0).all(), name
            assert 0.85 * 0.02 < module.weight.std() < 1.15 * 0.02, name
            assert module.weight.abs().max() > 0.045, name  # a uniform distribution ends at 0.035
            weights.append(module.weight.flatten())
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name
    assert len(weights) == 1 + 2 * 9
    assert 0.98 * 0.02 < torch.cat(weights).std() < 1.02 * 0.02


def whole_model(model, **fields):
    """A whole model with all values away from their initial ones, CLIP's norms and biases included."""
    torch.manual_seed(0)
    return move(ZegClipForSemanticSegmentation(configured(model, **fields)))


@torch.no_grad()
def move(model, seed=3):
    """Take the trained values away from their initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture
def consensus(model):
    return whole_model(model)


class Captured:
    """What the layers of the vision tower return, and what the decode head is given."""

    def __init__(self, whole):
        encoder = whole.clip.vision_model.encoder
        self.layers, self.head = {}, []
        for index, layer in enumerate(getattr(encoder, "base_layer", encoder).layers):
            layer.register_forward_hook(
                lambda _module, _args, output, index=index: self.layers.update({index: output})
            )
        head = whole.decode_head
        # A hook on the wrapper of a trained copy would see nothing.
        head = head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head
        head.register_forward_pre_hook(lambda _module, args: self.head.append(args))

    def expected(self, index, grid):
        """The patches after layer `index`: what stands before them is the class token and perhaps prompts."""
        return self.layers[index][:, -grid[0] * grid[1] :].unflatten(1, grid)


ADAPTERS = {
    "no adapter": None,
    "prompts": {"num_tokens": 3},
    "prompts of the first two layers": {"num_tokens": 3, "num_deep_layers": 1},
    "prompts carried on": {"num_tokens": 3, "num_deep_layers": 0},
    "prompts of the last layer": {"num_tokens": 3, "num_deep_layers": -1},
    "no prompts": {"num_tokens": 0},
    "spectral prompts": {"num_tokens": 3, "spectral_prompt": True, "spectral_layers": [0, 3]},
}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("out_indices", [[1, 3], [3, 0], [2, 2]])
def test_the_head_gets_the_raw_states_of_the_layers_named(model, adapter, out_indices):
    whole = whole_model(model, out_indices=out_indices)
    if ADAPTERS[adapter]:
        whole.add_adapter(DeepPromptConfig(**ADAPTERS[adapter]))
        move(whole)
    captured = Captured(whole)
    for height, width in ((32, 32), (40, 24), (33, 50)):
        grid = (-(-height // 8), -(-width // 8))
        output = whole(pictures(2, height, width), class_embeds=names())
        assert output.hidden_states is None
        image_embeds, _, class_embeds, hidden_states = captured.head[-1]
        assert len(hidden_states) == 2
        for index, hidden_state in zip(out_indices, hidden_states):
            assert hidden_state.shape == (2, *grid, 32)
            assert torch.equal(hidden_state, captured.expected(index, grid)), index
        torch.testing.assert_close(image_embeds.norm(dim=-1), torch.ones(2))
        torch.testing.assert_close(class_embeds.norm(dim=-1), torch.ones(3))


@torch.no_grad()
def test_only_what_the_head_is_given_stays_unnormalised(consensus):
    captured = Captured(consensus)
    output = consensus(pictures(2, 40, 24), class_embeds=names())
    patch_embeds = captured.head[-1][1]
    vision = consensus.clip.vision_model
    expected = consensus.clip.visual_projection(vision.post_layernorm(captured.expected(3, (5, 3))))
    torch.testing.assert_close(patch_embeds, expected, atol=1e-6, rtol=0)
    assert patch_embeds.norm(dim=-1).min() > 1.5
    torch.testing.assert_close(output.patch_embeds, F.normalize(expected, dim=-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(consensus.get_image_embeds(pictures(2, 40, 24))[1], output.patch_embeds)


@pytest.mark.parametrize("out_indices", [[1, 3], [3, 0]])
def test_all_hidden_states_can_be_asked_for(model, out_indices):
    whole = whole_model(model, out_indices=out_indices)
    whole.add_adapter(DeepPromptConfig(num_tokens=3))
    move(whole)
    captured = Captured(whole)
    with torch.no_grad():
        quiet = whole(pictures(), class_embeds=names())
        output = whole(pictures(), class_embeds=names(), output_hidden_states=True)
    assert quiet.hidden_states is None
    assert torch.equal(quiet.logits, output.logits)
    assert len(output.hidden_states) == 5
    for index, state in enumerate(output.hidden_states[1:]):
        assert torch.equal(state, captured.layers[index])
    assert [state.shape for state in output.hidden_states] == [(2, 1 + 3 + 16, 32)] * 5


@torch.no_grad()
def test_some_hidden_states_can_be_asked_for(consensus):
    """As transformers does by a list of indices; those that the head needs may be others."""
    everything = consensus(pictures(), class_embeds=names(), output_hidden_states=True)
    some = consensus(pictures(), class_embeds=names(), output_hidden_states=[1])
    assert torch.equal(some.logits, everything.logits)
    assert torch.equal(some.hidden_states[1], everything.hidden_states[1])


def test_gradient_checkpointing_changes_nothing(consensus):
    labels = torch.randint(3, (2, 32, 32), generator=torch.Generator().manual_seed(2))
    consensus.add_adapter(DeepPromptConfig(num_tokens=3, dropout=0.0))
    for module in consensus.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    results = []
    for checkpointing in (False, True):
        other = copy.deepcopy(consensus)
        if checkpointing:
            other.gradient_checkpointing_enable()
        other.train()
        captured = Captured(other)
        output = other(pictures(), class_embeds=names(), labels=labels)
        for index, hidden_state in zip([1, 3], captured.head[-1][3], strict=True):
            assert torch.equal(hidden_state, captured.expected(index, (4, 4)))
            assert hidden_state.requires_grad
        output.loss.backward()
        results.append({name: p.grad for name, p in other.named_parameters() if p.requires_grad})
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        assert gradient.abs().max() > 1e-7 or name.endswith("k_proj.bias"), name
        torch.testing.assert_close(results[1][name], gradient, msg=name)


def test_prompts_learn_through_the_hidden_states_too(consensus):
    """Those of layers up to the one whose states enter; the last layer's alone reach the head as patches."""
    consensus.add_adapter(DeepPromptConfig(num_tokens=3))
    move(consensus)
    tokens = consensus.clip.vision_model.encoder.deep_prompt_tokens["default"]
    captured = Captured(consensus)
    consensus(pictures(), class_embeds=names())
    (state, _) = captured.head[-1][3]
    (gradient,) = torch.autograd.grad(state.square().sum(), tokens)
    assert [bool(layer.any()) for layer in gradient] == [True, True, False, False]


@pytest.mark.parametrize("top_k", [0, 2, 1000])
def test_eager_equals_sdpa(model, top_k):
    whole = whole_model(model, decoder_top_k=top_k)
    labels = torch.randint(3, (2, 40, 24), generator=torch.Generator().manual_seed(2))
    outputs, learned = {}, {}
    for implementation in ("eager", "sdpa"):
        whole.set_attn_implementation(implementation)
        assert whole.decode_head.layers[0].text_layer.config._attn_implementation == implementation
        whole.zero_grad()
        output = whole(pictures(2, 40, 24), class_embeds=names(), labels=labels)
        output.loss.backward()
        outputs[implementation] = output.logits
        learned[implementation] = {name: p.grad for name, p in whole.decode_head.named_parameters()}
    torch.testing.assert_close(outputs["eager"], outputs["sdpa"], atol=1e-5, rtol=0)
    for name, gradient in learned["eager"].items():
        torch.testing.assert_close(gradient, learned["sdpa"][name], atol=1e-4, rtol=1e-4, msg=name)


def test_a_kernel_that_takes_no_mask_is_not_asked(model):
    """Flash attention, which is not even installed here."""
    module = spread(LocalConsensusAttention(configured(model))).eval()
    expected = module(random(2, 5, 4, 24))
    module.config._attn_implementation = "flash_attention_2"
    assert torch.equal(module(random(2, 5, 4, 24)), expected)


def test_dropout_is_for_training_alone(consensus):
    head = consensus.decode_head
    inputs = names(2, seed=8), random(2, 5, 4, 24), names(), random(2, 2, 5, 4, 32, seed=7).unbind()
    assert torch.equal(head(*inputs), head(*inputs))
    head.train()
    assert not torch.allclose(head(*inputs), head(*inputs), atol=1e-3)


@torch.no_grad()
def test_any_number_of_names_and_any_grid(consensus):
    for (height, width), count in itertools.product(((1, 1), (8, 72), (33, 50)), (1, 7)):
        logits = consensus(pictures(2, height, width), class_embeds=names(count)).logits
        assert logits.shape == (2, count, -(-height // 8), -(-width // 8))
        assert logits.isfinite().all()


def test_compiles_with_any_number_of_names(model):
    """The hidden states are captured by hooks, and windows are chosen by what the patches are."""
    whole = whole_model(model, depth=2, num_decoder_layers=1, out_indices=[0])
    whole.add_adapter(DeepPromptConfig(num_tokens=3))
    move(whole)
    torch._dynamo.reset()
    compiled = torch.compile(whole, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for count in (2, 5):
            expected = whole(pictures(), class_embeds=names(count))
            actual = compiled(pictures(), class_embeds=names(count))
            torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=0)
            assert actual.hidden_states is None


@torch.no_grad()
def test_save_and_load_identity(consensus, tmp_path):
    consensus.save_pretrained(tmp_path)
    again = ZegClipForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert again.config.out_indices == [1, 3]
    expected = consensus(pictures(2, 40, 24), class_embeds=names()).logits
    assert torch.equal(again(pictures(2, 40, 24), class_embeds=names()).logits, expected)


@torch.no_grad()
def test_an_adapter_brings_the_head_onto_a_plain_clip(consensus, tmp_path):
    consensus.clip.save_pretrained(tmp_path / "clip")
    base = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "clip", config=consensus.config)
    tuned = move(get_peft_model(base, DeepPromptConfig(num_tokens=3)))
    tuned.save_pretrained(tmp_path / "adapter")
    expected = tuned(pictures(2, 40, 24), class_embeds=names()).logits
    alone = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter").eval()
    assert alone.config.out_indices == [1, 3]
    assert isinstance(alone.decode_head.modules_to_save["default"], ConsensusDecodeHead)
    torch.testing.assert_close(alone(pictures(2, 40, 24), class_embeds=names()).logits, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_top_k": 3}, "trained with decoder_top_k=2, but this model has 3"),
        ({"decoder_window_size": 3}, "trained with decoder_window_size=2, but this model has 3"),
        ({"out_indices": [1, 2]}, r"trained with out_indices=\[1, 3\], but this model has \[1, 2\]"),
        ({"out_indices": [3, 1]}, r"trained with out_indices=\[1, 3\], but this model has \[3, 1\]"),
    ],
)
def test_an_adapter_on_another_head_is_refused(model, consensus, tmp_path, fields, message):
    get_peft_model(copy.deepcopy(consensus), DeepPromptConfig(num_tokens=2)).save_pretrained(tmp_path)
    for load in (PeftModel.from_pretrained, lambda other, folder: other.load_adapter(folder)):
        with pytest.raises(ValueError, match=message) as refused:
            load(whole_model(model, **fields), tmp_path)
        assert "\n" not in str(refused.value)
    load(copy.deepcopy(consensus), tmp_path)


@pytest.mark.parametrize(("num_tokens", "expected"), [(100, 11_270_912), (40, 10_717_952)])
def test_trained_parameters_at_full_size(num_tokens, expected):
    """The paper's 11 million: vision prompts, six text prompts a layer, descriptor, two layers."""
    fields = {"num_decoder_layers": 2, "decoder_window_size": 4, "decoder_top_k": 16, "out_indices": [7, 11]}
    prompts = {"text_prompts": "whole", "text_prompt_ids": [49406, 320, 1125, 539, 320, 49407]}
    with torch.device("meta"):
        whole = ZegClipForSemanticSegmentation(ZegClipConfig(decode_head_type="consensus", **fields))
        tuned = get_peft_model(whole, DeepPromptConfig(num_tokens=num_tokens, **prompts))
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == expected
