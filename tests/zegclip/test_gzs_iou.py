"""The module for `evaluate` returns the same metrics as `zegclip.processing.metrics`, however the maps are passed."""

import math
import multiprocessing
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

import zegclip
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.metrics import class_counts, class_ious, summarise

METRIC = str(Path(zegclip.__file__).parent / "gzs_iou.py")
CLASSES = {"names": ["a", "b", "c", "d", "e"], "seen_ids": [0, 2], "unseen_ids": [1, 3]}


def random_maps(seed, count=6, ignore_index=255, same_size=False):
    """Maps of different sizes with ignored pixels; nothing is labelled or predicted as the last class."""
    rng = np.random.default_rng(seed)
    shapes = [(7, 9) if same_size else rng.integers(1, 20, size=2) for _ in range(count)]
    labels = [rng.choice([0, 1, 2, 3, ignore_index], size=shape) for shape in shapes]
    predicted = [
        np.where(rng.random(ids.shape) < 0.6, np.minimum(ids, 3), rng.integers(4, size=ids.shape)) for ids in labels
    ]
    return predicted, labels


def expected(predicted, labels, classes=CLASSES, ignore_index=255):
    num_classes = len(classes["names"])
    counts = sum(
        class_counts(torch.from_numpy(ids), torch.from_numpy(truth), num_classes, ignore_index)
        for ids, truth in zip(predicted, labels, strict=True)
    ).numpy()
    split = ClassSplit(*map(tuple, classes.values()), ignore_index=ignore_index, ignored_values=(ignore_index,))
    return {**summarise(counts, split), "per_class_iou": (100 * class_ious(counts)).tolist()}


def assert_same(result, reference):
    assert result.keys() == reference.keys()
    for name, value in reference.items():
        np.testing.assert_array_equal(result[name], value, err_msg=name)


FORMS = {
    "int64": lambda ids: ids,
    "uint8": lambda ids: ids.astype(np.uint8),
    "lists": lambda ids: ids.tolist(),
    "tensors": torch.from_numpy,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("same_size", [False, True])
def test_figures_are_those_of_our_own_metrics(form, same_size):
    predicted, labels = random_maps(0, same_size=same_size)
    metric = evaluate.load(METRIC)
    maps = {"predictions": list(map(FORMS[form], predicted)), "references": list(map(FORMS[form], labels))}
    result = metric.compute(**maps, **CLASSES)
    assert_same(result, expected(predicted, labels))
    assert math.isnan(result["per_class_iou"][4])
    assert_same(metric.compute(**maps, **CLASSES), result)  # nothing is left of the first time


def test_maps_may_come_in_batches_or_one_at_a_time():
    predicted, labels = random_maps(1)
    batches, singles = evaluate.load(METRIC), evaluate.load(METRIC, keep_in_memory=True)
    for start in range(0, 6, 2):
        batches.add_batch(predictions=predicted[start : start + 2], references=labels[start : start + 2])
    for ids, truth in zip(predicted, labels):
        singles.add(prediction=ids, reference=truth)
    assert_same(batches.compute(**CLASSES), expected(predicted, labels))
    assert_same(singles.compute(**CLASSES), expected(predicted, labels))


def test_many_classes_with_another_ignore_index():
    classes = {"names": [f"class {index}" for index in range(300)], "seen_ids": [0, 255], "unseen_ids": [299]}
    predicted, labels = random_maps(2, ignore_index=65535)
    for maps in (predicted, labels):
        for ids in maps:
            ids[ids == 2], ids[ids == 3] = 255, 299
    result = evaluate.load(METRIC).compute(predictions=predicted, references=labels, ignore_index=65535, **classes)
    assert_same(result, expected(predicted, labels, classes, ignore_index=65535))


def test_splits_without_unseen_classes_and_with_classes_that_are_seen_and_unseen():
    metric = evaluate.load(METRIC, keep_in_memory=True)
    result = metric.compute(predictions=[[[0]]], references=[[[0]]], names=["a", "b"], seen_ids=[0, 1])
    assert set(result) == {"pacc", "miou", "per_class_iou"}
    with pytest.raises(ValueError, match="'a'"):
        metric.compute(predictions=[[[0]]], references=[[[0]]], names=["a"], seen_ids=[0], unseen_ids=[0])


@pytest.mark.thorough
def test_two_processes(tmp_path):
    predicted, labels = random_maps(4, same_size=True)

    def compute(process_id, maps):
        metric = evaluate.load(
            METRIC, num_process=2, process_id=process_id, experiment_id="two", cache_dir=str(tmp_path)
        )
        metric.add_batch(predictions=predicted[maps], references=labels[maps])
        return metric.compute(**CLASSES)

    # Forked, as a started process would first import everything again.
    worker = multiprocessing.get_context("fork").Process(
        target=lambda: sys.exit(compute(1, slice(None, 4)) is not None)
    )
    worker.start()
    result = compute(0, slice(4, None))
    worker.join(timeout=60)
    assert worker.exitcode == 0
    assert_same(result, expected(predicted, labels))


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ([[0, 9, 1]], [[0, 1, 1]], "Prediction 1 .* id 9"),
        ([[0, -1, 1]], [[0, 1, 1]], "Prediction 1 .* id -1"),
        ([[0, 255, 1]], [[0, 1, 1]], "Prediction 1 .* id 255"),
        ([[0, 1, 1]], [[0, 7, 1]], "id 7"),
        ([[0, 1, 1]], [[0, 1]], "Prediction 1 and reference 1"),
        ([[0, 1], [0, 1]], [[0, 1]], "Prediction 1 and reference 1"),
        ([[0, 1], [0]], [[0, 1], [0]], "Prediction 1 and reference 1"),
    ],
)
def test_maps_that_cannot_be_compared(prediction, reference, message):
    metric = evaluate.load(METRIC, keep_in_memory=True)
    metric.add(prediction=[[0]], reference=[[0]])
    metric.add(prediction=prediction, reference=reference)
    with pytest.raises(ValueError, match=message):
        metric.compute(**CLASSES)


def test_what_is_predicted_at_ignored_pixels_does_not_matter():
    result = evaluate.load(METRIC).compute(predictions=[[[0, 77]]], references=[[[0, 255]]], **CLASSES)
    assert result["pacc"] == 100


def test_the_example_in_its_description():
    metric = evaluate.load(METRIC)
    example = metric.inputs_description.split("Example:")[1]
    namespace = {"metric": metric}
    call, result = example.split(">>> metric.compute(")[1].split("... )")
    call = "metric.compute(" + call.replace("...", "") + ")"
    assert eval(call, namespace) == eval(" ".join(result.split()))
