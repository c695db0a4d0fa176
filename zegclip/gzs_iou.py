"""
The metrics of generalised zero-shot segmentation as a module of the library `evaluate`.

    metric = evaluate.load(zegclip.METRIC)

`evaluate` copies this file and parses its imports line by line, so each must be on one line.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch

from zegclip.processing.class_split import ClassSplit
from zegclip.processing.input_error import InputError
from zegclip.processing.metrics import class_counts, class_ious, summarise

DESCRIPTION = """
Generalised zero-shot semantic segmentation: all classes compete for every pixel, and intersection over union (IoU) is
averaged over the classes with masks in training (seen) and over the held-out classes (unseen). IoU is computed from
pixel counts summed over all pictures.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions: Class maps, `(height, width)` integers, ids of `names`; pictures may differ in size.
    references: Label maps of the same sizes, ids of `names` or the ignore index.
    names: All class names; the position is the id.
    seen_ids: Ids of the classes with masks in training.
    unseen_ids: Ids of the held-out classes. Ids in neither list compete for pixels but are not part of any mean.
    ignore_index: Label of pixels that are not counted; 255 by default.

Returns, in per cent (NaN if nothing is labelled or predicted):
    pacc: Pixel accuracy.
    miou: Mean IoU of seen and unseen classes together.
    miou_seen, miou_unseen, hiou: Mean IoU of each, and their harmonic mean; only with unseen classes.
    per_class_iou: IoU of each class, in the order of `names`.

Example:
    >>> import evaluate, zegclip
    >>> metric = evaluate.load(zegclip.METRIC)
    >>> metric.compute(
    ...     predictions=[[[0, 1, 1]]],
    ...     references=[[[0, 1, 255]]],
    ...     names=["cat", "sky"],
    ...     seen_ids=[0],
    ...     unseen_ids=[1],
    ... )
    {'pacc': 100.0, 'miou': 100.0, 'miou_seen': 100.0, 'miou_unseen': 100.0, 'hiou': 100.0,
     'per_class_iou': [100.0, 100.0]}
"""

CITATION = """
@inproceedings{zhou2023zegclip,
    title = {{ZegCLIP}: Towards Adapting {CLIP} for Zero-Shot Semantic Segmentation},
    author = {Zhou, Ziqin and Lei, Yinjie and Zhang, Bowen and Liu, Lingqiao and Liu, Yifan},
    booktitle = {CVPR},
    year = {2023},
}
"""


class GeneralizedZeroShotIoU(evaluate.Metric):
    """
    IoU over seen and unseen classes, from maps that `evaluate` collects in files, over all processes.

    A labelled pixel takes 8 bytes on disk and 16 in memory. For thousands of pictures use `eval.py`, which counts
    picture by picture and returns the same metrics.
    """

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("int32")))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": maps, "references": maps}),
            reference_urls=["https://arxiv.org/abs/2212.03588"],
        )

    def _compute(
        self,
        *,
        predictions: Sequence[Sequence[Sequence[int]]],
        references: Sequence[Sequence[Sequence[int]]],
        names: Sequence[str],
        seen_ids: Sequence[int],
        unseen_ids: Sequence[int] = (),
        ignore_index: int = 255,
    ) -> dict[str, float | list[float]]:
        split = ClassSplit(
            tuple(names), tuple(seen_ids), tuple(unseen_ids), ignore_index=ignore_index, ignored_values=(ignore_index,)
        )
        counts = torch.zeros(3, len(names), dtype=torch.int64)
        for number, maps in enumerate(zip(predictions, references, strict=True)):
            predicted, labels = read_maps(*maps, number, split)
            counts += class_counts(torch.from_numpy(predicted), torch.from_numpy(labels), len(names), ignore_index)
        return {**summarise(counts.numpy(), split), "per_class_iou": (100 * class_ious(counts.numpy())).tolist()}


def read_maps(
    prediction: Sequence[Sequence[int]], reference: Sequence[Sequence[int]], number: int, split: ClassSplit
) -> tuple[np.ndarray, np.ndarray]:
    """
    Convert a class map and its label map from lists of rows to int64 arrays.

    Raises:
        InputError: If they do not have the same rectangular size, or an id is not in the class list.
    """
    lengths = {len(row) for row in (*prediction, *reference)}
    if len(lengths) > 1 or len(prediction) != len(reference):
        raise InputError(f"Prediction {number} and reference {number} are not two maps of the same height and width.")
    predicted, labels = np.array(prediction, dtype=np.int64), np.array(reference, dtype=np.int64)
    split.check(labels)
    wrong = (labels != split.ignore_index) & ((predicted < 0) | (predicted >= len(split.names)))
    if wrong.any():
        raise InputError(
            f"Prediction {number} contains the id {predicted[wrong][0]}, which is not in the class list "
            f"(0 to {len(split.names) - 1})."
        )
    return predicted, labels
