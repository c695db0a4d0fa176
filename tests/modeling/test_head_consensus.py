"""The local-consensus decode head against gathers over padded windows, and in a whole model."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from tiny_models import move, pictures, random
from tiny_models import names as class_names
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
from zegclip.modeling.model_error import ModelError

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


def names(count=3):
    return class_names(count, dim=24)


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


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("window", [2, 3, 4])
def test_attention_equals_gathered_windows(model, grid, window):
    """Values and gradients; with all windows it is plain self-attention."""
    for top_k in TOP_KS:
        module = LocalConsensusAttention(configured(model, decoder_window_size=window, decoder_top_k=top_k))
        spread(module).double().eval()
        patches = random(2, *grid, 24).double().requires_grad_()
        learned = [patches, *module.parameters()]
        actual = module(patches)
        expected = torch.stack([consensus_by_gather(module, picture, window, top_k) for picture in patches])
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-9)
        weight = random(*actual.shape, seed=9)
        ours, theirs = (torch.autograd.grad((output * weight).sum(), learned) for output in (actual, expected))
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-9)


def test_windows_are_chosen_in_full_precision():
    """Sums and products of half precision would choose others, in another order on each device."""
    patches = random(2, 32, 32, 24)
    expected = routed_mask(patches, 4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(routed_mask(patches, 4, 16), expected)
    rounded = patches.bfloat16()
    assert torch.equal(routed_mask(rounded, 4, 16), routed_mask(rounded.float(), 4, 16))
    assert not routed_mask(patches.requires_grad_(), 4, 16).requires_grad


def cross_attention(layer, patches, queries):
    """Equation 6's CA by PyTorch's own module: patches ask, class queries answer."""
    plain = nn.MultiheadAttention(24, HEADS, batch_first=True).double()
    plain.out_proj = layer.out_proj
    parts = (layer.q_proj, layer.k_proj, layer.v_proj)
    plain.in_proj_weight, plain.in_proj_bias = (
        nn.Parameter(torch.cat([getattr(part, kind) for part in parts])) for kind in ("weight", "bias")
    )
    return plain(patches.flatten(1, 2), queries, queries, need_weights=False)[0].view_as(patches)


def layer_by_equations(layer, patches, hidden_state, queries, window, top_k):
    """Equations 4 to 7, with the norms after each sum."""

    def normed(states, norm):
        return F.layer_norm(states, (24,), norm.weight, norm.bias, eps=1e-5)

    states = patches + hidden_state @ layer.fuse.weight.T + layer.fuse.bias
    if top_k:
        attended = [consensus_by_gather(layer.self_attention, picture, window, top_k) for picture in states]
        states = normed(states + torch.stack(attended), layer.self_norm)
    layer = layer.text_layer
    states = normed(states + cross_attention(layer, states, queries), layer.norm1)
    hidden = (states @ layer.fc1.weight.T + layer.fc1.bias).clamp(min=0)
    return normed(states + hidden @ layer.fc2.weight.T + layer.fc2.bias, layer.norm2)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("top_k", [0, 2, 1000])
@torch.no_grad()
def test_a_layer_equals_the_equations(model, grid, top_k):
    layer = ConsensusDecoderLayer(configured(model, decoder_window_size=3, decoder_top_k=top_k))
    spread(layer).double().eval()
    shapes = (2, *grid, 24), (2, *grid, 32), (2, 5, 24)
    inputs = [random(*shape, seed=seed).double() for seed, shape in enumerate(shapes)]
    expected = layer_by_equations(layer, *inputs, 3, top_k)
    torch.testing.assert_close(layer(*inputs), expected, atol=1e-11, rtol=1e-9)


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
    image, classes = class_names(2, dim=24, seed=8).double(), names().double()
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
        whole = load_base(tmp_path, {name: getattr(config, name) for name in ConsensusDecodeHead.config_fields})
    assert isinstance(whole.decode_head, ConsensusDecodeHead)
    weights = []
    for name, module in whole.decode_head.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            assert (module.bias == 0).all(), name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
        elif isinstance(module, nn.Linear):
            assert 0.85 * 0.02 < module.weight.std() < 1.15 * 0.02, name
            assert module.weight.abs().max() > 0.045, name  # a uniform distribution ends at 0.035
            weights.append(module.weight.flatten())
    assert len(weights) == 1 + 2 * 9
    assert 0.98 * 0.02 < torch.cat(weights).std() < 1.02 * 0.02


def whole_model(model, **fields):
    """A whole model with all values away from their initial ones, CLIP's norms and biases included."""
    torch.manual_seed(0)
    return move(ZegClipForSemanticSegmentation(configured(model, **fields)))


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
@torch.no_grad()
def test_hidden_states_can_be_asked_for(model, out_indices):
    """All, or some by a list of indices as in transformers; those that the head needs may be others."""
    whole = whole_model(model, out_indices=out_indices)
    whole.add_adapter(DeepPromptConfig(num_tokens=3))
    move(whole)
    captured = Captured(whole)
    quiet, output, some = (
        whole(pictures(), class_embeds=names(), output_hidden_states=asked) for asked in (None, True, [1])
    )
    assert quiet.hidden_states is None
    assert torch.equal(quiet.logits, output.logits)
    assert torch.equal(some.logits, output.logits)
    assert torch.equal(some.hidden_states[1], output.hidden_states[1])
    assert [state.shape for state in output.hidden_states] == [(2, 1 + 3 + 16, 32)] * 5
    for index, state in enumerate(output.hidden_states[1:]):
        assert torch.equal(state, captured.layers[index])


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


