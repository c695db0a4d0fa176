"""The spectral guided decode head against loops over windows, and in a whole model."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import names, random
from transformers import CLIPModel

from zegclip import ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.modeling.head_spectral import GATE_OPENING, SpectralDecodeHead, SpectralMixing

GRIDS = [(4, 4), (6, 6), (5, 7), (2, 2), (1, 1), (1, 5)]


def configured(model, **fields):
    """The tiny model's configuration, with the spectral head at its smallest."""
    fields = {
        "decode_head_type": "spectral",
        "decoder_attention_heads": 4,
        "decoder_low_frequency_heads": 3,
        "decoder_ffn_dim": 64,
    } | fields
    config = ZegClipConfig(clip_config=model.config.clip_config, **fields)
    config._attn_implementation = "sdpa"  # for heads on their own; exact in float64, unlike eager
    return config


@torch.no_grad()
def spread(module, seed=3):
    """Give every parameter random values with which about half of the patches pass the gate."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        if ".low_proj." in f".{name}":
            parameter *= 0.1  # what patches have in common would put all of them on the same side of the gate
    return module


def patches(height, width, batch=2):
    return F.normalize(random(batch, height, width, 32, seed=4), dim=-1)


def attended(query, key, value, head_dim):
    """Multi-head attention over `(tokens, dim)`, one head and one query at a time."""
    rows = []
    for token in query:
        heads = []
        for start in range(0, query.shape[1], head_dim):
            head = slice(start, start + head_dim)
            weights = (key[:, head] @ token[head] / math.sqrt(head_dim)).exp()
            heads.append((weights / weights.sum()) @ value[:, head])
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def mixed_by_loops(module, picture, window, head_dim):
    """The mixing of one picture `(height, width, dim)`, before the gate, in float64."""
    weights = {name: tensor.detach().double() for name, tensor in module.state_dict().items()}
    height, width, dim = picture.shape
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    padded = torch.zeros(rows * window, columns * window, dim, dtype=torch.float64)
    padded[:height, :width] = picture
    high_dim = len(weights["high_qkv.weight"]) // 3
    low_dim = len(weights["low_q.weight"])
    high = torch.zeros(rows * window, columns * window, high_dim, dtype=torch.float64)
    means = []
    for row, column in itertools.product(range(rows), range(columns)):
        area = (
            slice(row * window, (row + 1) * window),
            slice(column * window, (column + 1) * window),
        )
        inside = padded[area].reshape(window * window, dim)
        query, key, value = (inside @ weights["high_qkv.weight"].T).split(high_dim, dim=1)
        high[area] = attended(query, key, value, head_dim).reshape(window, window, high_dim)
        means.append(inside.sum(dim=0) / window**2)
    key, value = (torch.stack(means) @ weights["low_kv.weight"].T).split(low_dim, dim=1)
    query = picture.double().reshape(-1, dim) @ weights["low_q.weight"].T
    low = attended(query, key, value, head_dim) @ weights["low_proj.weight"].T + weights["low_proj.bias"]
    return torch.cat([high[:height, :width].reshape(-1, high_dim), low], dim=1)


def gated_by_loops(module, mixed):
    gate, transform = module.gate.detach().double(), module.transform.weight.detach().double()
    rows = []
    for token in mixed:
        cosine = token @ gate / (token.norm() * gate.norm())
        rows.append(max(0.0, min(1.0, cosine.item())) * token @ transform.T)
    return torch.stack(rows)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("window", "low_heads"), [(2, 2), (3, 3), (3, 1), (1, 3)])
def test_mixing_equals_loops_over_windows(model, grid, window, low_heads):
    config = configured(model, decoder_window_size=window, decoder_low_frequency_heads=low_heads)
    module = spread(SpectralMixing(config)).double()
    memory = patches(*grid).double()
    with torch.no_grad():
        actual = module(memory)
    expected = torch.stack([gated_by_loops(module, mixed_by_loops(module, picture, window, 8)) for picture in memory])
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-9)


def test_what_points_away_from_the_gate_is_zero_and_learns_nothing(model):
    module = spread(SpectralMixing(configured(model)))
    memory = patches(6, 6).requires_grad_()
    mixed = torch.stack([mixed_by_loops(module, picture.detach(), 3, 8) for picture in memory])
    away = F.cosine_similarity(mixed, module.gate.detach().double(), dim=-1) < 0
    assert 0.2 < away.float().mean() < 0.8
    gated = module(memory)
    assert (gated[away] == 0).all()
    assert (gated[~away].abs().amax(dim=-1) > 0).all()
    (gated[away] * torch.randn(gated[away].shape)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.abs().max() == 0, name
    assert memory.grad.abs().max() == 0


def test_logits_are_products_of_queries_and_mixed_patches(model):
    head = spread(SpectralDecodeHead(configured(model, num_decoder_layers=1)))
    image, memory, classes = names(2, seed=8), patches(3, 4), names()
    queries = head.query_proj(torch.cat([image[:, None] * classes, classes.expand(2, -1, -1)], dim=-1))
    expected = torch.einsum("bkd,bnd->bkn", queries, head.mask_scores.mixing(memory))
    torch.testing.assert_close(head(image, memory, classes).flatten(2), expected, atol=1e-5, rtol=1e-5)


def test_a_layer_is_one_unscaled_head_with_a_feed_forward_part(model):
    head = spread(SpectralDecodeHead(configured(model, num_decoder_layers=2))).double().eval()
    layer, queries, memory = head.layers[0], torch.randn(2, 3, 32).double(), patches(3, 4).double()
    mixed = layer.mixing(memory)
    weights = torch.einsum("bkd,bnd->bkn", queries, mixed).exp()
    seen = torch.einsum("bkn,bnd->bkd", weights / weights.sum(dim=-1, keepdim=True), mixed)
    expected = layer.norm1(queries + layer.out_proj(seen))
    expected = layer.norm2(expected + layer.fc2(layer.fc1(expected).relu()))
    # The softmax is taken in float32.
    torch.testing.assert_close(layer(queries, memory), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("source", ["fresh", "plain CLIP"])
def test_initial_values(model, tmp_path, source):
    config = configured(model)
    if source == "fresh":
        head = ZegClipForSemanticSegmentation(config).decode_head
    else:
        CLIPModel(config.clip_config).save_pretrained(tmp_path)
        head = ZegClipForSemanticSegmentation.from_pretrained(tmp_path, config=config).decode_head
    first = dict(head.layers[0].named_parameters())
    for layer in (head.layers[1], head.mask_scores):
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter, first[name]), name
            assert parameter.data_ptr() != first[name].data_ptr(), name
    assert torch.equal(first["mixing.transform.weight"], torch.eye(32))
    assert 0.6 < first["mixing.gate"].std() < 1.6
    for name in ("high_qkv", "low_q", "low_kv"):
        assert 0.9 * 32**-0.5 < first[f"mixing.{name}.weight"].abs().max() <= 32**-0.5
    common = F.normalize(first["mixing.low_proj.bias"], dim=0)
    torch.testing.assert_close(first["mixing.gate"][-len(common) :] @ common, torch.tensor(GATE_OPENING))


def test_no_head_starts_dead(model):
    """A gate that no patch passes never opens: all logits and all gradients are zero."""
    memory = F.normalize(names(1) + 0.6 * patches(6, 6), dim=-1)  # a CLIP's patches share a direction
    dead = []
    for seed in range(20):
        torch.manual_seed(seed)
        head = ZegClipForSemanticSegmentation(configured(model)).decode_head
        if not head(names(2, seed=8), memory, names()).any():
            dead.append(seed)
    assert not dead


@torch.no_grad()
def test_a_gate_left_to_chance_is_shut_for_good_in_about_half_of_all_draws():
    """Why the start is not the official one: at ViT-B/16's sizes, on patches that share a direction."""
    config = ZegClipConfig(decode_head_type="spectral")
    dim, shut = config.clip_config.projection_dim, 0
    for seed in range(40):
        torch.manual_seed(seed)
        mixing = SpectralMixing(config)
        torch.nn.init.normal_(mixing.gate)
        shared, own = torch.randn(dim), torch.randn(1, 32, 32, dim)
        shut += not mixing(F.normalize(0.5 * shared + own, dim=-1)).any()
    assert 0.3 <= shut / 40 <= 0.7
