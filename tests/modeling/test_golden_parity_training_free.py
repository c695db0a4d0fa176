"""The whole training-free path of one picture, beside the official code: windows, names, background, refinement."""

import pytest
import torch
from tiny_models import dense_model, golden_files, read_dense_golden

from zegclip.processing import merging, refinement
from zegclip.processing.merging import best_of_names, merge_masks, merge_scores
from zegclip.processing.windows import predict_windows

TOLERANCE = 1e-5
REFINED = [pytest.param(False, id="as_they_are"), pytest.param(True, id="refined")]


@pytest.fixture(scope="module", params=golden_files("dense_*.safetensors"), ids=lambda path: path.stem)
def golden(request):
    """Metadata and tensors, and what the model predicts for the windows of the picture."""
    meta, tensors = read_dense_golden(request.param)
    model = dense_model(meta, tensors)
    model.config.dense_attention = "naclip"
    with torch.no_grad():
        predicted = predict_windows(
            model, tensors["slide.pixel_values"], tensors["slide.name_embeds"], meta["slide"]["crop"],
            meta["slide"]["stride"],
        )  # fmt: skip
    return meta["slide"], tensors, predicted


def official(tensors, name, is_refined):
    return tensors[f"slide.pamr.{name}" if is_refined else f"slide.{name}"]


@pytest.mark.parametrize("target", ["image", "output"])
def test_averaged_and_resized_logits(golden, target):
    meta, tensors, predicted = golden
    scale = meta["logit_scale"]
    expected = tensors["slide.logits" if target == "image" else "slide.logits_resized"][0]
    scores = merge_scores(predicted, tuple(meta[target]))
    torch.testing.assert_close(scores, (scale * expected).softmax(dim=0), atol=TOLERANCE, rtol=0)
    # Scores do not tell logits from those with another number added in a pixel: the logits themselves.
    logits = torch.cat(list(merging._logit_chunks(predicted, tuple(meta[target]))))
    torch.testing.assert_close(logits / scale, expected, atol=TOLERANCE, rtol=0)


def test_scores_of_classes(golden):
    meta, tensors, predicted = golden
    scores = best_of_names(merge_scores(predicted, tuple(meta["output"])), tensors["slide.class_of_name"])
    # As the official code leaves them.
    torch.testing.assert_close(scores / scores.sum(dim=0), tensors["slide.probs"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("is_refined", REFINED)
@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_class_maps(golden, is_refined, chunk, threshold, monkeypatch):
    if chunk is not None:
        monkeypatch.setattr(merging, "SCORES_PER_CHUNK", chunk)
    meta, tensors, predicted = golden
    picture = tensors["slide.pixel_values"][0] if is_refined else None
    ids, scores = merge_masks(predicted, tuple(meta["output"]), picture=picture)
    found = tensors["slide.class_of_name"][ids].masked_fill(scores < threshold, 0)
    expected = official(tensors, f"pred_thd{threshold}", is_refined)
    best, second = official(tensors, "probs", is_refined).topk(2, dim=0).values
    is_told_apart = best - second > TOLERANCE
    if threshold:
        is_told_apart &= (scores - threshold).abs() > TOLERANCE
    assert is_told_apart.float().mean() > 0.99
    assert torch.equal(found[is_told_apart], expected[is_told_apart])
    assert len(expected.unique()) > 1


def test_refined_scores_of_classes(golden):
    meta, tensors, predicted = golden
    logits = torch.cat(list(merging._logit_chunks(predicted, tuple(meta["output"]))))
    picture = merging.resize_maps(tensors["slide.pixel_values"][0], *meta["output"])
    refined = refinement.refine(logits, picture)
    torch.testing.assert_close(refined / meta["logit_scale"], tensors["slide.logits_pamr"][0], atol=TOLERANCE, rtol=0)
    scores = best_of_names(refined.softmax(dim=0), tensors["slide.class_of_name"])
    torch.testing.assert_close(scores / scores.sum(dim=0), tensors["slide.pamr.probs"], atol=2 * TOLERANCE, rtol=0)
    ids, best = merge_masks(predicted, tuple(meta["output"]), picture=tensors["slide.pixel_values"][0])
    torch.testing.assert_close(best, refined.softmax(dim=0).amax(dim=0), atol=TOLERANCE, rtol=0)
    assert torch.equal(ids, refined.argmax(dim=0))
