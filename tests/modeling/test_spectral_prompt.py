"""The spectral prompt against sums written out without any FFT, and the resizing of its filter."""

import itertools
import math

import pytest
import torch

from zegclip.modeling.spectral_prompt import resize_filter, spectral_prompt

GRIDS = [(4, 4), (5, 5), (3, 4), (4, 7), (6, 2), (1, 5), (1, 1)]


def random_filter(rows, columns, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns // 2 + 1, width, 2, generator=generator)


def tokens(grid, batch=2, width=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, 1 + grid[0] * grid[1], width, generator=generator)
    return states[:, :1], states[:, 1:]


def kernel_of(weight, grid):
    """How strongly patches act on each other: `(rows, columns, width)`, a plain sum of waves in float64."""
    rows, columns = grid
    real, imaginary = weight.double().unbind(-1)
    y = torch.arange(rows).double().view(-1, 1, 1)
    x = torch.arange(columns).double().view(1, -1, 1)
    kernel = torch.zeros(rows, columns, weight.shape[2], dtype=torch.float64)
    for row, column in itertools.product(range(rows), range(columns // 2 + 1)):
        phase = 2 * math.pi * (row * y / rows + column * x / columns)
        # The half of the spectrum that is not stored mirrors all but the first and the middle column.
        count = 1 if column in (0, columns / 2) else 2
        kernel = kernel + count * (real[row, column] * phase.cos() - imaginary[row, column] * phase.sin())
    return kernel / (rows * columns)


def convolved(class_token, patches, kernel):
    """The circular convolution of the modulated map with the kernel, patch by patch, in float64."""
    rows, columns = kernel.shape[:2]
    modulated = (class_token.double() * patches.double()).unflatten(1, (rows, columns))
    result = torch.zeros_like(modulated)
    for y, x in itertools.product(range(rows), range(columns)):
        result = result + kernel[y, x] * torch.roll(modulated, (y, x), dims=(1, 2))
    return result.flatten(1, 2)


def by_offset(kernel):
    """The kernel's vectors by how many rows and columns their patch lies away."""
    rows, columns = kernel.shape[:2]
    return {
        (y, x): kernel[y, x]  # a negative index counts from the end: the grid is a ring
        for y, x in itertools.product(range(-(rows // 2), (rows + 1) // 2), range(-(columns // 2), (columns + 1) // 2))
    }


@pytest.mark.parametrize("grid", GRIDS)
def test_is_a_circular_convolution(grid):
    weight, (class_token, patches) = random_filter(*grid), tokens(grid)
    actual = spectral_prompt(class_token, patches, weight, grid)
    assert actual.dtype == torch.float32
    expected = convolved(class_token, patches, kernel_of(weight, grid))
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(4, 4), (5, 3)])
def test_gradients_are_those_of_the_convolution(grid):
    inputs = [*tokens(grid), random_filter(*grid)]
    towards = torch.randn(2, grid[0] * grid[1], 3, generator=torch.Generator().manual_seed(2))
    gradients = []
    for compute in (
        lambda token, patches, weight: spectral_prompt(token, patches, weight, grid),
        lambda token, patches, weight: convolved(token, patches, kernel_of(weight, grid)),
    ):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        (compute(*leaves) * towards).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for name, actual, expected in zip(("class token", "patches", "filter"), *gradients, strict=True):
        assert expected.abs().max() > 0.1, name
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", [(4, 4), (5, 6)])
def test_filters_in_float32(dtype, grid):
    """Inputs in half precision give the values of the same inputs in float32, also under autocast."""
    weight, *inputs = (tensor.to(dtype) for tensor in (random_filter(4, 4), *tokens(grid)))
    expected = spectral_prompt(*(tensor.float() for tensor in inputs), resize_filter(weight.float(), grid), grid)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            actual = spectral_prompt(*inputs, resize_filter(weight, grid), grid)
        assert actual.dtype == torch.float32
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("side", [1, 4, 5])
def test_its_own_grid_leaves_a_filter_alone(side):
    weight = random_filter(side, side)
    assert resize_filter(weight, (side, side)) is weight


@pytest.mark.parametrize("side", [1, 2, 4, 5])
@pytest.mark.parametrize("grid", [(6, 6), (7, 7), (8, 4), (3, 7), (5, 2), (3, 3), (1, 1), (1, 6), (4, 5)])
def test_a_resized_kernel_is_surrounded_by_zeros_or_cut(side, grid):
    weight = random_filter(side, side)
    resized = resize_filter(weight, grid)
    assert resized.shape == (grid[0], grid[1] // 2 + 1, 3, 2)
    old, new = by_offset(kernel_of(weight, (side, side))), by_offset(kernel_of(resized, grid))
    assert len(new) == grid[0] * grid[1]
    for offset, vector in new.items():
        expected = old.get(offset, torch.zeros(3, dtype=torch.float64))
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=0, msg=f"{offset}")


@pytest.mark.parametrize("grid", [(6, 5), (3, 2)])
def test_a_resized_filter_learns(grid):
    weight = random_filter(4, 4).requires_grad_()
    spectral_prompt(*tokens(grid), resize_filter(weight, grid), grid).square().sum().backward()
    assert weight.grad.abs().amax(dim=(2, 3)).min() > 0
