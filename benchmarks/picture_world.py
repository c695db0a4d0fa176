"""
Train and evaluate the runs of a study on the picture world, print its tables as Markdown and draw them as bars.

    python -m zegclip.picture_world.pretrain --output outputs/clips/0 --seed 0
    python benchmarks/picture_world.py configs/studies/main.yaml --clips outputs/clips/0 --eval_split test --use_cpu

A study lists `runs`, each a configuration with the fields that it changes, `tables` of their rows, and the runs whose
masks are drawn, `scenes`. What `fields` has is changed in all runs. A field that is `null` is left at its default. A
run without `max_steps` is not trained, and one with `of` instead of `config` evaluates what another run has trained,
with other fields.

All runs of a CLIP and seed come before the next seed, and each leaves its figures in the report at once. What a report
has already, under the same settings and for the same CLIP, is not done again, so the same command goes on after an
interruption, also without the folders of the runs.
"""

import json
import math
import os
import subprocess
import sys
import threading
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from filelock import FileLock
from measuring import write_report
from PIL import Image
from tqdm import tqdm

from zegclip import ZegClipConfig
from zegclip.drawing.legend import arrange
from zegclip.drawing.overlay import class_panes
from zegclip.errors import reporting_errors
from zegclip.files import read_json
from zegclip.identity import content_of_clip
from zegclip.loading import base_of, check_model_path, config_of_base, load_processor
from zegclip.picture_world.classes import CLASS_NAMES
from zegclip.picture_world.dataset import EvalSplit, draw_example, scene_seeds
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.metrics import class_counts, class_ious, summarise
from zegclip.training.arguments import parse_arguments
from zegclip.training.data import picture_world_split

Runs = Mapping[tuple[str, int], Mapping[str, Any]]  # Figures by CLIP and seed.
ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "objects_miou_seen": "S",
    "objects_miou_unseen": "U",
    "objects_hiou": "h",
    "grounds_hiou": "grounds h",
    "hiou": "all h",
    "pacc": "pAcc",
}
REPLICATES = 200  # Of the bootstrap.
OBJECTS_SHOWN, SCENES_SHOWN, LEGEND = 3, 4, 12  # Objects in a scene, scenes, and names beside each of them.
CONFIDENCE = 95
OF_EVALUATION = ("refine", "training_free_weight", "seen_offset", "image_size", "window_size", "window_stride")


def write_configs(study: Mapping[str, Any], folder: Path, clip: str) -> dict[str, Path]:
    """
    Write each run's fields as a configuration of its own, and return where.

    Args:
        study: Of the file: `runs`, `tables` and perhaps `scenes` and `fields`.
        folder: For the configurations.
        clip: Folder or Hub id of a CLIP that the runs train on.

    Raises:
        ValueError: One sentence, if a table names a run that is not there, or a run cannot be trained on the CLIP.
    """
    for title, rows in (study["tables"] | {"scenes": study.get("scenes", {})}).items():
        for label, name in rows.items():
            if name not in study["runs"]:
                raise ValueError(f"{label!r} in the table {title!r} is the run {name!r}, which is not there.")
    folder.mkdir(parents=True, exist_ok=True)
    processor = load_processor(clip, for_training=True)
    stored = ZegClipConfig.from_pretrained(base_of(clip))
    paths = {}
    for name, run in study["runs"].items():
        trained = study["runs"][run["of"]] if "of" in run else {}
        if trained and not run.keys() <= {"of", *OF_EVALUATION}:
            raise ValueError(f"The run {name!r} is another one's training: it can change only {OF_EVALUATION}.")
        described = trained | run
        base = yaml.safe_load((ROOT / "configs" / described["config"]).read_text(encoding="utf-8"))
        changed = {key: value for key, value in described.items() if key not in ("config", "of")}
        fields = base | study.get("fields", {}) | changed
        fields = {key: value for key, value in fields.items() if value is not None}
        paths[name] = folder / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
        # All of it before the first training, which may be hours before the last one.
        model_args, _, _ = parse_arguments([str(paths[name])])
        if "max_steps" in fields:
            ids = processor.text_prompt_ids() if model_args.text_prompts else None
            model_args.prompt_config(None, ids)
            config_of_base(stored, model_args.config_overrides())
    return paths


