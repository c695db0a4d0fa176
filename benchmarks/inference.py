"""
How fast pictures are segmented into many names, beside peers and the machine's limit.

    python benchmarks/inference.py
    python benchmarks/inference.py --device cuda --dtypes float32 bfloat16 --batches 1 32

ViT-B/16 at 512x512 with random weights and random pictures, class embeddings given. All steps take turns; times are
medians over turns, ratios medians of the turns' own ratios. Beside the methods stand:

* the bare tower: transformers' `CLIPVisionModel` alone, with as many tokens as ZegCLIP's, prompts included;
* CLIPSeg: transformers' `CLIPSegForImageSegmentation` (ViT-B/16), which takes each pair of picture and name, at its
  own size of 352 pixels and at 512; and the same at 512 with its tower called once for all names, by hand;
* the machine: a product of large matrices. A share of it is operations over time, relative to that product's.

The best name of each pixel and the encoding of names are steps of their own. "compiled" is PyTorch's inductor, and
"int8 compiled" torchao's dynamic quantization of the linear layers of the vision tower with it; both are measured with
one picture and the first number of names.
"""

from argparse import BooleanOptionalAction, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import (
    COPIED_MB,
    RESULTS,
    TIMES,
    ArgumentParser,
    alternate,
    count_flops,
    matrix_product,
    memory_copy,
    print_table,
    quantize_vision_tower,
    ratio,
    spread,
    write_report,
)
from real_size import METHODS, SIDE, build, name_embeds, name_tokens, pictures
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPVisionConfig, CLIPVisionModel

from zegclip.processing.windows import WindowLogits, merge_masks

PRECISIONS = ("float32", "bfloat16", "float32 compiled", "bfloat16 compiled", "int8 compiled")
COPY = ("machine: copy", "float32", "", "")
PRODUCT = "machine: matrix product"
PEER_NAMES_AT_ONCE = 20
PEER_SIDES = (352, 512)