def test_a_kernel_that_takes_no_mask_is_not_asked(model):
    """Flash attention, which is not even installed here."""
    module = spread(LocalConsensusAttention(configured(model))).eval()
    expected = module(random(2, 5, 4, 24))
    module.config._attn_implementation = "flash_attention_2"
    assert torch.equal(module(random(2, 5, 4, 24)), expected)


def test_dropout_is_for_training_alone(consensus):
    head = consensus.decode_head
    inputs = class_names(2, dim=24, seed=8), random(2, 5, 4, 24), names(), random(2, 2, 5, 4, 32, seed=7).unbind()
    assert torch.equal(head(*inputs), head(*inputs))
    head.train()
    assert not torch.allclose(head(*inputs), head(*inputs), atol=1e-3)


def test_compiles_with_any_number_of_names(model):
    """The hidden states are captured by hooks, and windows are chosen by what the patches are."""
    whole = whole_model(model, depth=2, num_decoder_layers=1, out_indices=[0])
    whole.add_adapter(DeepPromptConfig(num_tokens=3))
    move(whole)
    torch._dynamo.reset()
    compiled = torch.compile(whole, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for count in (2, 5):
            actual = compiled(pictures(), class_embeds=names(count))
            expected = whole(pictures(), class_embeds=names(count))
            torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=0)
            assert actual.hidden_states is None


def test_a_first_training_step_compiles(model):
    """Nothing was called before; names pass through the text tower with its prompts."""
    whole = whole_model(model, depth=2, num_decoder_layers=1, out_indices=[0], decoder_dropout=0.0)
    end = whole.config.clip_config.text_config.eos_token_id
    ids = [0, 5, 6, end]
    whole.add_adapter(DeepPromptConfig(num_tokens=3, dropout=0.0, text_prompts="whole", text_prompt_ids=ids))
    move(whole)
    inputs = {"pixel_values": pictures(), "input_ids": torch.tensor([[0, 5, 6, 7, end], [0, 5, 6, 9, end]])}
    inputs["labels"] = torch.arange(2 * 24 * 24).view(2, 24, 24) % 2
    torch._dynamo.reset()
    actual = torch.compile(whole.train(), backend="aot_eager", fullgraph=True)(**inputs).loss
    torch.testing.assert_close(actual, whole(**inputs).loss, atol=1e-5, rtol=0)
    actual.backward()
    assert all(parameter.grad is not None for parameter in whole.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    "fields",
    [
        {"decoder_top_k": 3},
        {"decoder_window_size": 3},
        {"decoder_attention_heads": 2},
        {"out_indices": [1, 2]},
        {"out_indices": [3, 1]},
    ],
)
def test_an_adapter_on_another_head_is_refused(model, consensus, tmp_path, fields):
    get_peft_model(copy.deepcopy(consensus), DeepPromptConfig(num_tokens=2)).save_pretrained(tmp_path)
    for load in (PeftModel.from_pretrained, lambda other, folder: other.load_adapter(folder)):
        with pytest.raises(ModelError, match=next(iter(fields))):
            load(whole_model(model, **fields), tmp_path)
    load(copy.deepcopy(consensus), tmp_path)