def call(script: str, *words: str, log: Path) -> None:
    """Run one of the repository's scripts, which writes to a log file; `ValueError` if it fails."""
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, str(ROOT / script), *words], stdout=file, stderr=file)
    if done.returncode:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1]
        raise ValueError(f"{script} failed ({last}): see {log}")


def train(config: Path, clip: Path, seed: int, folder: Path, arguments: Namespace) -> None:
    """Train a run, unless it has been."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [str(config), "--model", str(clip), "--output_dir", str(folder), "--seed", str(seed)]
    # What training reports at its end is not used.
    words += ["--num_eval_pictures", "8", "--baseline", "false", "--use_cpu", str(arguments.use_cpu)]
    call("train.py", *words, "--eval_split", arguments.eval_split, log=folder / "log.txt")


def evaluate(config: Path, model: Path, folder: Path, arguments: Namespace) -> dict[str, Any]:
    """Evaluate a trained run or a CLIP, and return the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / f"{arguments.eval_split}_{arguments.num_pictures}"
    words = [str(config), "--model", str(model), "--results_dir", str(results), "--eval_split", arguments.eval_split]
    words += ["--use_cpu", str(arguments.use_cpu)]
    words += ["--num_eval_pictures", str(arguments.num_pictures), "--save_predictions", "true"]
    call("eval.py", *words, "--baseline", "false", log=folder / "log.txt")
    figures = json.loads((results / "results.json").read_text(encoding="utf-8"))
    # The free protocol shows the whole scene to a CLIP that was made for half of it.
    row = next(title for title in figures if "papers' protocol" in title)
    unseen = yaml.safe_load(config.read_text(encoding="utf-8")).get("unseen_classes")
    analysed = analyse(find_predictions(results), arguments.eval_split, arguments.num_pictures, unseen)
    if abs(analysed.pop("hiou") - figures[row]["hiou"]) > 1e-6:
        raise ValueError(f"{results} has predictions of other scenes than its figures.")
    return figures[row] | analysed


def find_predictions(results: Path) -> Path:
    """Return the folder of the masks that an evaluation saved, one per scene, in the papers' protocol."""
    return next(path for path in (results / "model" / "predictions").iterdir() if "papers" in path.name)


def analyse(
    predictions: Path, eval_split: EvalSplit, num_pictures: int, unseen: Sequence[str] | None = None
) -> dict[str, Any]:
    """
    Compare saved predictions with the masks of the scenes.

    Args:
        predictions: Folder of one index mask per scene.
        eval_split: Whose scenes.
        num_pictures: How many.
        unseen: As for [`picture_world_split`].

    Returns:
        `hiou`: as [`summarise`]; `per_class`: IoU of each class; `replicates`: `objects_miou_seen`,
        `objects_miou_unseen` and `objects_hiou` for resampled scenes, the same scenes in every run;
        `seen_as_unseen`, `unseen_as_unseen`: of the pixels of seen and of unseen objects, the share that has any
        unseen name; `unseen_named`: of the latter, the share that has its own, NaN if there are none;
        `permuted_miou_unseen`: U of objects if the names of unseen objects are exchanged among them, mean over all
        cyclic shifts. In per cent.
    """
    split = picture_world_split(eval_split, unseen)
    files = sorted(predictions.rglob("*.png"))
    if len(files) != num_pictures:
        raise ValueError(f"{predictions} has {len(files)} predictions, but {num_pictures} scenes were evaluated.")
    classes = len(split.names)
    counts = np.zeros((num_pictures, 3, classes), dtype=np.int64)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    ids_of_values = np.full(256, 255)
    ids_of_values[[CLASS_NAMES.index(name) for name in split.names]] = np.arange(classes)
    for index, (file, scene) in enumerate(zip(files, scene_seeds(eval_split), strict=False)):
        truth = ids_of_values[np.asarray(draw_example(eval_split, scene)["mask"])]
        predicted = ids_of_values[np.asarray(Image.open(file))]
        counts[index] = class_counts(torch.from_numpy(predicted), torch.from_numpy(truth), classes, 255).numpy()
        confusion += np.bincount((truth * classes + predicted).ravel(), minlength=classes**2).reshape(classes, classes)
    rng = np.random.default_rng(0)
    names = ("objects_miou_seen", "objects_miou_unseen", "objects_hiou")
    replicates = []
    for _ in range(REPLICATES):
        resampled = summarise(counts[rng.integers(num_pictures, size=num_pictures)].sum(axis=0), split)
        replicates.append([round(resampled[name], 3) for name in names])
    ious = class_ious(counts.sum(axis=0))
    return {
        "hiou": summarise(counts.sum(axis=0), split)["hiou"],
        "per_class": {name: round(100 * float(iou), 2) for name, iou in zip(split.names, ious, strict=True)},
        "replicates": replicates,
        **_elimination(confusion, split),
    }


