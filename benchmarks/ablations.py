"""
Train the runs of an ablation file over several seeds and print its tables as Markdown.

    python benchmarks/ablations.py configs/ablations/picture_world.yaml --use_cpu --jobs 2

A run that is in the output folder is not trained or evaluated again, so the same command goes on after an
interruption. Figures are mean and standard deviation over seeds of the papers' protocol; they are also written as JSON
with hardware, date and versions. A field that is `null` in a run is left at its default.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from measuring import write_report
from tqdm import tqdm

from picture_world import BASELINE, MODEL, ROOT, figures, mean_and_deviation
from zegclip import DEFAULT_MODEL, ZegClipConfig
from zegclip.errors import reporting_errors
from zegclip.loading import base_of, check_model_path, load_processor
from zegclip.training.arguments import parse_arguments

_SHAPES = {"runs": "`config` to a file in configs/, and fields to values", "tables": "row titles to names of runs"}
COLUMNS = {"pacc": "pAcc", "miou_seen": "S", "miou_unseen": "U", "hiou": "h"}


def read_ablations(path: Path) -> dict[str, Any]:
    """
    Read the runs and tables of an ablation file.

    Raises:
        ValueError: One sentence, if it is not there, or says something else.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file.")
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML ({str(error).splitlines()[0]}).") from error
    parts = {"fields": {}} | described if isinstance(described, dict) else {}
    if parts.keys() != {"fields", *_SHAPES} or not all(isinstance(part, dict) for part in parts.values()):
        raise ValueError(f"{path}: an ablation file maps `fields` (which may be left out), `runs` and `tables`.")
    for kind, shape in _SHAPES.items():
        for name, item in parts[kind].items():
            if not isinstance(item, dict) or (kind == "runs" and "config" not in item):
                raise ValueError(f"{path}: {name!r} in `{kind}` must map {shape}.")
    return parts


def write_configs(described: dict[str, Any], folder: Path, model: str) -> dict[str, Path]:
    """
    Write each run's fields as a configuration of its own, and return where.

    Args:
        described: What the ablation file says: `fields`, `runs` and `tables`.
        folder: For the configurations.
        model: Folder or Hub id of the CLIP that all runs train on.

    Raises:
        ValueError: One sentence, if a table names a run that is not there, or a run cannot be trained on the CLIP.
    """
    for title, rows in described["tables"].items():
        for label, name in rows.items():
            if name not in described["runs"]:
                raise ValueError(f"{label!r} in the table {title!r} is the run {name!r}, which is not there.")
    folder.mkdir(parents=True, exist_ok=True)
    processor = load_processor(model)
    stored = ZegClipConfig.from_pretrained(base_of(model)).to_dict()
    paths = {}
    for name, run in described["runs"].items():
        base = yaml.safe_load((ROOT / "configs" / run["config"]).read_text(encoding="utf-8"))
        changed = described["fields"] | {key: value for key, value in run.items() if key != "config"}
        fields = {key: value for key, value in (base | changed).items() if value is not None}
        paths[name] = folder / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
        # All of it before the first training, which may be hours before the last one.
        model_args, _, _ = parse_arguments([str(paths[name])])
        ids = processor.text_prompt_ids() if model_args.text_prompts else None
        model_args.prompt_config(None, ids)
        ZegClipConfig.from_dict(stored | model_args.config_overrides())
    return paths


def format_row(runs: list[dict[str, float]]) -> dict[str, str]:
    """Mean and deviation over seeds of each column."""
    return mean_and_deviation([{title: run[name] for name, title in COLUMNS.items()} for run in runs])


def main() -> None:
    """Parse the command line, run what is missing, print and save the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="runs and tables, see configs/ablations/picture_world.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--eval_split", choices=("tuning", "test"), default="tuning")
    parser.add_argument("--num_pictures", type=int, default=200, help="scenes of the evaluation")
    parser.add_argument("--model", type=Path, help="CLIP to train on; none: the embedded one")
    parser.add_argument("--output", type=Path, default=Path("outputs/ablations"))
    parser.add_argument("--use_cpu", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, which share the cores")
    arguments = parser.parse_args()

    with reporting_errors("ablations.py"):
        model = check_model_path(arguments.model or DEFAULT_MODEL)
        described = read_ablations(arguments.file)
        configs = write_configs(described, arguments.output / "configs", model)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // arguments.jobs)))
    results: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in configs}
    # All runs of a seed before the next seed: an interrupted command has whole tables of fewer seeds.
    todo = [(name, seed) for seed in arguments.seeds for name in configs]
    first = todo[0]

    def run(item: tuple[str, int]) -> dict[str, dict[str, float]]:
        name, seed = item
        log = arguments.output / name / f"seed{seed}" / "log.txt"
        return figures(configs[name], seed, arguments, baseline=item == first, log=log)

    with reporting_errors("ablations.py"), ThreadPoolExecutor(arguments.jobs) as pool:
        for (name, _), result in zip(todo, tqdm(pool.map(run, todo), total=len(todo), desc="runs"), strict=True):
            results[name].append(result)

    report: dict[str, Any] = {
        "eval_split": arguments.eval_split,
        "num_pictures": arguments.num_pictures,
        "seeds": arguments.seeds,
        "figures": {
            name: [{column: run[MODEL][column] for column in COLUMNS} for run in runs]
            for name, runs in results.items()
        },
    }
    seeds = "_".join(map(str, arguments.seeds))
    path = arguments.output / f"{arguments.eval_split}_seeds_{seeds}.json"
    write_report(path, report)
    free = {"training-free baseline": format_row([results[first[0]][0][BASELINE]])}
    print(pd.DataFrame(free).T.to_markdown(stralign="right", disable_numparse=True))
    for title, rows in described["tables"].items():
        table = {label: format_row([run[MODEL] for run in results[name]]) for label, name in rows.items()}
        print(f"\n{title}\n\n{pd.DataFrame(table).T.to_markdown(stralign='right', disable_numparse=True)}")
    print(f"\nPer cent: pixels (pAcc), mean IoU of seen (S) and unseen classes (U), their harmonic mean (h). {path}")


if __name__ == "__main__":
    main()