def bare_tower(tokens: int, device: str, dtype: torch.dtype, attention: str) -> tuple[Any, Callable[[int], Any]]:
    """Return CLIP's vision tower and a pass through its layers with that many tokens, whatever the picture."""
    config = CLIPVisionConfig(patch_size=16, image_size=SIDE, attn_implementation=attention)
    tower = CLIPVisionModel(config).to(device, dtype).eval()
    picture = torch.randn(1, 3, SIDE, SIDE, device=device, dtype=dtype)
    more = torch.randn(1, tokens - (SIDE // 16) ** 2 - 1, config.hidden_size, device=device, dtype=dtype)

    def step(batch: int) -> Any:
        states = tower.pre_layrnorm(tower.embeddings(picture.expand(batch, -1, -1, -1)))
        states = torch.cat([states, more.expand(batch, -1, -1)], dim=1)
        return tower.encoder(inputs_embeds=states).last_hidden_state

    return tower, step


def clipseg(device: str, dtype: torch.dtype) -> CLIPSegForImageSegmentation:
    """Return a CLIPSeg with the sizes of the published ViT-B/16 one (rd64), and random weights."""
    config = CLIPSegConfig(vision_config={"patch_size": 16}, reduce_dim=64)
    torch.manual_seed(0)
    return CLIPSegForImageSegmentation(config).to(device, dtype).eval()


def clipseg_step(model: CLIPSegForImageSegmentation, count: int, side: int, shared_tower: bool) -> Callable[[], Any]:
    """Return a step that segments one picture into that many names, given as CLIPSeg's conditional embeddings."""
    picture = torch.randn(1, 3, side, side, device=model.device, dtype=model.dtype)
    embeds = torch.randn(count, model.config.projection_dim, device=model.device, dtype=model.dtype)

    def each_pair() -> Any:
        for names in embeds.split(PEER_NAMES_AT_ONCE):
            model(
                pixel_values=picture.expand(len(names), -1, -1, -1),
                conditional_embeddings=names,
                interpolate_pos_encoding=True,
            )

    def tower_once() -> Any:
        states = model.clip.vision_model(picture, output_hidden_states=True, interpolate_pos_encoding=True)
        activations = [states.hidden_states[index + 1] for index in model.extract_layers]
        for names in embeds.split(PEER_NAMES_AT_ONCE):
            model.decoder([state.expand(len(names), -1, -1) for state in activations], names)

    return tower_once if shared_tower else each_pair


Key = tuple[str, str, str, str]  # step, precision, pictures, names


def method_steps(arguments: Namespace) -> tuple[dict[Key, Callable[[], Any]], dict[Key, int]]:
    """Return the steps of all methods, of the bare tower and of the machine, and their operations."""
    device = arguments.device
    steps: dict[Key, Callable[[], Any]] = {}
    flops: dict[Key, int] = {}
    counted: dict[tuple[str, str], int] = {}

    def add(key: Key, step: Callable[[], Any], one: Callable[[], Any] | None = None, model: Any = None) -> None:
        """Add a step; its operations are those of `one` picture, which are counted in the first precision alone."""
        steps[key] = step
        name, _, batch, count = key
        if one is not None:
            if (name, count) not in counted:
                counted[name, count] = count_flops(model, one)
            flops[key] = counted[name, count] * int(batch or 1)

    steps[COPY] = memory_copy(device)
    for dtype_name in arguments.dtypes:
        compiled = dtype_name.endswith("compiled")
        base = dtype_name.removesuffix("compiled").strip()
        dtype = torch.float32 if base == "int8" else getattr(torch, base)
        if not compiled:
            product = (PRODUCT, dtype_name, "", "")
            steps[product], flops[product] = matrix_product(dtype, device)
        for method in METHODS:
            model = build(method).to(device, dtype).eval()
            if method == "ZegCLIP" and not compiled:
                tokens = 1 + (SIDE // 16) ** 2 + model.peft_config["default"].num_tokens
                for attention in ("sdpa", "eager"):
                    tower, through = bare_tower(tokens, device, dtype, attention)
                    for batch in arguments.batches:
                        key = (f"bare tower, {attention}", dtype_name, str(batch), "")
                        add(key, partial(through, batch), partial(through, 1), tower)
                for count in arguments.names:
                    encode = partial(model.get_class_embeds, name_tokens(model, count))
                    add(("encoding the names", dtype_name, "", str(count)), encode, encode, model)
                    logits = torch.randn(1, count, SIDE // 16, SIDE // 16, device=device, dtype=dtype)
                    windows = WindowLogits(logits, [(0, 0, SIDE, SIDE)], SIDE, SIDE)
                    add(("best name of each pixel", dtype_name, "1", str(count)), partial(merge_masks, windows))
            runs: Any = quantize_vision_tower(model) if base == "int8" else model
            if compiled:
                runs = torch.compile(runs)
            for batch in [1] if compiled else arguments.batches:
                # How names weigh is seen with one picture.
                for count in arguments.names if batch == 1 and not compiled else arguments.names[:1]:
                    inputs = {"pixel_values": pictures(model, batch), "class_embeds": name_embeds(model, count)}
                    one = partial(model, **{**inputs, "pixel_values": inputs["pixel_values"][:1]})
                    add((method, dtype_name, str(batch), str(count)), partial(runs, **inputs), one, model)
    return steps, flops


@torch.no_grad()
def measure(arguments: Namespace) -> list[dict[str, Any]]:
    """Return a row of figures for each step."""
    device = arguments.device
    steps, flops = method_steps(arguments)
    times = alternate(steps, arguments.repeats, device, title="methods")
    rows = []
    for key, seconds in times.items():
        name, dtype_name, batch, count = key
        row = describe(key, seconds, flops.get(key, 0))
        product = (PRODUCT, dtype_name, "", "")
        if key in flops and product in times:
            row["share_of_limit"] = flops[key] / flops[product] / ratio(seconds, times[product])
        tower = ("bare tower, sdpa", dtype_name, batch, "")
        if name in METHODS and tower in times:
            row["relative_to_tower"] = ratio(seconds, times[tower])
        as_float = (name, "float32", batch, count)
        if dtype_name != "float32" and as_float in times:
            row["relative_to_float32"] = ratio(seconds, times[as_float])
        if key == COPY:
            row["gb_per_s"] = 2 * COPIED_MB / row["median_ms"]
        rows.append(row)
    if arguments.peers:
        peer = clipseg(device, torch.float32)
        for count in arguments.names[:2]:
            # They take minutes, so only what they are compared with takes turns with them.
            ours = ("ZegCLIP", "float32", "1", str(count))
            turns = {ours: steps[ours]}
            for side in PEER_SIDES:
                turns[f"CLIPSeg at {side}", "float32", "1", str(count)] = clipseg_step(peer, count, side, False)
            turns["CLIPSeg at 512, tower once", "float32", "1", str(count)] = clipseg_step(peer, count, 512, True)
            # More names are more passes of the same size, so the fewest have warmed up for all.
            warm_up = int(count == arguments.names[0])
            times = alternate(turns, arguments.peer_repeats, device, title=f"peers, {count} names", warm_up=warm_up)
            own = times.pop(ours)
            rows += [
                describe(key, seconds, 0) | {"relative_to_zegclip": ratio(seconds, own)}
                for key, seconds in times.items()
            ]
    return rows


def describe(key: Key, seconds: list[float], flops: int) -> dict[str, Any]:
    """Return a step's name, its times and, where they are known, its operations."""
    row: dict[str, Any] = {**dict(zip(("step", "dtype", "batch", "names"), key, strict=True)), **spread(seconds)}
    if flops:
        row |= {"gflop": flops / 1e9, "gflop_per_s": flops / 1e6 / row["median_ms"]}
    return row


COLUMNS = {
    "step": "{step}",
    "precision": "{dtype}",
    "batch": "{batch}",
    "names": "{names}",
    **TIMES,
    "GFLOP": "{gflop:.0f}",
    "GFLOP/s": "{gflop_per_s:.0f}",
    "share of the matrix rate": "{share_of_limit:.0%}",
    "to the bare tower": "{relative_to_tower:.2f}",
    "to float32": "{relative_to_float32:.2f}",
    "to ZegCLIP": "{relative_to_zegclip:.1f}",
    "GB/s": "{gb_per_s:.1f}",
}


def main() -> None:
    """Parse the command line, measure, print the table and save it as JSON."""
    parser = ArgumentParser(__doc__, repeats=5)
    parser.add_argument("--names", nargs="+", type=int, default=[20, 171, 1000])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=PRECISIONS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peers", action=BooleanOptionalAction, default=True, help="measure CLIPSeg too")
    parser.add_argument("--peer_repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/inference_DEVICE.json)")
    arguments = parser.parse_args()

    torch._dynamo.config.recompile_limit = 64  # all methods are one class, so one function to the compiler
    rows = measure(arguments)
    print_table(rows, COLUMNS)
    write_report(arguments.output or RESULTS / f"inference_{arguments.device}.json", {"rows": rows})


if __name__ == "__main__":
    main()
