"""SPT-SEG's spectral prompt: patches modulated by the class token, filtered in the frequency domain."""

import torch
import torch.nn.functional as F


def spectral_prompt(
    class_token: torch.Tensor, patches: torch.Tensor, weight: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """
    Compute what is added to the patches before a layer (paper Fig. 2; a global filter as in GFNet).

    Always in float32: half precision has no FFT on most devices.

    Args:
        class_token: `(batch, 1, width)`.
        patches: `(batch, rows * columns, width)`, row by row.
        weight: `(rows, columns // 2 + 1, width, 2)` real and imaginary part of the filter, for this grid.
        grid: Rows and columns of patches.

    Returns:
        `(batch, rows * columns, width)` float32.
    """
    modulated = (patches.float() * class_token.float()).unflatten(1, grid)
    return filter_maps(modulated, weight, grid).flatten(1, 2)


def filter_maps(maps: torch.Tensor, weight: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Filter `(batch, rows, columns, width)` float32; `weight` and `grid` as in [`spectral_prompt`]."""
    spectrum = torch.fft.rfft2(maps, dim=(1, 2), norm="ortho")
    return torch.fft.irfft2(spectrum * _as_complex(weight), s=grid, dim=(1, 2), norm="ortho")


def resize_filter(weight: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """
    Resize a filter made for a square grid to another grid; the official code has one fixed grid.

    The frequency response, in cycles per patch, is kept: between the frequencies of its own grid it is interpolated
    trigonometrically. This equals zero-padding the spatial kernel for a larger grid, and cropping it for a smaller.

    Args:
        weight: `(side, side // 2 + 1, width, 2)` real and imaginary part.
        grid: Rows and columns of patches of the result.

    Returns:
        `(rows, columns // 2 + 1, width, 2)` float32; `weight` itself for its own grid.
    """
    side = len(weight)
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


__all__ = ["filter_maps", "resize_filter", "spectral_prompt"]