def _elimination(confusion: np.ndarray, split: ClassSplit) -> dict[str, float]:
    """Return how seen and unseen are confused, see [`analyse`]; `confusion` is `(true, predicted)` pixels."""
    unseen = list(split.unseen_ids)
    objects = [index for index in unseen if index in split.groups["objects"]]
    seen = [index for index in split.seen_ids if index in split.groups["objects"]]
    named_unseen = confusion[np.ix_(objects, unseen)].sum()
    shifted = []
    for shift in range(1, len(objects)):
        answers = np.roll(objects, shift)
        both = confusion[objects, answers]
        shifted.append((both / (confusion[objects].sum(axis=1) + confusion[:, answers].sum(axis=0) - both)).mean())
    return {
        "seen_as_unseen": 100 * float(confusion[np.ix_(seen, unseen)].sum() / confusion[seen].sum()),
        "unseen_as_unseen": 100 * float(named_unseen / confusion[objects].sum()),
        "unseen_named": 100 * float(confusion[objects, objects].sum() / named_unseen) if named_unseen else math.nan,
        "permuted_miou_unseen": 100 * float(np.mean(shifted)),
    }


class Report:
    """Figures by run, CLIP and seed in a JSON file, which is written after each run."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.runs = self._read()
        self.header = header

    def _read(self) -> dict[str, Any]:
        return (read_json(self.path) or {}).get("runs", {})

    def find(self, key: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the figures of a run, if it is there and was made with these settings."""
        run = self.runs.get(key)
        return run["figures"] if run and run["settings"] == settings else None

    def add(self, key: str, settings: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
        """Add a run and write the file, with what others have added to it meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            self.runs |= self._read()
            self.runs[key] = {"settings": settings, "figures": figures}
            write_report(self.path, {**self.header, "runs": dict(sorted(self.runs.items()))})


def interval(runs: Runs, column: int) -> tuple[float, float]:
    """
    Return the interval of the mean over CLIPs by bootstrap over CLIPs, trainings on each of them, and scenes.

    What there is only one of is not resampled. With fewer than about ten CLIPs the interval is too narrow.
    """
    by_clip: dict[str, list[list[float]]] = {}
    for (clip, _), figures in runs.items():
        by_clip.setdefault(clip, []).append([row[column] for row in figures["replicates"]])
    rng = np.random.default_rng(1)
    clips = list(by_clip.values())
    means = []
    for scenes in range(REPLICATES):
        chosen = [clips[index] for index in rng.integers(len(clips), size=len(clips))]
        trainings = [[own[index][scenes] for index in rng.integers(len(own), size=len(own))] for own in chosen]
        means.append(np.mean([np.mean(values) for values in trainings]))
    low, high = np.percentile(means, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2])
    return float(low), float(high)


def spread(runs: Runs) -> tuple[dict[str, float], dict[str, float]]:
    """
    Return the mean over CLIPs of each column, and the standard deviations of the objects' h.

    These are of the CLIPs' means over trainings, "CLIPs", and of trainings on the same CLIP, pooled, "seeds"; NaN
    where there is only one.
    """
    table = pd.DataFrame([{title: run[name] for name, title in COLUMNS.items()} for run in runs.values()])
    groups = table.groupby(pd.Series([clip for clip, _ in runs]))
    means = groups.mean()
    squares = float(((table["h"] - groups["h"].transform("mean")) ** 2).sum())
    free = len(table) - len(means)
    deviations = {"CLIPs": float(means["h"].std()), "seeds": math.sqrt(squares / free) if free else math.nan}
    return dict(means.mean()), deviations


def format_row(runs: Runs) -> dict[str, str]:
    """Return what [`spread`] and [`interval`] do as text, and how many trainings on each CLIP there are."""
    means, deviations = spread(runs)
    low, high = interval(runs, 2)
    row = {title: f"{mean:.1f}" for title, mean in means.items()} | {"interval of h": f"{low:.1f} to {high:.1f}"}
    row |= {f"± {of}": "" if math.isnan(value) else f"{value:.1f}" for of, value in deviations.items()}
    clips = [clip for clip, _ in runs]
    return row | {"runs": " + ".join(str(clips.count(clip)) for clip in dict.fromkeys(clips))}


def draw_bars(rows: Mapping[str, Runs], path: Path) -> None:
    """Draw the IoU of seen and unseen objects and their harmonic mean, with intervals, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 0.95 * len(rows), 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    parts = ((0, "seen", "#b9c4d0"), (1, "unseen", "#2f6db3"), (2, "harmonic mean", "#e08a1e"))
    for column, title, colour in parts:
        means = [list(spread(runs)[0].values())[column] for runs in rows.values()]
        bounds = [interval(runs, column) for runs in rows.values()]
        errors = [[max(m - b[0], 0) for m, b in zip(means, bounds)], [max(b[1] - m, 0) for m, b in zip(means, bounds)]]
        places = np.arange(len(rows)) + 0.27 * (column - 1)
        axes.bar(places, means, 0.25, yerr=errors, label=title, color=colour, error_kw={"lw": 1, "capsize": 2})
    axes.set_xticks(np.arange(len(rows)), [label.replace(", ", ",\n") for label in rows], fontsize=8)
    axes.set_ylabel("mIoU of objects, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.1))
    figure.savefig(path)


def draw_scenes(folders: Mapping[str, Path], eval_split: EvalSplit, path: Path) -> None:
    """Draw the first scenes that have an unseen object, each beside its classes and what runs have predicted."""
    split = picture_world_split(eval_split)
    strips: list[Image.Image] = []
    files = {title: sorted(find_predictions(folder).rglob("*.png")) for title, folder in folders.items()}
    ids_of_values = np.full(256, -1)
    ids_of_values[[CLASS_NAMES.index(name) for name in split.names]] = np.arange(len(split.names))
    count = min(len(found) for found in files.values())
    for index, seed in enumerate(scene_seeds(eval_split)[:count]):
        row = draw_example(eval_split, seed)
        truth = ids_of_values[np.asarray(row["mask"])]
        objects = set(np.unique(truth)) & set(split.groups["objects"])
        if len(objects) >= OBJECTS_SHOWN and objects & set(split.unseen_ids):
            maps = {"classes": truth}
            maps |= {title: ids_of_values[np.asarray(Image.open(found[index]))] for title, found in files.items()}
            shown = np.unique(np.stack(list(maps.values()))).tolist()
            shown.sort(key=lambda index: -np.count_nonzero(truth == index))
            strips.append(class_panes(row["image"], maps, split, shown[:LEGEND], [""] * len(shown[:LEGEND])))
        if len(strips) == SCENES_SHOWN:
            break
    sheet = arrange(strips, columns=1)
    sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS).save(path, quality=92)


def print_tables(study: Mapping[str, Any], results: Mapping[str, Runs], report: Path) -> None:
    """Print the tables of what has been run, in Markdown, and draw the first one."""
    for number, (title, rows) in enumerate(study["tables"].items()):
        done = {label: results[name] for label, name in rows.items() if results.get(name)}
        if not done:
            continue
        table = pd.DataFrame({label: format_row(runs) for label, runs in done.items()}).T
        table = table.loc[:, (table != "").any()]
        print(f"\n{title}\n\n{table.to_markdown(stralign='right', disable_numparse=True)}")
        if number == 0 and len(done) == len(rows):
            draw_bars(done, report.with_suffix(".png"))
    print(
        "\nPer cent. S, U, h: mIoU of seen and unseen objects and their harmonic mean, means over CLIPs;\n"
        f"{CONFIDENCE} % interval of h by bootstrap over scenes and, where there are several, CLIPs and seeds\n"
        "(too narrow for few CLIPs). ±: standard deviation of h over CLIPs, and over seeds on one CLIP.\n"
        f"runs: trainings on each CLIP. {report}"
    )


def main() -> None:
    """Parse the command line, run what is missing, print and draw the tables."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="YAML file in configs/studies")
    parser.add_argument("--clips", nargs="+", type=Path, required=True, help="pretrained CLIPs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the trainings")
    parser.add_argument("--runs", nargs="+", help="names of runs; default: all")
    parser.add_argument("--eval_split", choices=("tuning", "test"), default="tuning")
    parser.add_argument("--num_pictures", type=int, default=300, help="scenes of the evaluation")
    parser.add_argument("--output", type=Path, default=Path("outputs/picture_world"), help="for the runs")
    parser.add_argument("--report", type=Path, help="JSON file of the figures; default: in the output folder")
    parser.add_argument("--report_only", action="store_true", help="run nothing, print and draw what the report has")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    parser.add_argument("--use_cpu", action="store_true")
    arguments = parser.parse_args()

    with reporting_errors("picture_world.py"):
        clips = {path.name: check_model_path(path) for path in arguments.clips}
        if len(clips) < len(arguments.clips):
            raise ValueError("Results are named after the CLIPs' folders: give them different names.")
        study = yaml.safe_load(arguments.study.read_text(encoding="utf-8"))
        configs = write_configs(study, arguments.output / arguments.study.stem / "configs", next(iter(clips.values())))
        names = arguments.runs or list(configs)
        if unknown := set(names) - set(configs):
            raise ValueError(f"{arguments.study} has no run {min(unknown)!r}, but {', '.join(configs)}.")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // arguments.jobs)))
    fields = {name: yaml.safe_load(configs[name].read_text(encoding="utf-8")) for name in names}
    contents = {clip: content_of_clip(str(path)) for clip, path in clips.items()}
    report_path = arguments.report or arguments.output / f"{arguments.study.stem}_{arguments.eval_split}.json"
    report = Report(report_path, {"eval_split": arguments.eval_split, "num_pictures": arguments.num_pictures})
    todo = [
        (name, clip, seed)
        for seed in arguments.seeds
        for clip in clips
        for name in names
        if seed == arguments.seeds[0] or "max_steps" in fields[name]  # Without training there is nothing random.
    ]
    results: dict[str, dict[tuple[str, int], dict[str, Any]]] = {name: {} for name in names}
    root = arguments.output / arguments.study.stem / arguments.eval_split
    locks: dict[Path, threading.Lock] = {}

    def run(item: tuple[str, str, int]) -> dict[str, Any] | None:
        name, clip, seed = item
        evaluated = {"eval_split": arguments.eval_split, "num_eval_pictures": arguments.num_pictures}
        settings = fields[name] | evaluated | {"clip": contents[clip]}
        key = f"{name}/{clip}/seed{seed}"
        figures = report.find(key, settings)
        if figures is None and not arguments.report_only:
            model = clips[clip]
            if "max_steps" in fields[name]:
                trained = study["runs"][name].get("of", name)
                model = root / trained / clip / f"seed{seed}"
                with locks.setdefault(model, threading.Lock()):  # Several runs may evaluate one training.
                    train(configs[trained], clips[clip], seed, model, arguments)
            figures = evaluate(configs[name], model, root / key, arguments)
            report.add(key, settings, figures)
        return figures

    with reporting_errors("picture_world.py"), ThreadPoolExecutor(arguments.jobs) as pool:
        progress = tqdm(pool.map(run, todo), total=len(todo), desc="runs")
        for (name, clip, seed), figures in zip(todo, progress, strict=True):
            if figures is not None:
                results[name][clip, seed] = figures
    if missing := len(todo) - sum(map(len, results.values())):
        print(f"{missing} of {len(todo)} runs are not in the report, or with other settings.", file=sys.stderr)
    print_tables(study, results, report_path)
    first = f"{next(iter(clips))}/seed{arguments.seeds[0]}/{arguments.eval_split}_{arguments.num_pictures}"
    folders = {label: root / name / first for label, name in study.get("scenes", {}).items()}
    if folders and all(folder.is_dir() for folder in folders.values()):
        draw_scenes(folders, arguments.eval_split, report_path.with_name(f"{report_path.stem}_scenes.jpg"))


if __name__ == "__main__":
    main()
