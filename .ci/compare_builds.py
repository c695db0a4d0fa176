"""
Build the wheels of two commits and compare what they compute, bit for bit.

    python .ci/compare_builds.py OLD_COMMIT NEW_COMMIT [--keep DIR]

Offline, on one CPU core, of which it takes about four minutes. Third-party packages are those of the Python that runs
this, which needs setuptools. A line for each comparison says "same" or "DIFFERS: ..."; the status is 1 if anything
differs. What is compared: logits, losses and maps of the embedded model, of a random ViT-B/16, of each decode head
saved by the old build in each way, and of converted official checkpoints (ZEGCLIP_GOLDENS names another folder of
them); mask files; an evaluation; short trainings, also killed and resumed; exported folders, with the package and
without it.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
PROBE = Path(__file__).with_name("build_probe.py")
LABELS = "house, boat, umbrella, clock, grass, night, brick, sky"
TRAINING = [
    "--use_cpu", "--num_train_pictures", "16", "--num_eval_pictures", "2", "--max_steps", "20", "--logging_steps", "1",
    "--total_train_batch_size", "4", "--save_steps", "5", "--save_total_limit", "9",
]  # fmt: skip
METHODS = ("zegclip", "spt_seg", "ldvc")
KILLED_AT = "checkpoint-10"
WEIGHTS = "adapter_model.safetensors"


class Build:
    """
    The wheel of a commit in a folder of its own, and what its commands write beside it.

    Args:
        commit: Anything that git understands.
        folder: To be made.
    """

    def __init__(self, commit: str, folder: Path):
        self.folder, self.source, self.site = folder, folder / "source", folder / "site"
        self.name = folder.name
        self.failures: list[str] = []
        archive = subprocess.check_output(["git", "archive", commit], cwd=ROOT)  # noqa: S607
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(self.source, filter="data")
        offline = ["--quiet", "--no-deps", "--no-index"]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        wheels = [*offline, "--no-build-isolation", "--wheel-dir", folder, self.source]
        subprocess.run([*pip, "wheel", *wheels], check=True)
        subprocess.run([*pip, "install", *offline, "--target", self.site, *folder.glob("*.whl")], check=True)
        # Away from the source, whose folder `zegclip` would be imported instead of the wheel.
        for name in ("train.py", "eval.py", "configs"):
            (self.source / name).rename(folder / name)
        self.environment = os.environ | {
            "PYTHONPATH": str(self.site),
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "MPLBACKEND": "agg",
            "TOKENIZERS_PARALLELISM": "false",
        }
        code = "import zegclip, zegclip.modeling, zegclip.processing as p; print(zegclip.__file__, *p.__path__)"
        words = [sys.executable, "-c", code]
        found = subprocess.check_output(words, text=True, cwd=folder, env=self.environment).split()
        assert all(path.startswith(str(self.site)) for path in found), f"not the wheel's: {found}"

    def start(self, *words: Any) -> subprocess.Popen:
        """Start Python in this build's folder; what it prints is added to `log.txt` there."""
        with open(self.folder / "log.txt", "ab") as log:
            own = {"cwd": self.folder, "env": self.environment, "stdout": log, "stderr": subprocess.STDOUT}
            return subprocess.Popen([sys.executable, *map(str, words)], **own)

    def run(self, *words: Any) -> None:
        """Run Python to its end, and note if that is a bad one."""
        if self.start(*words).wait():
            last = (self.folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
            self.failures.append(f"{' '.join(map(str, words))}: {''.join(last)}")

    def zegclip(self, *words: Any) -> None:
        """Run the installed command."""
        self.run(self.site / "bin" / "zegclip", *words)

    def train(self, method: str, output: str) -> list[str]:
        """Return the words of a short training on the picture world."""
        return ["train.py", f"configs/{method}_picture_world_inductive.yaml", *TRAINING, "--output_dir", output]

    def train_killed_and_resumed(self) -> None:
        """Kill a training at once after a checkpoint, and start it again."""
        output = self.folder / "killed"
        process = self.start(*self.train("zegclip", output.name))
        while process.poll() is None and not (output / KILLED_AT).exists():
            time.sleep(0.002)
        process.kill()
        process.wait()
        if not (output / KILLED_AT).exists() or (output / WEIGHTS).exists():
            self.failures.append("the training that was to be killed had ended")
        self.run(*self.train("zegclip", output.name))

    def run_commands(self, old: "Build") -> None:
        """Run all commands; pictures, checkpoint and tokenizer are the old build's."""
        pictures = [old.folder / "pictures" / f"scene_{number}.png" for number in (1, 2)]
        self.zegclip("segment", *pictures, "--labels", LABELS, "--output", "masks")
        models = old.folder / "models"
        self.zegclip("convert", models / "official.pth", "converted", "--tokenizer", models / "tokenizer")
        self.zegclip("export", models / "embedded", "exported")
        self.run("eval.py", "configs/zegclip_picture_world_inductive.yaml", "--use_cpu", "--num_eval_pictures", 4,
                 "--results_dir", "figures")  # fmt: skip
        for method in METHODS:
            self.run(*self.train(method, f"trained_{method}"))
        self.train_killed_and_resumed()

    def read(self, name: str) -> Any:
        """Return a file: tensors, what JSON says, or bytes."""
        path = self.folder / name
        if path.suffix == ".safetensors":
            return load_file(path)
        return json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else path.read_bytes()

    def losses(self, method: str) -> dict[str, Any]:
        """Return what a training has logged, but times."""
        history = self.read(f"trained_{method}/trainer_state.json")["log_history"]
        found = {f"step {entry['step']}, {name}": value for entry in history for name, value in entry.items()}
        return {name: value for name, value in found.items() if not name.endswith(("runtime", "per_second"))}


def difference(old: Any, new: Any) -> str:
    """Say how two values differ, and nothing where every bit is the same."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = [f"{name}: {text}" for name in old.keys() & new.keys() if (text := difference(old[name], new[name]))]
        lost, added = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
        found += [f"{len(lost)} gone ({lost[0]} ...)"] if lost else []
        found += [f"{len(added)} new ({added[0]} ...)"] if added else []
        return f"{len(found)} of {len(old)}: {'; '.join(sorted(found)[:4])}" if found else ""
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            return f"{tuple(old.shape)} {old.dtype} -> {tuple(new.shape)} {new.dtype}"
        same = torch.equal(old.contiguous().view(-1).view(torch.uint8), new.contiguous().view(-1).view(torch.uint8))
        return "" if same else f"by up to {(old.double() - new.double()).abs().max():.1e}"
    if isinstance(old, bytes):
        return "" if old == new else f"{len(old)} -> {len(new)} bytes"
    return "" if old == new else f"{old!r:.300} -> {new!r:.300}"


def compare(title: str, old: Callable[[], Any], new: Callable[[], Any]) -> bool:
    """Compare what two functions return, print it, and return whether it differs; one that fails differs."""
    try:
        text = difference(old(), new())
    except Exception as error:
        text = repr(error)
    print(f"{title}: {f'DIFFERS: {text}' if text else 'same'}", flush=True)
    return bool(text)


def case_of(build: Build, title: str) -> dict[str, Any]:
    """Return the tensors of one case of the probe; raises `RuntimeError` if it has failed."""
    if error := build.read("errors.json")[title]:
        raise RuntimeError(f"{build.name}: {error}")
    tensors = build.read("outputs.safetensors")
    return {name.removeprefix(f"{title}/"): value for name, value in tensors.items() if name.startswith(f"{title}/")}


def run_all(old: Build, new: Build) -> None:
    """Run everything with both builds."""
    goldens = os.environ.get("ZEGCLIP_GOLDENS", old.source / "tests" / "goldens")
    picture = old.folder / "pictures" / "scene_1.png"
    old.zegclip("demo", "--output", "pictures")
    old.run(PROBE, "make", old.folder / "models", goldens)
    for build in (old, new):
        build.run_commands(old)
        build.run(PROBE, "outputs", old.folder, build.folder, goldens)
        build.run(PROBE, "bare", build.folder / "exported", picture, build.folder / "bare.safetensors")


def comparisons(old: Build, new: Build) -> Iterator[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    """Yield titles, and functions that return what should be the same."""
    for build in (old, new):
        for failure in build.failures:
            yield f"command of the {build.name} build", lambda: "success", partial(str, failure)
    for title in old.read("errors.json"):
        yield title, partial(case_of, old, title), partial(case_of, new, title)
    for build in (old, new):
        bare = f"exported by the {build.name} build, without the package"
        yield bare, partial(case_of, old, "embedded model"), partial(build.read, "bare.safetensors")
    files = {
        "mask file 1": "masks/scene_1_mask.png",
        "mask file 2": "masks/scene_2_mask.png",
        # Of the base, the decode head below the adapter's is random.
        "converted weights": f"converted/{WEIGHTS}",
        "results.json": "figures/results.json",
        **{f"trained weights, {method}": f"trained_{method}/{WEIGHTS}" for method in METHODS},
    }
    for title, name in files.items():
        yield title, partial(old.read, name), partial(new.read, name)
    for method in METHODS:
        yield f"losses, {method}", partial(old.losses, method), partial(new.losses, method)
    for build in (old, new):
        whole, resumed = (partial(build.read, f"{run}/{WEIGHTS}") for run in ("trained_zegclip", "killed"))
        yield f"killed and resumed, {build.name} build", whole, resumed


def main() -> int:
    """Compare two commits."""
    parser = argparse.ArgumentParser(description="Build the wheels of two commits and compare what they compute.")
    parser.add_argument("old", help="commit before")
    parser.add_argument("new", help="commit after")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder to make and to leave for a look at it")
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="compare_builds-") as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        builds = [Build(commit, folder / name) for name, commit in (("old", arguments.old), ("new", arguments.new))]
        run_all(*builds)
        differing = sum([compare(*one) for one in comparisons(*builds)])
    print(f"{differing or 'nothing'} differs; {time.monotonic() - start:.0f} seconds")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
