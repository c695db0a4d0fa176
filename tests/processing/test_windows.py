from types import SimpleNamespace

import pytest
import torch

from zegclip.processing.input_error import InputError
from zegclip.processing.merging import merge_scores
from zegclip.processing.windows import BatchSize, predict_pictures, predict_windows, window_boxes

BOTH = pytest.mark.parametrize("score_function", ["sigmoid", "softmax"])


@pytest.mark.parametrize("stride", [1, 3, 7, 10])
@pytest.mark.parametrize("width", [1, 9, 10, 11, 17, 20, 33])
def test_windows_cover_every_pixel_without_leaving_the_picture(width, stride):
    height, window_size = 23, 10
    boxes = window_boxes(height, width, window_size, stride)
    covered = torch.zeros(height, width)
    for top, left, bottom, right in boxes:
        assert 0 <= top < bottom <= height
        assert 0 <= left < right <= width
        assert (bottom - top, right - left) == (min(window_size, height), min(window_size, width))
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 1
    assert len(set(boxes)) == len(boxes)


def test_official_geometry():
    # 512 x 683, the size of a 375 x 500 picture: two windows, the second shifted back to the border.
    assert window_boxes(512, 683, 512, 426) == [(0, 0, 512, 512), (0, 171, 512, 683)]
    # 512 + 426 pixels are covered by exactly two windows, one more pixel needs a third.
    assert len(window_boxes(512, 938, 512, 426)) == 2
    assert [left for _, left, _, _ in window_boxes(512, 939, 512, 426)] == [0, 426, 427]


def test_no_window_size_is_one_window_and_no_stride_is_no_overlap():
    assert window_boxes(30, 50, None, 426) == [(0, 0, 30, 50)]
    assert window_boxes(20, 10, 10, None) == [(0, 0, 10, 10), (10, 0, 20, 10)]


@pytest.mark.parametrize(("window_size", "stride"), [(10, 11), (10, 0), (0, 0), (10, -1), (-5, None)])
def test_geometry_that_leaves_gaps_is_refused(window_size, stride):
    with pytest.raises(InputError, match="window_stride"):
        window_boxes(30, 30, window_size, stride)


@BOTH
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_prediction_does_not_depend_on_the_batch_size(batch_size, score_function):
    def model(pixel_values, class_embeds):
        assert len(pixel_values) <= batch_size
        logits = torch.einsum("bchw,nc->bnhw", pixel_values, class_embeds)
        return SimpleNamespace(logits=logits, score_function=score_function)

    generator = torch.Generator().manual_seed(0)
    picture, class_embeds = torch.randn(1, 3, 12, 17, generator=generator), torch.randn(4, 3, generator=generator)
    windows = predict_windows(model, picture, class_embeds, window_size=10, stride=7, batch_size=batch_size)
    assert windows.logits.shape == (4, 4, 10, 10)
    # The model looks at single pixels, so cutting and merging must be the identity.
    whole = predict_windows(model, picture, class_embeds, window_size=None, stride=None)
    torch.testing.assert_close(merge_scores(windows), merge_scores(whole), rtol=0, atol=1e-6)
    expected = whole.logits[0].sigmoid() if score_function == "sigmoid" else whole.logits[0].softmax(dim=0)
    torch.testing.assert_close(merge_scores(whole), expected, rtol=0, atol=1e-6)


def test_windows_of_one_size_share_forward_passes_across_pictures():
    generator = torch.Generator().manual_seed(0)
    sizes = [(24, 31), (10, 10), (9, 31), (31, 24), (24, 31), (9, 12)]
    pictures = [torch.randn(1, 3, *size, generator=generator) for size in sizes]
    class_embeds = torch.randn(4, 3, generator=generator)
    calls = []

    def model(pixel_values, class_embeds):
        calls.append(tuple(pixel_values.shape[2:]))
        return SimpleNamespace(logits=torch.einsum("bchw,nc->bnhw", pixel_values, class_embeds))

    found = predict_pictures(model, pictures, class_embeds, 10, 7, batch_size=50)
    assert calls == [(10, 10), (9, 10)]
    for windows, picture in zip(found, pictures, strict=True):
        alone = predict_windows(model, picture, class_embeds, 10, 7)
        assert windows.boxes == alone.boxes
        assert (windows.height, windows.width) == picture.shape[2:]
        torch.testing.assert_close(windows.logits, alone.logits, rtol=0, atol=1e-6)
    assert predict_pictures(model, [], class_embeds, 10, 7) == []


class SmallDevice:
    """A model of single pixels that runs out of memory with more than `windows` windows."""

    def __init__(self, windows, error):
        self.windows, self.error, self.calls = windows, error, []

    def __call__(self, pixel_values, class_embeds):
        self.calls.append(len(pixel_values))
        if len(pixel_values) > self.windows:
            raise self.error
        return SimpleNamespace(logits=torch.einsum("bchw,nc->bnhw", pixel_values, class_embeds))


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 400 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to"),
    RuntimeError("could not create a primitive"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_fewer_windows_at_once_where_memory_runs_out(error):
    generator = torch.Generator().manual_seed(0)
    picture, class_embeds = torch.randn(1, 3, 24, 31, generator=generator), torch.randn(4, 3, generator=generator)
    expected = predict_windows(SmallDevice(100, error), picture, class_embeds, 10, 7)
    device, batch = SmallDevice(2, error), BatchSize(8)
    with pytest.warns(UserWarning, match="not enough memory .* 10 x 10") as warned:
        found = predict_windows(device, picture, class_embeds, 10, 7, batch)
    assert len(warned) == 2
    assert device.calls == [8, 4, 2, 2, 2, 2, 2, 2]
    assert found.boxes == expected.boxes
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-6)
    # The reduced number is kept for the next picture, even if that has fewer windows.
    assert batch == BatchSize(2)
    predict_windows(device, picture[..., :10, :10], class_embeds, 10, 7, batch)
    predict_windows(device, picture[..., :17], class_embeds, 10, 7, batch)
    assert device.calls[8:] == [1, 2, 2, 2]


def test_a_single_window_that_is_too_large_is_an_error():
    with pytest.raises(MemoryError, match=r"10 x 9 .* 17 x 9"):
        predict_windows(SmallDevice(0, OUT_OF_MEMORY[0]), torch.zeros(1, 3, 17, 9), torch.zeros(4, 3), 10, 7, 1)


def test_other_errors_of_the_model_are_not_caught():
    device = SmallDevice(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        predict_windows(device, torch.zeros(1, 3, 10, 10), torch.zeros(4, 3), 10, 7)
    assert device.calls == [1]


def test_bad_arguments_of_prediction():
    with pytest.raises(ValueError, match="one picture"):
        predict_windows(lambda **_: None, torch.zeros(2, 3, 8, 8), torch.zeros(1, 3), 8, 8)
    with pytest.raises(InputError, match="batch_size"):
        predict_windows(lambda **_: None, torch.zeros(1, 3, 8, 8), torch.zeros(1, 3), 8, 8, batch_size=0)
