"""
Segment pictures with Ray Data, on all machines of a cluster: the results are those of `zegclip segment`.

    python examples/ray_segment.py pictures/ --labels "cat, tree, grass" --output masks --workers 4 --gpus 1

Each worker holds one model. A worker that dies is replaced, and its pictures are done again; pictures that have
results already are skipped, so the same command goes on after an interruption. All machines see the same folders.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray

import zegclip
from zegclip.files import remove_leftovers
from zegclip.processing.names import nested_classes
from zegclip.segmenting.pictures import absolute, find_pictures, name_results
from zegclip.segmenting.results import find_unfinished, identify_model
from zegclip.segmenting.segmenter import load_segmenter, segment_pictures


class Segmenter:
    """A worker: loads the model once, and segments one batch of pictures after another."""

    def __init__(self, model: str, labels: list[list[str]], output: Path, job: dict[str, Any]) -> None:
        self.segmenter, self.labels, self.output, self.job = load_segmenter(model), labels, output, job

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Write the results of some pictures, and return how many there are and what could not be done."""
        pictures = dict(zip(batch["path"].tolist(), batch["name"].tolist(), strict=True))
        outcome = segment_pictures(self.segmenter, pictures, self.labels, self.output, **self.job, show_progress=False)
        return {"segmented": [outcome.segmented], "failures": [json.dumps(outcome.failures)]}


def main() -> None:
    """Parse the command line, and segment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", help="files and folders")
    parser.add_argument("--labels", required=True, help='comma-separated class names; "cat/kitten" gives a class two')
    parser.add_argument("--model", help="folder or Hub id (default: the embedded model)")
    parser.add_argument("--output", type=Path, default=Path("zegclip-output"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of each worker; 0.5 lets two share one")
    parser.add_argument("--batch", type=int, default=16, help="pictures of a task, which a dead worker loses")
    arguments = parser.parse_args()

    labels = nested_classes(arguments.labels)
    output = arguments.output.absolute()
    job = identify_model(arguments.model)
    named = dict(name_results(find_pictures(arguments.pictures, recursive=True, without=output), output))
    todo = find_unfinished(named, labels, output, **job)
    print(f"{len(named) - len(todo)} of {len(named)} pictures were done before.")
    if not todo:
        return
    rows = [{"path": absolute(path), "name": name} for path, name in todo.items()]
    done = ray.data.from_items(rows).map_batches(
        Segmenter,
        fn_constructor_args=(arguments.model or str(zegclip.DEFAULT_MODEL), labels, output, job),
        batch_size=arguments.batch,
        concurrency=arguments.workers,
        num_gpus=arguments.gpus,
    )
    results = done.take_all()
    remove_leftovers(output)  # Of workers that died.
    print(f"{sum(row['segmented'] for row in results)} pictures segmented: the results are in {output}.")
    failures = [failure for row in results for failure in json.loads(row["failures"])]
    print(*failures, sep="\n", end="\n" * bool(failures), file=sys.stderr)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
