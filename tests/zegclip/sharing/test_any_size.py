"""The functions that replace the model's own in a graph give what those give."""

import contextlib

import pytest
import torch

from zegclip.modeling import clip_vision, head_consensus, head_spectral, prompt_layers, spectral_prompt
from zegclip.modeling.clip_vision import resize
from zegclip.modeling.head_spectral import crop
from zegclip.modeling.spectral_prompt import filter_maps, resize_filter
from zegclip.sharing.any_size import (
    crop_by_indices,
    filter_by_matrices,
    functions_for_any_size,
    resize_by_indices,
    resize_by_matrices,
)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("side", "target"), [(680, 688), (130, 132), (1, 16), (1023, 1024), (96, 96)])
def test_resize(side, target):
    maps = random(2, 3, 33, side)
    torch.testing.assert_close(resize_by_indices(maps, (48, target)), resize(maps, (48, target)), atol=2e-6, rtol=0)


@pytest.mark.parametrize("side", [4, 5])
@pytest.mark.parametrize("grid", [(4, 4), (5, 5), (3, 4), (4, 7), (6, 2), (1, 5), (1, 1), (32, 43)])
def test_matrices_do_what_transforms_do(side, grid):
    weight, maps = random(side, side // 2 + 1, 3, 2), random(2, *grid, 3)
    expected = filter_maps(maps, resize_filter(weight, grid), grid)
    actual = filter_by_matrices(maps, resize_by_matrices(weight, grid), grid)
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)


def test_crop():
    maps = random(2, 6, 4, 3)
    assert torch.equal(crop_by_indices(maps, 5, 4), crop(maps, 5, 4))


def test_the_models_own_functions_come_back():
    modules = (clip_vision, head_consensus, head_spectral, prompt_layers, spectral_prompt)
    before = [dict(vars(module)) for module in modules]
    with contextlib.suppress(ZeroDivisionError), functions_for_any_size():
        assert all(vars(module) != names for module, names in zip(modules, before, strict=True))
        raise ZeroDivisionError
    assert [vars(module) for module in modules] == before
