"""
Functions of the model in a form that a graph for pictures of any size can hold.

A graph has no branches on sizes, and other runtimes lack some operators: FFTs of a size that is not fixed, or resizing
that rounds as PyTorch's. [`functions_for_any_size`] puts these functions in the place of the model's own.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from zegclip.modeling import clip_vision, head_consensus, head_spectral, prompt_layers, spectral_prompt
from zegclip.modeling.head_consensus import most_similar


@contextlib.contextmanager
def functions_for_any_size() -> Iterator[None]:
    """Replace functions of `modeling` while a graph is traced; not safe beside other threads that run a model."""
    replacements = (
        (clip_vision, "resize", resize_by_indices),
        (head_consensus, "most_similar", most_similar_of_padded),
        (head_spectral, "crop", crop_by_indices),
        (prompt_layers, "resize_filter", resize_by_matrices),
        (spectral_prompt, "filter_maps", filter_by_matrices),
    )
    originals = [(module, name, getattr(module, name)) for module, name, _ in replacements]
    for module, name, function in replacements:
        setattr(module, name, function)
    try:
        yield
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


def resize_by_indices(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """As `clip_vision.resize`, rounding included, with plain operators."""
    return resize_side(resize_side(maps, -2, size[0]), -1, size[1])


def resize_side(maps: torch.Tensor, dim: int, length: int) -> torch.Tensor:
    """
    Resize rows (`dim=-2`) or columns (`dim=-1`) of `(batch, channels, height, width)` bilinearly.

    Where a pixel is taken from is rounded to float32, which moves it by up to 1e-4 of a pixel on long sides. Another
    runtime's own resizing rounds otherwise, and that is enough to see in the logits.
    """
    last = maps.shape[dim] - 1
    scale = (torch.scalar_tensor(maps.shape[dim]) / torch.scalar_tensor(length)).to(maps.device)
    # Product and sum are rounded once, as PyTorch's fused ones.
    middles = torch.arange(length, device=maps.device).double() + 0.5
    places = (middles * scale.double() - 0.5).float().clamp(min=0)
    lower = places.long().clamp(max=last)
    weight = (places - lower).to(maps)
    if dim == -2:
        weight = weight[:, None]
    upper = (lower + 1).clamp(max=last)
    return maps.index_select(dim, lower) * (1 - weight) + maps.index_select(dim, upper) * weight


def most_similar_of_padded(similarity: torch.Tensor, top_k: int) -> torch.Tensor:
    """As `head_consensus.most_similar`: windows without patches make up the number where there are fewer."""
    return most_similar(F.pad(similarity, (0, top_k), value=-torch.inf), top_k)


def crop_by_indices(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """As `head_spectral.crop`: with a slice, the graph would depend on whether there is something to cut."""
    maps = maps.index_select(1, torch.arange(height, device=maps.device))
    return maps.index_select(2, torch.arange(width, device=maps.device))


# SPT-SEG's transforms as products with matrices of cosines and sines, which the graph makes for its grid.


def filter_by_matrices(maps: torch.Tensor, weight: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """`(batch, rows, columns, width)` float32, filtered as by FFT; `weight` as in `spectral_prompt`, `grid` for it."""
    rows, columns = (torch.arange(side, device=maps.device) for side in grid)
    real, imaginary = _half_spectrum(maps, rows, columns, grid)
    weight_real, weight_imaginary = weight.float().unbind(-1)
    product = real * weight_real - imaginary * weight_imaginary, real * weight_imaginary + imaginary * weight_real
    return _map_of(product, rows, columns, grid)


def resize_by_matrices(weight: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """
    Resize as `resize_filter`, to any grid.

    For the filter's own grid too, where what `irfft2` never reads of it (it acts on nothing) becomes zero.
    """
    side = len(weight)
    places = torch.arange(side, device=weight.device) - side // 2
    kernel = _map_of(weight.float().unbind(-1), places, places, (side, side))
    reached = [((places >= -(size // 2)) & (places < size - size // 2)).float() for size in grid]
    kernel = kernel * reached[0][:, None, None] * reached[1][:, None]
    return torch.stack(_half_spectrum(kernel, places, places, grid), dim=-1)


def _half_spectrum(
    maps: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, grid: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rfft2` of maps `(..., rows, columns, width)` whose values stand at the given places of a grid."""
    cosine, sine = _waves(torch.arange(grid[1] // 2 + 1, device=maps.device), columns, grid[1])
    real, imaginary = _along_columns(cosine, maps), -_along_columns(sine, maps)
    cosine, sine = _waves(torch.arange(grid[0], device=maps.device), rows, grid[0])
    return (
        _along_rows(cosine, real) + _along_rows(sine, imaginary),
        _along_rows(cosine, imaginary) - _along_rows(sine, real),
    )


def _map_of(
    spectrum: tuple[torch.Tensor, ...], rows: torch.Tensor, columns: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """`irfft2` of a half spectrum of a grid, `(..., rows, columns // 2 + 1, width)`, at the given places alone."""
    real, imaginary = spectrum
    cosine, sine = _waves(rows, torch.arange(grid[0], device=real.device), grid[0])
    real, imaginary = (
        _along_rows(cosine, real) - _along_rows(sine, imaginary),
        _along_rows(cosine, imaginary) + _along_rows(sine, real),
    )
    frequencies = torch.arange(grid[1] // 2 + 1, device=real.device)
    cosine, sine = _waves(columns, frequencies, grid[1])
    # All but the first and the middle frequency stand for their mirror image too.
    stands_for = torch.where((frequencies == 0) | (2 * frequencies == grid[1]), 1.0, 2.0) / (grid[0] * grid[1])
    return _along_columns(cosine * stands_for, real) - _along_columns(sine * stands_for, imaginary)


def _waves(these: torch.Tensor, those: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of `2 pi these those / side`, `(these, those)`, for whole numbers."""
    # Of small angles, which float32 knows better. As a tensor, for exporters know no remainder by a size.
    period = torch.scalar_tensor(side, dtype=these.dtype, device=these.device)
    angles = (these[:, None] * those % period).float() * (2 * math.pi) / side
    return angles.cos(), angles.sin()


def _along_rows(matrix: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    return (matrix @ maps.flatten(-2)).unflatten(-1, maps.shape[-2:])


def _along_columns(matrix: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    return matrix @ maps
