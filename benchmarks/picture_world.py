"""
Train configurations over several seeds on the picture world and print their test figures as one Markdown table.

    python benchmarks/picture_world.py configs/zegclip_picture_world_inductive.yaml --seeds 0 1 2

A run whose adapter is already in the output folder is not trained again. The seed changes the adapter's training; the
evaluated scenes are the same for all. Figures are mean and standard deviation over seeds; they are also written as
JSON with hardware, date and versions.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
from measuring import write_report

from zegclip import DEFAULT_MODEL
from zegclip.identity import content_of_clip

ROOT = Path(__file__).resolve().parents[1]
# Rows of eval.py's results: the free protocol shows the whole scene to a CLIP that was made for half of it.
MODEL = "model, papers' protocol"
BASELINE = "training-free baseline, papers' protocol"


def run(script: str, *words: str, log: Path | None = None) -> None:
    """Run one of the repository's scripts, which writes to the terminal or a log file, and stop if it fails."""
    with log.open("a", encoding="utf-8") if log else nullcontext() as file:
        done = subprocess.run([sys.executable, str(ROOT / script), *words], stdout=file, stderr=file)
    if done.returncode:
        last = f" ({log.read_text(encoding='utf-8').strip().splitlines()[-1]}): see {log}" if log else ""
        sys.exit(f"{script} {words[0]} failed{last}.")


def check_settings(folder: Path, settings: dict[str, str]) -> None:
    """Remember what a run was made with, and refuse to take another one's results for it."""
    path = folder / "settings.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != settings:
        sys.exit(f"{folder} holds a run with another configuration or model: remove it, or choose another --output.")


def figures(
    config: Path, seed: int, arguments: Namespace, *, baseline: bool, log: Path | None = None
) -> dict[str, dict[str, float]]:
    """Train unless done, evaluate unless done, and return the figures of the model and, if asked, of the baseline."""
    folder = arguments.output / config.stem / f"seed{seed}"
    model = content_of_clip(str(arguments.model or DEFAULT_MODEL))
    check_settings(folder, {"config": config.read_text(encoding="utf-8"), "model": model})
    source = ["--model", str(arguments.model)] if arguments.model else []
    common = ["--seed", str(seed), "--eval_split", arguments.eval_split, "--use_cpu", str(arguments.use_cpu)]
    if not (folder / "adapter_model.safetensors").is_file():
        # What training reports at its end is of the tuning split; the test split is left to eval.py.
        run("train.py", str(config), *source, *common[:2], "--output_dir", str(folder), *common[4:], log=log)
    results = folder / f"{arguments.eval_split}_{arguments.num_pictures}"
    size = ["--num_eval_pictures", str(arguments.num_pictures), "--baseline", str(baseline)]
    size += ["--baseline_attention", "plain"]  # the best without training on this CLIP
    path = results / "results.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    if MODEL not in known or (baseline and BASELINE not in known):
        # Pictures that were evaluated before are not done again.
        words = ["--model", str(folder), *common, *size, "--results_dir", str(results)]
        run("eval.py", str(config), *words, log=log)
    return json.loads(path.read_text())


def mean_and_deviation(runs: list[dict[str, float]]) -> dict[str, str]:
    """Format each figure over seeds; of one seed, the figure alone."""
    table = pd.DataFrame(runs)
    deviations = [f" ± {value:.1f}" if len(runs) > 1 else "" for value in table.std()]
    return {name: f"{mean:.1f}{more}" for name, mean, more in zip(table.columns, table.mean(), deviations)}


def parser_for(description: str | None, num_pictures: int, output: str) -> ArgumentParser:
    """Return a parser with options for what to train on, and what to evaluate."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--eval_split", choices=("tuning", "test"), default="tuning")
    parser.add_argument("--num_pictures", type=int, default=num_pictures, help="scenes of the evaluation")
    parser.add_argument("--model", type=Path, help="CLIP to train on; none: the embedded one")
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--use_cpu", action="store_true")
    return parser


def print_rows(rows: dict[str, dict[str, str]]) -> None:
    """Print a table in Markdown."""
    print(pd.DataFrame(rows).T.to_markdown(stralign="right", disable_numparse=True))


def main() -> None:
    """Parse the command line, run what is missing, print and save the table."""
    parser = parser_for(__doc__, 500, "outputs/picture_world")
    parser.add_argument("configs", nargs="+", type=Path, help="YAML configurations")
    arguments = parser.parse_args()

    rows, record = {}, {}
    for config in arguments.configs:
        # The baseline is the same for all: nothing of it is trained.
        runs = [
            figures(config, seed, arguments, baseline=not rows and not i) for i, seed in enumerate(arguments.seeds)
        ]
        record[config.stem] = dict(zip(map(str, arguments.seeds), runs))
        if BASELINE in runs[0]:
            rows[BASELINE] = mean_and_deviation([runs[0][BASELINE]])
        rows[config.stem] = mean_and_deviation([seed_figures[MODEL] for seed_figures in runs])
    report = {"eval_split": arguments.eval_split, "num_pictures": arguments.num_pictures, "figures": record}
    write_report(arguments.output / f"{arguments.eval_split}.json", report)
    print_rows(rows)


if __name__ == "__main__":
    main()
