"""
Train the runs of an ablation file over several seeds and print its tables as Markdown.

    python benchmarks/ablations.py configs/ablations/picture_world.yaml --use_cpu --jobs 2

A run that is in the output folder is not trained or evaluated again, so the same command goes on after an
interruption. Figures are mean and standard deviation over seeds of the papers' protocol; they are also written as JSON
with hardware, date and versions. A field that is `null` in a run is left at its default.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from measuring import write_report
from tqdm import tqdm

from picture_world import BASELINE, MODEL, ROOT, figures, mean_and_deviation, parser_for, print_rows
from zegclip import DEFAULT_MODEL, ZegClipConfig
from zegclip.errors import reporting_errors
from zegclip.loading import base_of, check_model_path, load_processor
from zegclip.training.arguments import parse_arguments

COLUMNS = {"pacc": "pAcc", "miou_seen": "S", "miou_unseen": "U", "hiou": "h"}


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
    processor = load_processor(model, for_training=True)
    stored = ZegClipConfig.from_pretrained(base_of(model)).to_dict()
    paths = {}
    for name, run in described["runs"].items():
        base = yaml.safe_load((ROOT / "configs" / run["config"]).read_text(encoding="utf-8"))
        changed = described.get("fields", {}) | {key: value for key, value in run.items() if key != "config"}
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
    parser = parser_for(__doc__, 200, "outputs/ablations")
    parser.add_argument("file", type=Path, help="runs and tables, see configs/ablations/picture_world.yaml")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, which share the cores")
    arguments = parser.parse_args()

    with reporting_errors("ablations.py"):
        model = check_model_path(arguments.model or DEFAULT_MODEL)
        described = yaml.safe_load(arguments.file.read_text(encoding="utf-8"))
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

    report = {name: getattr(arguments, name) for name in ("eval_split", "num_pictures", "seeds")}
    report["figures"] = {
        name: [{column: run[MODEL][column] for column in COLUMNS} for run in runs] for name, runs in results.items()
    }
    path = arguments.output / f"{arguments.eval_split}_seeds_{'_'.join(map(str, arguments.seeds))}.json"
    write_report(path, report)
    print_rows({"training-free baseline": format_row([results[first[0]][0][BASELINE]])})
    for title, rows in described["tables"].items():
        print(f"\n{title}\n")
        print_rows({label: format_row([run[MODEL] for run in results[name]]) for label, name in rows.items()})
    print(f"\nPer cent: pixels (pAcc), mean IoU of seen (S) and unseen classes (U), their harmonic mean (h). {path}")


if __name__ == "__main__":
    main()
