"""SPT-SEG's spectral prompt: patches modulated by the class token, filtered in the frequency domain."""

import math

import torch
import torch.nn.functional as F
from transformers.utils import is_torchdynamo_exporting


def spectral_prompt(
    class_token: torch.Tensor, patches: torch.Tensor, weight: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """
    Compute what is added to the patches before a layer (paper Fig. 2; a global filter as in GFNet).

    Always in float32: half precision has no FFT on most devices.

    Args:
        class_token: `(batch, 1, width)`.
        patches: `(batch, rows * columns, width)`, row by row.
        weight: `(rows, columns // 2 + 1, width, 2)` real and imaginary part of the filter, for this very grid.
        grid: Rows and columns of patches.

    Returns:
        `(batch, rows * columns, width)` float32.
    """
    modulated = (patches.float() * class_token.float()).unflatten(1, grid)
    if is_torchdynamo_exporting():
        return filter_by_matrices(modulated, weight.float(), grid).flatten(1, 2)
    spectrum = torch.fft.rfft2(modulated, dim=(1, 2), norm="ortho")
    spectrum = spectrum * _as_complex(weight)
    return torch.fft.irfft2(spectrum, s=grid, dim=(1, 2), norm="ortho").flatten(1, 2)


def resize_filter(weight: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """
    Give a filter made for a square grid to another one; the official code knows its own grid only.

    The filter's response to each frequency, in cycles per patch, is kept, and interpolated by sines between the
    frequencies of its own grid. This is the same as letting its kernel, which says how far and how strongly patches
    act on each other, reach over zeros on a larger grid, and cutting it on a smaller one.

    Args:
        weight: `(side, side // 2 + 1, width, 2)` real and imaginary part.
        grid: Rows and columns of patches wanted.

    Returns:
        `(rows, columns // 2 + 1, width, 2)` float32; `weight` itself for its own grid.
    """
    side = len(weight)
    if is_torchdynamo_exporting():
        return resize_by_matrices(weight.float(), grid)
    if grid == (side, side):
        return weight
    kernel = torch.fft.irfft2(_as_complex(weight), s=(side, side), dim=(0, 1))
    kernel = torch.fft.fftshift(kernel, dim=(0, 1))  # its centre lies at side // 2
    before = [size // 2 - side // 2 for size in grid]
    after = [size - side - start for size, start in zip(grid, before)]
    kernel = F.pad(kernel, (0, 0, before[1], after[1], before[0], after[0]))
    kernel = torch.fft.ifftshift(kernel, dim=(0, 1))
    return torch.view_as_real(torch.fft.rfft2(kernel, dim=(0, 1)))


def _as_complex(weight: torch.Tensor) -> torch.Tensor:
    # `view_as_complex` would depend on where the tensor lies in memory.
    return torch.complex(*weight.float().unbind(-1))


# Other runtimes know no FFT, or none of a size that is not fixed. So where a model is exported, the same transforms
# are products with matrices of cosines and sines, which the graph makes for its grid.


def filter_by_matrices(maps: torch.Tensor, weight: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """`(batch, rows, columns, width)` float32, filtered as by FFT; `weight` as in `spectral_prompt`, `grid` for it."""
    rows, columns = (torch.arange(side, device=maps.device) for side in grid)
    real, imaginary = _half_spectrum(maps, rows, columns, grid)
    weight_real, weight_imaginary = weight.unbind(-1)
    product = real * weight_real - imaginary * weight_imaginary, real * weight_imaginary + imaginary * weight_real
    return _map_of(product, rows, columns, grid)


def resize_by_matrices(weight: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """
    Resize as `resize_filter`, to any grid.

    For the filter's own grid too, where what `irfft2` never reads of it (it acts on nothing) becomes zero.
    """
    side = len(weight)
    places = torch.arange(side, device=weight.device) - side // 2
    kernel = _map_of(weight.unbind(-1), places, places, (side, side))
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


__all__ = ["filter_by_matrices", "resize_by_matrices", "resize_filter", "spectral_prompt"]
