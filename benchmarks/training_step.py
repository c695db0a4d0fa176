"""
What a training step of each method costs: pictures a second, memory, operations, and where they go.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --device cuda --batch 16 --dtypes bfloat16

ViT-B/16 at 512x512 with random weights, pictures and labels; forward, backward and a step of AdamW, as the Trainer
runs them, with autocast for bfloat16. Methods with text prompts encode all names anew in each step. The methods take
turns, also with the product of large matrices that their share of the machine's limit refers to. Memory is what a
first step in a process of its own needs at its peak, above the model.
"""

from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from measuring import (
    RESULTS,
    TIMES,
    ArgumentParser,
    added_memory,
    alternate,
    count_flops,
    in_own_process,
    matrix_product,
    print_table,
    ratio,
    spread,
    write_report,
)
from real_size import METHODS, SIDE, build, name_embeds, name_tokens, pictures


def prepare(method: str, dtype: str, names: int, batch: int, device: str) -> tuple[Any, dict[str, Callable[[], Any]]]:
    """Return a model, its optimiser, and steps: forward alone, forward and backward, and the whole."""
    model = build(method).to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    images = pictures(model, batch)
    labels = torch.randint(names, (batch, SIDE, SIDE), device=device)
    text = {"class_embeds": name_embeds(model, names)}
    if model.peft_config["default"].text_prompts is not None:
        text = {"input_ids": name_tokens(model, names)}

    def forward() -> torch.Tensor:
        with torch.autocast(device, getattr(torch, dtype)) if dtype != "float32" else nullcontext():
            return model(pixel_values=images, labels=labels, **text).loss

    def learn() -> None:
        optimizer.zero_grad()
        forward().backward()

    def step() -> None:
        learn()
        optimizer.step()

    return (model, optimizer), {"forward": forward, "learn": learn, "step": step}


def memory_of_first_step(method: str, dtype: str, names: int, batch: int, device: str) -> float:
    """MB that a first step adds at its peak."""
    _, steps = prepare(method, dtype, names, batch, device)
    return added_memory(steps["step"], device)


def measure(arguments: Namespace, names: int, dtype: str) -> list[dict[str, Any]]:
    """Return a row of figures for each method."""
    device, batch = arguments.device, arguments.batch
    memory = {method: in_own_process(memory_of_first_step, method, dtype, names, batch, device) for method in METHODS}
    prepared = {method: prepare(method, dtype, names, batch, device) for method in METHODS}
    limit, limit_flops = matrix_product(getattr(torch, dtype), device)
    steps: dict[str, Callable[[], Any]] = {"limit": limit}
    steps |= {method: prepared[method][1]["step"] for method in METHODS}
    times = alternate(steps, arguments.repeats, device, title=f"{dtype}, {names} names")
    rows = []
    for method, ((model, optimizer), passes) in prepared.items():
        forward, learn = (count_flops(model, passes[name]) for name in ("forward", "learn"))
        state = [tensor for values in optimizer.state.values() for tensor in values.values() if tensor.numel() > 1]
        row = {"method": method, "dtype": dtype, "names": names, "batch": batch, **spread(times[method])}
        rows.append(
            row
            | {
                "pictures_per_s": batch / (row["median_ms"] / 1000),
                "relative_to_zegclip": ratio(times[method], times["ZegCLIP"]),
                "forward_gflop": forward / 1e9,
                "backward_gflop": (learn - forward) / 1e9,
                "share_of_limit": learn / limit_flops / ratio(times[method], times["limit"]),
                "peak_mb": memory[method],
                "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                "frozen_parameters": sum(p.numel() for p in model.parameters() if not p.requires_grad),
                "frozen_with_gradient": sum(p.grad is not None for p in model.parameters() if not p.requires_grad),
                "optimizer_mb": sum(tensor.numel() * tensor.element_size() for tensor in state) / 1e6,
            }
        )
    return rows


COLUMNS = {
    "precision": "{dtype}",
    "names": "{names}",
    "method": "{method}",
    **TIMES,
    "to ZegCLIP": "{relative_to_zegclip:.2f}",
    "pictures/s": "{pictures_per_s:.2f}",
    "GFLOP forward + backward": "{forward_gflop:.0f} + {backward_gflop:.0f}",
    "share of the matrix rate": "{share_of_limit:.0%}",
    "peak, MB": "{peak_mb:.0f}",
    "trained parameters": "{trained_parameters:,}",
    "frozen parameters": "{frozen_parameters:,}",
    "optimiser, MB": "{optimizer_mb:.0f}",
}


def main() -> None:
    """Parse the command line, measure, print the table and save it as JSON."""
    parser = ArgumentParser(__doc__, repeats=3)
    parser.add_argument("--names", nargs="+", type=int, default=[20, 171])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="JSON (default: benchmarks/results/training_step_DEVICE.json)")
    arguments = parser.parse_args()

    rows = [row for dtype in arguments.dtypes for names in arguments.names for row in measure(arguments, names, dtype)]
    print_table(rows, COLUMNS)
    write_report(arguments.output or RESULTS / f"training_step_{arguments.device}.json", {"rows": rows})


if __name__ == "__main__":
    main()
