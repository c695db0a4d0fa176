"""
Whether memory and speed stay as they are over thousands of pictures of mixed sizes.

    python benchmarks/load.py

The embedded model, in processes of their own: the pipeline in one thread; the pipeline shared by several threads, of
which the masks should be the same; and the command `zegclip segment` on a folder. The model sees pictures with a short
side of 64 pixels here, so that thousands take minutes. It prints percentiles of the time for a picture, how the last
fifth of the pictures compares with the first, and how memory grows after the first half, and draws memory over
pictures.
"""

import hashlib
import itertools
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from matplotlib.figure import Figure
from measuring import in_own_process, run_cases
from PIL import Image
from tqdm import tqdm
from transformers import pipeline

import zegclip
from zegclip.files import replacing
from zegclip.loading import load_model, load_processor
from zegclip.picture_world.drawing import draw_scene
from zegclip.processing.pipeline import TASK

NAMES = ["house", "boat", "umbrella", "grass", "sky", "night"]
SHORT_SIDES = (32, 640)  # Of the pictures, drawn evenly on a logarithmic scale, as are their aspects.
LONGEST_ASPECT = 3
SEEN_SIDE = 64
SCENES = 40
SAMPLE_EVERY = 10
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "load.png"


def draw_pictures(folder: Path, count: int) -> None:
    """Write pictures of mixed sizes and formats, by name in the order of their making."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    scenes = [draw_scene(number, "test", size=192).image for number in range(SCENES)]
    for number in tqdm(range(count), desc="drawing", unit="picture"):
        short = np.exp(rng.uniform(*np.log(SHORT_SIDES)))
        sides = [int(short), int(short * np.exp(rng.uniform(0, np.log(LONGEST_ASPECT))))]
        picture = scenes[number % SCENES].resize(rng.permutation(sides).tolist(), Image.Resampling.BILINEAR)
        picture.save(folder / f"{number:06d}.{('jpg', 'png', 'webp')[number % 3]}")


def save_model(folder: Path) -> None:
    """Write the embedded model with a processor that makes pictures small."""
    geometry = {"size": {"shortest_edge": SEEN_SIDE}, "window_size": SEEN_SIDE, "window_stride": SEEN_SIDE * 2 // 3}
    load_model(zegclip.DEFAULT_MODEL).save_with_base(str(folder))
    load_processor(zegclip.DEFAULT_MODEL, **geometry).save_pretrained(folder)


def run_pipeline(folder: Path, model: Path, threads: int) -> dict[str, Any]:
    """Segment all pictures with one pipeline in some threads; seconds of each, memory, and a hash of each result."""
    paths = sorted(map(str, folder.iterdir()))
    segmenter = pipeline(TASK, model=str(model))
    segmenter(paths[0], candidate_labels=NAMES)
    process, memory, done = psutil.Process(), [], itertools.count(1)
    seconds = [0.0] * len(paths)
    digests = [""] * len(paths)
    lock = threading.Lock()

    def segment(number: int) -> None:
        start = time.perf_counter()
        result = segmenter(paths[number], candidate_labels=NAMES)
        seconds[number] = time.perf_counter() - start
        digests[number] = hashlib.sha256(b"".join(row["mask"].tobytes() for row in result)).hexdigest()
        with lock:
            finished = next(done)
            if finished % SAMPLE_EVERY == 0:
                memory.append((finished, process.memory_info().rss / 1e6))

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(tqdm(pool.map(segment, range(len(paths))), total=len(paths), desc=f"pipeline, {threads} threads"))
    whole = time.perf_counter() - start
    return {"seconds": seconds, "whole": whole, "memory": memory, "digests": digests}


def run_command(folder: Path, model: Path, output: Path) -> dict[str, Any]:
    """Run `zegclip segment` on all pictures; seconds between one result and the next, and memory meanwhile."""
    words = ["-m", "zegclip", "segment", str(folder), "--labels", ", ".join(NAMES), "--output", str(output)]
    words += ["--model", str(model)]
    memory = []
    start = time.perf_counter()
    with psutil.Popen([sys.executable, *words]) as process:  # shows its own progress
        while process.poll() is None:
            if done := len(list(output.glob("*.json"))):
                memory.append((done, process.memory_info().rss / 1e6))
            time.sleep(1)
    if process.returncode:
        raise RuntimeError(f"zegclip segment has ended with status {process.returncode}.")
    whole = time.perf_counter() - start
    written = sorted(path.stat().st_mtime for path in output.glob("*.json"))
    return {"seconds": np.diff(written).tolist(), "whole": whole, "memory": memory[:-1]}


def describe(name: str, result: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the figures of one way of segmenting."""
    seconds = np.array(result["seconds"])
    fifth = max(len(seconds) // 5, 1)
    done, held = np.array(result["memory"]).T
    late = done > count / 2
    return {
        "step": name,
        "pictures": count,
        "seconds": result["whole"],
        "pictures_per_s": count / result["whole"],
        **{f"p{share}_ms": float(np.percentile(seconds, share)) * 1000 for share in (50, 90, 99)},
        "max_ms": float(seconds.max()) * 1000,
        "last_fifth_to_first": float(np.median(seconds[-fifth:]) / np.median(seconds[:fifth])),
        **{f"mb_after_{share}%": float(np.interp(count * share / 100, done, held)) for share in (10, 50, 100)},
        "mb_per_1000_pictures_after_half": float(np.polyfit(done[late], held[late], 1)[0] * 1000),
        "memory_curve": [(int(number), round(float(size), 1)) for number, size in result["memory"]],
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw memory over pictures."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        axes.plot(*zip(*row["memory_curve"]), label=row["step"], linewidth=1)
    axes.set(xlabel="pictures", ylabel="resident memory, MB", ylim=(0, None))
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)


def load(pictures: int = 5000, threads: int = 4, figure: str = str(FIGURE)) -> dict[str, Any]:
    """Segment so many pictures in three ways, and draw the curves of memory into a PNG."""
    with tempfile.TemporaryDirectory() as text:
        folder, model = Path(text) / "pictures", Path(text) / "model"
        draw_pictures(folder, pictures)
        save_model(model)
        ways = {
            "pipeline": in_own_process(run_pipeline, folder, model, 1),
            f"pipeline, {threads} threads": in_own_process(run_pipeline, folder, model, threads),
            "zegclip segment": run_command(folder, model, Path(text) / "output"),
        }
    alone, shared, _ = ways.values()
    differing = sum(one != other for one, other in zip(alone["digests"], shared["digests"], strict=True))
    rows = [describe(name, way, pictures) for name, way in ways.items()]
    plot(rows, Path(figure))
    return {"rows": rows, "differing_between_threads": differing}


if __name__ == "__main__":
    run_cases(__doc__, load)
