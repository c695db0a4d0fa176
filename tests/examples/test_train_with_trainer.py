"""The plain Trainer trains an adapter that opens like every other."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

import zegclip

SCRIPT = Path(__file__).parents[2] / "examples" / "train_with_trainer.py"


def test_an_adapter_is_trained_and_opens_with_the_pipeline(tmp_path):
    """Blue above and brown below, which are not what these words mean to the CLIP."""
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "classes.txt").write_text("car\nhat\n")
    ids = np.repeat([0, 1], 30).astype(np.uint8)[:, None].repeat(90, axis=1)
    colours = np.array([[90, 140, 220], [120, 80, 30]], dtype=np.uint8)
    for number in range(8):
        Image.fromarray(colours[ids] + np.uint8(number)).save(tmp_path / f"data/images/{number}.png")
        Image.fromarray(ids).save(tmp_path / f"data/masks/{number}.png")
    words = [str(tmp_path / "data"), "--model", str(zegclip.DEFAULT_MODEL), "--output", str(tmp_path / "mine")]
    run = [sys.executable, str(SCRIPT), *words, "--size", "48", "--steps", "60", "--batch", "4"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    assert not [key for key in load_file(tmp_path / "mine" / "adapter_model.safetensors") if "text_model" in key]
    picture = Image.open(tmp_path / "data/images/0.png")
    for task, labels in (
        ("zero-shot-image-segmentation", {"candidate_labels": ["car", "hat"]}),
        ("image-segmentation", {}),
    ):
        found = {
            row["label"]: np.asarray(row["mask"]) > 0
            for row in pipeline(task, str(tmp_path / "mine"))(picture, **labels)
        }
        assert (found["car"][:25].mean(), found["hat"][35:].mean()) == (1, 1)
