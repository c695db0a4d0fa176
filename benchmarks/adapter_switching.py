"""
Measure what it costs to work with several adapters on one CLIP: switching, memory, file sizes.

    python benchmarks/adapter_switching.py

The model is ViT-B/16 at 512 pixels with random weights, or that of `--model`; its adapters are ZegCLIP's with 10 and
100 prompts, and one with 10 prompts and SPT-SEG's spectral prompt, all with the model's kind of decode head. They are
saved and loaded through the public interface, and outputs after switching are compared with those of models that hold
one adapter alone. Memory is that of tensors, as they are counted; the time to load a second model is of files that the
operating system has just seen.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import TIMES, ArgumentParser, alternate, print_table, spread, write_report
from transformers.utils import logging

from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation

ADAPTERS: dict[str, dict[str, Any]] = {
    "10 prompts": {"num_tokens": 10},
    "100 prompts": {"num_tokens": 100},
    "10 prompts and a spectral one": {"num_tokens": 10, "spectral_prompt": True},
}
SIDE = 512


def tensor_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.no_grad()
def see(model: ZegClipForSemanticSegmentation) -> torch.Tensor:
    """Return the logits of one random picture and three random names."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(1, 3, SIDE, SIDE, generator=generator)
    names = torch.randn(3, model.config.clip_config.projection_dim, generator=generator)
    return model(pictures, class_embeds=torch.nn.functional.normalize(names, dim=-1)).logits


def make_adapters(model: str | None, folder: Path) -> tuple[Path, dict[str, Path]]:
    """Save a base and its adapters; return their folders."""
    torch.manual_seed(0)
    if model is None:
        base = ZegClipForSemanticSegmentation(ZegClipConfig())
    else:
        base = ZegClipForSemanticSegmentation.from_pretrained(model)
        while base._hf_peft_config_loaded:
            base.delete_adapter(list(base.peft_config))
    base.save_pretrained(folder / "base")
    places = {}
    for name, fields in ADAPTERS.items():
        tuned = ZegClipForSemanticSegmentation.from_pretrained(folder / "base")
        tuned.add_adapter(DeepPromptConfig(**fields), name)
        with torch.no_grad():  # as if trained, so that outputs differ
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter += 0.02 * torch.randn_like(parameter)
        places[name] = folder / name.replace(" ", "_")
        tuned.save_pretrained(places[name])
    return folder / "base", places


def measure(model: str | None, repeats: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """Return figures of the steps and of what is held, and how far outputs are from those of an adapter alone."""
    held, logits, second, loading = [], {}, [], []
    with tempfile.TemporaryDirectory() as text:
        base_folder, places = make_adapters(model, Path(text))
        for name, place in places.items():
            start = time.perf_counter()
            alone = ZegClipForSemanticSegmentation.from_pretrained(place).eval()
            second.append(time.perf_counter() - start)
            logits[name] = see(alone)
        second_mb = tensor_bytes(alone) / 1e6
        del alone

        together = ZegClipForSemanticSegmentation.from_pretrained(base_folder).eval()
        for name, place in places.items():
            before, start = tensor_bytes(together), time.perf_counter()
            together.load_adapter(place, name)
            loading.append(time.perf_counter() - start)
            megabytes = (place / "adapter_model.safetensors").stat().st_size / 1e6
            held.append({"held": name, "memory_mb": (tensor_bytes(together) - before) / 1e6, "file_mb": megabytes})
    held.append({"held": "a second model", "memory_mb": second_mb})
    switches: dict[Any, Callable[[], Any]] = {name: partial(together.set_adapter, name) for name in places}
    times = alternate(
        switches | {"disable": together.disable_adapters, "enable": together.enable_adapters},
        repeats,
        title="switching",
    )
    steps = {
        "set_adapter": [seconds for name in places for seconds in times[name]],
        "disable_adapters": times["disable"],
        "enable_adapters": times["enable"],
        "load_adapter": loading,
        "loading a second model instead": second,
    }
    difference = 0.0
    for name in (*places, *reversed(places)):
        together.set_adapter(name)
        difference = max(difference, float((see(together) - logits[name]).abs().max()))
    return [{"step": name, **spread(seconds)} for name, seconds in steps.items()], held, difference


def main() -> None:
    """Parse the command line, measure, print the tables and save them as JSON."""
    parser = ArgumentParser(__doc__, "adapter_switching.json", repeats=50)
    parser.add_argument("--model", help="CLIP or model to take the base from; none: ViT-B/16 with random weights")
    arguments = parser.parse_args()

    logging.disable_progress_bar()
    steps, held, difference = measure(arguments.model, arguments.repeats)
    print_table(steps, {"step": "{step}", **TIMES})
    print()
    print_table(held, {"held": "{held}", "memory, MB": "{memory_mb:.1f}", "file, MB": "{file_mb:.1f}"})
    print(f"\nLargest difference from a model with one adapter: {difference:.1e}")
    name = arguments.model or "ViT-B/16, random weights"
    write_report(arguments.output, {"model": name, "steps": steps, "held": held, "largest_difference": difference})


if __name__ == "__main__":
    main()
