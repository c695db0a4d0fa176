import dataclasses
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from zegclip.processing import windows as windows_module
from zegclip.processing.input_error import InputError
from zegclip.processing.refinement import refine, refined_tiles
from zegclip.processing.windows import (
    SCORES_PER_CHUNK,
    BatchSize,
    WindowLogits,
    best_of_names,
    class_chunks,
    merge_masks,
    merge_scores,
    predict_windows,
    resize_maps,
    running_max,
    window_boxes,
)

BOTH = pytest.mark.parametrize("score_function", ["sigmoid", "softmax"])


def random_windows(height, width, window_size, stride, names=11, seed=0, score_function="sigmoid"):
    boxes = window_boxes(height, width, window_size, stride)
    logits = 3 * torch.randn(len(boxes), names, 4, 5, generator=torch.Generator().manual_seed(seed))
    return WindowLogits(logits, boxes, height, width, score_function)


def pick(windows, names):
    """The same windows with some of the names, in any order."""
    return dataclasses.replace(windows, logits=windows.logits[:, names])


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


def test_merging_equals_a_slow_reference_per_pixel():
    windows = random_windows(13, 17, 10, 4, names=3)
    scores = merge_scores(windows, seen_ids=[0, 2], seen_offset=0.1)
    upsampled = nn.functional.interpolate(windows.logits, (10, 10), mode="bilinear").sigmoid()
    for y in range(13):
        for x in range(17):
            here = [
                upsampled[index, :, y - top, x - left]
                for index, (top, left, bottom, right) in enumerate(windows.boxes)
                if top <= y < bottom and left <= x < right
            ]
            expected = torch.stack(here).mean(dim=0) - torch.tensor([0.1, 0.0, 0.1])
            torch.testing.assert_close(scores[:, y, x], expected, rtol=0, atol=1e-6)


def test_constant_logits_give_constant_scores():
    boxes = window_boxes(13, 17, 10, 4)
    logits = torch.tensor([-2.0, 0.0, 3.0]).view(1, 3, 1, 1).expand(len(boxes), 3, 4, 4)
    scores = merge_scores(WindowLogits(logits, boxes, 13, 17), target_size=(40, 21))
    assert scores.shape == (3, 40, 21)
    torch.testing.assert_close(scores, logits[0, :, :1, :1].sigmoid().expand(3, 40, 21), rtol=0, atol=1e-6)


@pytest.mark.parametrize("target_size", [None, (31, 9)])
def test_a_softmax_is_that_of_averaged_and_resized_logits(target_size):
    windows = random_windows(13, 17, 10, 4, names=3, score_function="softmax")
    total, count = torch.zeros(3, 13, 17), torch.zeros(13, 17)
    for logits, (top, left, bottom, right) in zip(windows.logits, windows.boxes):
        total[:, top:bottom, left:right] += resize_maps(logits, bottom - top, right - left)
        count[top:bottom, left:right] += 1
    expected = resize_maps(total / count, *(target_size or (13, 17))).softmax(dim=0)
    torch.testing.assert_close(merge_scores(windows, target_size), expected, rtol=0, atol=1e-6)
    less = merge_scores(windows, target_size, seen_ids=[2], seen_offset=0.1)
    torch.testing.assert_close(less[2], expected[2] - 0.1, rtol=0, atol=1e-6)
    torch.testing.assert_close(less[:2], expected[:2], rtol=0, atol=1e-6)


@BOTH
@pytest.mark.parametrize("per_chunk", [1, 25 * 19 * 3])
@pytest.mark.parametrize("names", [1, 11])
@pytest.mark.parametrize("target_size", [None, (31, 9)])
@pytest.mark.parametrize("seen_offset", [0.0, 0.1])
@pytest.mark.parametrize("blended", [None, "sigmoid", "softmax"])
def test_masks_are_the_arg_max_of_the_scores(
    names, target_size, seen_offset, blended, per_chunk, score_function, monkeypatch
):
    windows = random_windows(25, 19, 10, 6, names=names, score_function=score_function)
    options = {"seen_ids": range(0, names, 2), "seen_offset": seen_offset}
    if blended is not None:
        # A blend may come from other windows.
        options["blend"] = random_windows(25, 19, 12, 5, names=names, seed=1, score_function=blended), 0.3
    scores = merge_scores(windows, target_size, **options)
    monkeypatch.setattr(windows_module, "SCORES_PER_CHUNK", per_chunk)
    ids, best = merge_masks(windows, target_size, **options)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, scores.argmax(dim=0))
    torch.testing.assert_close(best, scores.amax(dim=0), rtol=0, atol=3e-6)
    torch.testing.assert_close(merge_scores(windows, target_size, **options), scores, rtol=0, atol=3e-6)


