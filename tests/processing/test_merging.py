import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from zegclip.processing import merging
from zegclip.processing.merging import (
    SCORES_PER_CHUNK,
    best_of_names,
    class_chunks,
    merge_masks,
    merge_scores,
    resize_maps,
    running_max,
)
from zegclip.processing.refinement import refine, refined_tiles
from zegclip.processing.windows import WindowLogits, window_boxes

BOTH = pytest.mark.parametrize("score_function", ["sigmoid", "softmax"])


def random_windows(height, width, window_size, stride, names=11, seed=0, score_function="sigmoid"):
    boxes = window_boxes(height, width, window_size, stride)
    logits = 3 * torch.randn(len(boxes), names, 4, 5, generator=torch.Generator().manual_seed(seed))
    return WindowLogits(logits, boxes, height, width, score_function)


def pick(windows, names):
    """The same windows with some of the names, in any order."""
    return dataclasses.replace(windows, logits=windows.logits[:, names])


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
    monkeypatch.setattr(merging, "SCORES_PER_CHUNK", per_chunk)
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
        maps = torch.cat(list(merging._logit_chunks(windows, target_size)))
    refined = refine(maps, resize_maps(picture, *size))
    expected = refined.softmax(dim=0) if as_logits else refined
    monkeypatch.setattr(merging, "refined_tiles", partial(refined_tiles, tile_side=tile_side))
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
    monkeypatch.setattr(merging, "_fold_by_class", getattr(merging, request.param))


def test_ties_go_to_the_first_class_also_across_chunks(either_fold):
    chunk = torch.zeros(3, 2, 2)
    ids, best = running_max([chunk, chunk, chunk + 1, chunk + 1])
    assert (ids == 6).all()
    assert (best == 1).all()


def test_accelerators_need_few_operators_for_many_classes(monkeypatch):
    assert len(list(class_chunks(171, 512, 512, torch.device("cuda")))) == 3
    windows = random_windows(512, 512, 512, 512, names=171)
    monkeypatch.setattr(merging, "_fold_by_class", merging._fold_at_once)
    monkeypatch.setattr(merging, "SCORES_PER_CHUNK", merging.SCORES_PER_CHUNK_ELSEWHERE)
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
    monkeypatch.setattr(merging, "SCORES_PER_CHUNK", 200 * 300 * 2)
    sizes = [len(chunk) for chunk in merging._sigmoid_chunks(windows, (4, 5))]
    assert sizes == [2, 2, 2, 2, 2, 1]
    assert merge_masks(windows, (4, 5))[0].shape == (4, 5)
