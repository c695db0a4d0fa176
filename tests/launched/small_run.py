"""The smallest training that `train.py` does, and what is left of one that is killed."""

import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "zegclip_picture_world_inductive.yaml")
DATA = {"num_train_pictures": 6, "num_eval_pictures": 2, "window_stride": 48, "use_cpu": True}
MODEL = {"decoder_attention_heads": 2, "decoder_ffn_dim": 32, "num_prompt_tokens": 2}
SMALL = DATA | MODEL | {"total_train_batch_size": 2}
"""Fields of a training."""


def options(**fields: Any) -> list[str]:
    """Fields as the words of a command line."""
    words = []
    for name, value in fields.items():
        words += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return words


def read_weights(run: Path) -> bytes:
    """The file of a run's adapter."""
    return (run / "adapter_model.safetensors").read_bytes()


def cut_short(run: Path, step: int) -> None:
    """Remove what a run that is killed after its checkpoint of a step does not have."""
    for path in run.glob("checkpoint-*"):
        if int(path.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(path)
    for name in ("adapter_model.safetensors", "trainer_state.json"):
        (run / name).unlink()