@BOTH
def test_a_blend_lies_between_its_parts(score_function):
    windows = random_windows(25, 19, 10, 6, score_function=score_function)
    others = random_windows(25, 19, 12, 5, seed=1, score_function="softmax")
    own, their = merge_scores(windows), merge_scores(others)
    for weight in (0.0, 0.25, 1.0):
        blend = merge_scores(windows, blend=(others, weight))
        torch.testing.assert_close(blend, (1 - weight) * own + weight * their, rtol=0, atol=1e-6)
    assert torch.equal(merge_scores(windows, blend=(others, 0.0)), own)
    assert torch.equal(merge_scores(windows, blend=(others, 1.0)), their)
    torch.testing.assert_close(merge_scores(windows, blend=(windows, 0.7)), own, rtol=0, atol=1e-6)
    # The offset is that of the trained model's scores.
    less = merge_scores(windows, seen_ids=[3], seen_offset=0.1, blend=(others, 0.25))
    torch.testing.assert_close(less[3], merge_scores(windows, blend=(others, 0.25))[3] - 0.075, rtol=0, atol=1e-6)


@BOTH
@pytest.mark.parametrize("target_size", [None, (41, 33)])
@pytest.mark.parametrize("is_blend", [False, True])
@pytest.mark.parametrize("tile_side", [1024, 17])
def test_refined_masks_are_those_of_refined_maps(score_function, target_size, is_blend, tile_side, monkeypatch):
    windows = random_windows(25, 19, 10, 6, names=5, score_function=score_function)
    picture = torch.randn(3, 25, 19, generator=torch.Generator().manual_seed(2))
    options = {"blend": (random_windows(25, 19, 12, 5, names=5, seed=1), 0.3)} if is_blend else {}
    size = target_size or (25, 19)
    maps = merge_scores(windows, target_size, **options)
    as_logits = score_function == "softmax" and not is_blend
    if as_logits:
        maps = torch.cat(list(windows_module._logit_chunks(windows, target_size)))
    refined = refine(maps, resize_maps(picture, *size))
    expected = refined.softmax(dim=0) if as_logits else refined
    monkeypatch.setattr(windows_module, "refined_tiles", partial(refined_tiles, tile_side=tile_side))
    ids, best = merge_masks(windows, target_size, picture=picture, **options)
    torch.testing.assert_close(best, expected.amax(dim=0), rtol=0, atol=1e-5)
    first, second = expected.topk(2, dim=0).values
    assert torch.equal(ids[first - second > 1e-5], expected.argmax(dim=0)[first - second > 1e-5])
    assert not torch.equal(ids, merge_masks(windows, target_size, **options)[0])


@BOTH
@pytest.mark.parametrize("is_refined", [False, True])
def test_permuted_names_permute_scores_and_masks(score_function, is_refined):
    windows = random_windows(25, 19, 10, 6, score_function=score_function)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3))
    picture = torch.randn(3, 25, 19, generator=torch.Generator().manual_seed(2)) if is_refined else None
    torch.testing.assert_close(merge_scores(pick(windows, order)), merge_scores(windows)[order], rtol=0, atol=1e-6)
    ids, best = merge_masks(windows, picture=picture)
    permuted_ids, permuted_best = merge_masks(pick(windows, order), picture=picture)
    assert torch.equal(order[permuted_ids], ids)
    torch.testing.assert_close(permuted_best, best, rtol=0, atol=1e-6)


