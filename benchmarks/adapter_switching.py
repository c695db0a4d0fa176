"""
Measure what it costs to work with several adapters on one CLIP: switching, memory, file sizes.

    python benchmarks/adapter_switching.py

The model is ViT-B/16 at 512 pixels with random weights, or that of `--model`; its adapters are ZegCLIP's with 10 and
100 prompts, and one with 10 prompts and SPT-SEG's spectral prompt, all with the model's kind of decode head. They are
saved and loaded through the public interface, and outputs after switching are compared with those of models that hold
one adapter alone. Memory is that of tensors, as they are counted; the time to load a second model is of files that the
operating system has just seen.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, print_table, spread, write_report
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


def timed(step: Callable[[], Any]) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


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


def measure(model: str | None, repeats: int) -> dict[str, Any]:
    """Return all figures."""
    with tempfile.TemporaryDirectory() as text:
        base_folder, places = make_adapters(model, Path(text))
        alone, second = {}, []
        for name, place in places.items():
            start = time.perf_counter()
            one = ZegClipForSemanticSegmentation.from_pretrained(place).eval()
            second.append(time.perf_counter() - start)
            alone[name] = see(one)
            second_mb = tensor_bytes(one) / 1e6
            del one

        together = ZegClipForSemanticSegmentation.from_pretrained(base_folder).eval()
        adapters = {}
        for name, place in places.items():
            before = tensor_bytes(together)
            loading = timed(lambda place=place, name=name: together.load_adapter(place, name))  # type: ignore[misc]
            adapters[name] = {
                "memory_mb": (tensor_bytes(together) - before) / 1e6,
                "file_mb": (place / "adapter_model.safetensors").stat().st_size / 1e6,
                "load_ms": loading * 1000,
            }
        switching: dict[str, list[float]] = {"set_adapter": [], "disable_adapters": [], "enable_adapters": []}
        for turn in range(repeats + 1):
            for name in places:
                switching["set_adapter"].append(timed(lambda name=name: together.set_adapter(name)))  # type: ignore[misc]
            switching["disable_adapters"].append(timed(together.disable_adapters))
            switching["enable_adapters"].append(timed(together.enable_adapters))
            if turn == 0:  # warms up
                for times in switching.values():
                    times.clear()
        difference = 0.0
        for name in (*places, *reversed(places)):
            together.set_adapter(name)
            difference = max(difference, float((see(together) - alone[name]).abs().max()))
    return {
        "model": model or "ViT-B/16, random weights",
        "switching": {name: spread(times) for name, times in switching.items()},
        "second_model": spread(second) | {"memory_mb": second_mb},
        "adapters": adapters,
        "largest_difference_from_alone": difference,
    }


def main() -> None:
    """Parse the command line, measure, print the tables and save them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="CLIP or model to take the base from; none: ViT-B/16 with random weights")
    parser.add_argument("--repeats", type=int, default=50, help="rounds of switching")
    parser.add_argument("--output", type=Path, default=RESULTS / "adapter_switching.json")
    arguments = parser.parse_args()

    logging.disable_progress_bar()
    figures = measure(arguments.model, arguments.repeats)
    steps = figures["switching"] | {"loading a second model instead": figures["second_model"]}
    rows = [
        {
            "step": name,
            "median, ms": f"{step['median_ms']:.1f}",
            "min to max, ms": "{min_ms:.1f} to {max_ms:.1f}".format(**step),
        }
        for name, step in steps.items()
    ]
    print_table(rows)
    rows = [
        {"held": f"adapter: {name}", "memory, MB": f"{one['memory_mb']:.1f}", "file, MB": f"{one['file_mb']:.1f}"}
        for name, one in figures["adapters"].items()
    ]
    rows.append(
        {"held": "a second model", "memory, MB": f"{figures['second_model']['memory_mb']:.1f}", "file, MB": ""}
    )
    print()
    print_table(rows)
    print(f"\nLargest difference from a model with one adapter: {figures['largest_difference_from_alone']:.1e}")
    write_report(arguments.output, figures)


if __name__ == "__main__":
    main()