@BOTH
def test_classes_of_several_names(score_function):
    """Other orders of synonyms change nothing, and a name that a class has twice changes no mask."""
    windows = random_windows(25, 19, 10, 6, names=5, score_function=score_function)
    class_of_name = torch.tensor([0, 0, 1, -1, 2])
    scores = best_of_names(merge_scores(windows), class_of_name)
    order = torch.tensor([1, 0, 2, 4, 3])
    turned = best_of_names(merge_scores(pick(windows, order)), class_of_name[order])
    torch.testing.assert_close(turned, scores, rtol=0, atol=1e-6)
    ids, _ = merge_masks(windows)
    turned_ids, _ = merge_masks(pick(windows, order))
    assert torch.equal(class_of_name[order][turned_ids], class_of_name[ids])
    assert len(class_of_name[ids].unique()) == 4
    # The score of a class is that of its best name, so the two ways to a class map agree.
    without_background = class_of_name[ids] >= 0
    assert torch.equal(scores.argmax(dim=0)[without_background], class_of_name[ids][without_background])

    twice, class_of_twice = torch.tensor([0, 0, 1, 2, 3, 4]), torch.tensor([0, 0, 0, 1, -1, 2])
    twice_ids, _ = merge_masks(pick(windows, twice))
    assert torch.equal(class_of_twice[twice_ids], class_of_name[ids])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_merged_in_float32(dtype, score_function):
    windows = random_windows(25, 19, 10, 6, score_function=score_function)
    half = dataclasses.replace(windows, logits=windows.logits.to(dtype))
    rounded = dataclasses.replace(windows, logits=half.logits.float())
    assert merge_scores(half).dtype == torch.float32
    assert torch.equal(merge_scores(half), merge_scores(rounded))


@pytest.fixture(params=["_fold_by_class", "_fold_at_once"])
def either_fold(request, monkeypatch):
    """What CPUs and what accelerators compute, both on this CPU."""
    monkeypatch.setattr(windows_module, "_fold_by_class", getattr(windows_module, request.param))


def test_ties_go_to_the_first_class_also_across_chunks(either_fold):
    chunk = torch.zeros(3, 2, 2)
    ids, best = running_max([chunk, chunk, chunk + 1, chunk + 1])
    assert (ids == 6).all()
    assert (best == 1).all()


def test_accelerators_need_few_operators_for_many_classes(monkeypatch):
    assert len(list(class_chunks(171, 512, 512, torch.device("cuda")))) == 3
    windows = random_windows(512, 512, 512, 512, names=171)
    monkeypatch.setattr(windows_module, "_fold_by_class", windows_module._fold_at_once)
    monkeypatch.setattr(windows_module, "SCORES_PER_CHUNK", windows_module.SCORES_PER_CHUNK_ELSEWHERE)
    with torch.profiler.profile() as profile:
        merge_masks(windows)
    operators = [event for event in profile.events() if event.cpu_parent is None]
    assert len(operators) <= 100


@pytest.mark.parametrize("shape", [(7, 400, 401), (3, 4, 5)])
def test_the_maximum_over_more_pixels_than_one_step_does_not_change_its_chunks(shape, either_fold):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    given = scores.detach().clone()
    ids, best = running_max(scores.split(3))
    assert torch.equal(scores, given)
    assert torch.equal(ids, given.argmax(dim=0))
    assert torch.equal(best, given.amax(dim=0))


def test_chunks_contain_all_classes_in_order():
    for names, height, width in [(5, 1, 1), (5, 600, 1000), (3, 5000, 5000), (4001, 32, 32)]:
        chunks = list(class_chunks(names, height, width, torch.device("cpu")))
        assert [index for chunk in chunks for index in range(names)[chunk]] == list(range(names))
        largest = max(chunk.stop - chunk.start for chunk in chunks)
        assert largest == 1 or largest * height * width <= SCORES_PER_CHUNK


def test_chunks_fit_the_picture_that_is_cut_up_even_if_less_of_it_is_asked_for(monkeypatch):
    windows = random_windows(200, 300, 100, 100)
    monkeypatch.setattr(windows_module, "SCORES_PER_CHUNK", 200 * 300 * 2)
    sizes = [len(chunk) for chunk in windows_module._sigmoid_chunks(windows, (4, 5))]
    assert sizes == [2, 2, 2, 2, 2, 1]
    assert merge_masks(windows, (4, 5))[0].shape == (4, 5)
