"""
Speed and memory of the methods on ViT-B/16 at 512x512, with random weights, pictures and class embeddings.

    python benchmarks/speed.py inference            # beside peers and the machine's limit
    python benchmarks/speed.py training_step
    python benchmarks/speed.py text_tower           # names of several lengths, against one padded batch
    python benchmarks/speed.py growth               # with names, pixels, pictures, windows and megapixels
    python benchmarks/speed.py big_pictures         # against holding all scores at full resolution
    python benchmarks/speed.py adapter_switching    # several adapters on one CLIP

    bash benchmarks/on_gpu.sh                       # the first two on a GPU

Steps that are compared take turns; times are medians over turns, ratios medians of the turns' own ratios. The limit is
a product of large matrices: a share of it is operations over time, relative to that product's. Memory is what a first
step in a process of its own needs at its peak, above the model and its inputs.
"""

import copy
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from measuring import (
    RESULTS,
    added_memory,
    alternate,
    count_flops,
    count_syncs,
    exponent,
    in_own_process,
    matrix_product,
    ratio,
    run_cases,
    spread,
)
from peers import bare_tower, clipseg, clipseg_steps, merge_directly
from real_size import METHODS, SIDE, TEMPLATE_IDS, build, name_embeds, name_tokens, pictures
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.int8 import quantize_vision_tower
from zegclip.processing.benchmarks import read_class_lists
from zegclip.processing.merging import merge_masks
from zegclip.processing.windows import WindowLogits, predict_windows

Rows = list[dict[str, Any]]
Call = Callable[[], Any]
STRIDE = 426  # of the papers' windows
OCCURRING = 8  # names in each picture of a training step
PEER_REPEATS = 2


class Step(NamedTuple):
    """What is timed for inference: the name of a step, its precision, pictures and names."""

    step: str
    dtype: str
    batch: int | None = None
    names: int | None = None


@torch.no_grad()
def inference(
    names: Sequence[int] = (20, 171, 1000),
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    batches: Sequence[int] = (1, 8),
    device: str = "cpu",
    peers: bool = True,
    repeats: int = 5,
) -> dict[str, Rows]:
    """
    How fast pictures are segmented into many names, class embeddings given. Beside the methods stand:

    * the bare tower: transformers' `CLIPVisionModel` alone, with as many tokens as ZegCLIP's, prompts included;
    * CLIPSeg: transformers' `CLIPSegForImageSegmentation` (ViT-B/16), which takes each pair of picture and name, at
      its own size of 352 pixels and at 512; and the same at 512 with its tower called once for all names, by hand;
    * the machine: the product of large matrices.

    The best name of each pixel and the encoding of names are steps of their own. Precisions are float32 and bfloat16,
    both with " compiled" behind them for PyTorch's inductor, and "int8 compiled", torchao's dynamic quantization of
    the linear layers of the vision tower with it. Compiled models get one picture and the first number of names.
    """
    torch._dynamo.config.recompile_limit = 64  # all methods are one class, so one function to the compiler
    steps, flops = inference_steps(names, dtypes, batches, device)
    times = alternate(steps, repeats, device, title="methods")
    rows = []
    for step, seconds in times.items():
        row = {**step._asdict(), **spread(seconds)}
        limit, as_float = Step("machine: matrix product", step.dtype), step._replace(dtype="float32")
        tower = step._replace(step="bare tower, sdpa", names=None)
        if step in flops:
            row |= {"gflop": flops[step] / 1e9, "gflop_per_s": flops[step] / 1e6 / row["median_ms"]}
            if limit in times:
                row["share_of_limit"] = flops[step] / flops[limit] / ratio(seconds, times[limit])
        if step.step in METHODS and tower in times:
            row["relative_to_tower"] = ratio(seconds, times[tower])
        if step != as_float and as_float in times:
            row["relative_to_float32"] = ratio(seconds, times[as_float])
        rows.append(row)
    if peers:
        model = clipseg(device)
        # They take minutes, so only what they are compared with takes turns with them. More names are more passes of
        # the same size, so the fewest have warmed up for all.
        for index, count in enumerate(names[:2]):
            ours = Step("ZegCLIP", "float32", 1, count)
            turns = {ours: steps[ours]}
            turns |= {ours._replace(step=name): step for name, step in clipseg_steps(model, count).items()}
            times = alternate(turns, PEER_REPEATS, device, title=f"peers, {count} names", warm_up=int(index == 0))
            own = times.pop(ours)
            rows += [
                {**step._asdict(), **spread(seconds), "relative_to_zegclip": ratio(seconds, own)}
                for step, seconds in times.items()
            ]
    return {"rows": rows}


def inference_steps(
    names: Sequence[int], dtypes: Sequence[str], batches: Sequence[int], device: str
) -> tuple[dict[Step, Call], dict[Step, int]]:
    """Return the steps of all methods, of the bare tower and of the machine, and their operations."""
    steps: dict[Step, Call] = {}
    flops: dict[Step, int] = {}
    counted: dict[tuple[str, int | None], int] = {}

    def add(step: Step, call: Call, model: torch.nn.Module, one: Call) -> None:
        """Add a step; its operations are those of `one` picture, which are counted in the first precision alone."""
        steps[step] = call
        if (step.step, step.names) not in counted:
            counted[step.step, step.names] = count_flops(model, one)
        flops[step] = counted[step.step, step.names] * (step.batch or 1)

    for dtype_name in dtypes:
        compiled = dtype_name.endswith("compiled")
        base = dtype_name.removesuffix("compiled").strip()
        dtype = torch.float32 if base == "int8" else getattr(torch, base)
        if not compiled:
            limit = Step("machine: matrix product", dtype_name)
            steps[limit], flops[limit] = matrix_product(dtype, device)
        for method in METHODS:
            model = build(method).to(device, dtype).eval()
            if method == "ZegCLIP" and not compiled:
                tokens = 1 + (SIDE // 16) ** 2 + model.peft_config["default"].num_tokens
                for attention, batch in product(("sdpa", "eager"), batches):
                    tower, through = bare_tower(tokens, device, dtype, attention)
                    step = Step(f"bare tower, {attention}", dtype_name, batch)
                    add(step, partial(through, batch), tower, partial(through, 1))
                for count in names:
                    encode = partial(model.get_class_embeds, name_tokens(model, count))
                    add(Step("encoding the names", dtype_name, None, count), encode, model, encode)
                    logits = torch.randn(1, count, SIDE // 16, SIDE // 16, device=device, dtype=dtype)
                    windows = WindowLogits(logits, [(0, 0, SIDE, SIDE)], SIDE, SIDE)
                    steps[Step("best name of each pixel", dtype_name, 1, count)] = partial(merge_masks, windows)
            runs: Any = model
            if base == "int8":
                runs = copy.deepcopy(model)
                quantize_vision_tower(runs)
            if compiled:
                runs = torch.compile(runs)
            for batch in [1] if compiled else batches:
                # How names weigh is seen with one picture.
                for count in names if batch == 1 and not compiled else names[:1]:
                    given = {"pixel_values": pictures(model, batch), "class_embeds": name_embeds(model, count)}
                    one = partial(model, **{**given, "pixel_values": given["pixel_values"][:1]})
                    add(Step(method, dtype_name, batch, count), partial(runs, **given), model, one)
    return steps, flops


def training_step(
    names: Sequence[int] = (20, 171),
    dtypes: Sequence[str] = ("float32",),
    batch: int = 2,
    device: str = "cpu",
    repeats: int = 3,
) -> dict[str, Rows]:
    """
    What a training step of each method costs: pictures a second, memory, operations, and where they go.

    Forward, backward and a step of AdamW, as the Trainer runs them, with autocast for bfloat16. Methods with text
    prompts encode all names anew in each step.
    """
    rows = []
    for dtype, count in product(dtypes, names):
        words = {method: (method, dtype, count, batch, device) for method in METHODS}
        memory = {method: in_own_process(memory_of_training, *words[method]) for method in METHODS}
        prepared = {method: prepare_training(*words[method]) for method in METHODS}
        limit, limit_flops = matrix_product(getattr(torch, dtype), device)
        steps = {"limit": limit} | {method: step for method, (*_, step) in prepared.items()}
        times = alternate(steps, repeats, device, title=f"{dtype}, {count} names")
        for method, (model, optimizer, *passes) in prepared.items():
            forward, learn = (count_flops(model, one) for one in passes[:2])
            state = [tensor for values in optimizer.state.values() for tensor in values.values() if tensor.numel() > 1]
            row = {"method": method, "dtype": dtype, "names": count, "batch": batch, **spread(times[method])}
            row |= {
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
            if device == "cuda":
                row["syncs"] = count_syncs(steps[method])
            rows.append(row)
    return {"rows": rows}


def prepare_training(
    method: str, dtype: str, names: int, batch: int, device: str
) -> tuple[torch.nn.Module, torch.optim.Optimizer, Call, Call, Call]:
    """Return a model, its optimizer, and steps: forward alone, forward and backward, and the whole."""
    model = build(method).to(device).train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-5)
    images = pictures(model, batch)
    # Stripes of OCCURRING names: how many of all names a picture has decides what a loss costs.
    ids = torch.stack([torch.randperm(names, device=device)[:OCCURRING] for _ in range(batch)])
    stripes = torch.arange(SIDE, device=device) * ids.shape[1] // SIDE
    labels = ids[:, None, stripes].expand(-1, SIDE, -1).contiguous()
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

    return model, optimizer, forward, learn, step


def text_tower(repeats: int = 5, device: str = "cpu") -> dict[str, Rows]:
    """
    How long class names take, for ZegCLIP alone and for LDVC's text prompts with their gradients.

    A word or mark is a token, a word of more than eight letters two. The names are compared with as many that all have
    the length of the longest, which is what one padded batch costs.
    """
    rows = []
    models = {method: build(method).to(device).train() for method in ("ZegCLIP", "LDVC")}
    *template, end = TEMPLATE_IDS
    for title in ("voc", "pascal_context_59", "coco_stuff"):
        names = read_class_lists()[title]["names"]
        lengths = [sum(1 + (len(word) > 8) for word in re.findall(r"\w+|[^\w\s]", name)) for name in names]
        ids = [torch.tensor([*template, *range(1000, 1000 + length), end]) for length in lengths]
        input_ids = pad_sequence(ids, batch_first=True, padding_value=end).to(device)
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(device)
        longest = input_ids[lengths.index(max(lengths))].expand_as(input_ids)

        def learn(input_ids: torch.Tensor, mask: torch.Tensor) -> None:
            models["LDVC"].get_class_embeds(input_ids, mask).sum().backward()

        for step, encode in (("encoding", torch.no_grad()(models["ZegCLIP"].get_class_embeds)), ("LDVC", learn)):
            calls = {"own": partial(encode, input_ids, mask), "equal": partial(encode, longest, torch.ones_like(mask))}
            times = alternate(calls, repeats, device, title=f"{step}, {title}")
            row = {"step": step, "names": title, "rows": len(names), **spread(times["own"])}
            rows.append(row | {"relative_to_padded": ratio(times["own"], times["equal"])})
    return {"rows": rows}


def memory_of_training(method: str, dtype: str, names: int, batch: int, device: str) -> float:
    """MB that a first step adds at its peak."""
    *_, step = prepare_training(method, dtype, names, batch, device)
    return added_memory(step, device)


USUAL = {"names": 20, "pixels": SIDE**2, "pictures": 1, "windows": 1}
SIZES = {
    "names": (5, 20, 171, 1000, 5000),
    "pixels": (224**2, 384**2, 512**2, 768**2, 1024**2),
    "pictures": (1, 2, 4, 8),
    "windows": (1, 2, 4, 8, 16),
    "megapixels": (0.25, 1.0, 4.0, 12.0, 50.0),
}


@torch.inference_mode()
def growth(repeats: int = 3) -> dict[str, Rows]:
    """
    How time and memory of ZegCLIP grow with the sizes of its task, up to the best name of each pixel.

    Pixels are those of one window. Megapixels are those of the mask of a picture of 4:3 in the papers' windows, which
    are cut out of the picture at a short side of 512; reading and resizing it are not counted. Sizes of one kind take
    turns. The exponent is the slope of a line through the logarithms: 1 where twice the size takes twice the time.
    Draws docs/images/growth.png.
    """
    model = build("ZegCLIP").eval()
    rows, exponents = [], []
    for kind, sizes in SIZES.items():
        memory = [in_own_process(memory_of_growth, kind, size) for size in sizes]
        times = alternate({size: prepare_growth(model, kind, size) for size in sizes}, repeats, title=kind)
        of_kind = [
            {"of": kind, "size": size, **spread(times[size]), "peak_mb": peak}
            for size, peak in zip(sizes, memory, strict=True)
        ]
        medians = [row["median_ms"] for row in of_kind]
        powers = {"time": exponent(sizes, medians), "memory": exponent(sizes, memory)}
        exponents.append({"of": kind, "from": sizes[0], "to": sizes[-1], **powers})
        rows += of_kind
    draw_growth(rows, RESULTS.parents[1] / "docs" / "images" / "growth.png")
    return {"rows": rows, "exponents": exponents}


def draw_growth(rows: Rows, path: Path) -> None:
    """Draw time and memory over each kind of size, on logarithmic axes, beside the line of what is proportional."""
    figure = Figure(figsize=(3 * len(SIZES), 5.5), layout="constrained")
    axes = figure.subplots(2, len(SIZES))
    for column, kind in zip(axes.T, SIZES, strict=True):
        sizes = [row["size"] for row in rows if row["of"] == kind]
        for axis, field, title in zip(column, ("median_ms", "peak_mb"), ("ms", "peak, MB"), strict=True):
            values = [row[field] for row in rows if row["of"] == kind]
            axis.loglog(sizes, values, "o-")
            axis.loglog(sizes, [values[-1] * size / sizes[-1] for size in sizes], "--", color="grey")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.set(xlabel=kind, ylabel=title, ylim=(min(values) / 2, 2 * max(values)))
    figure.savefig(path, dpi=80)


def prepare_growth(model: ZegClipForSemanticSegmentation, kind: str, size: float) -> Call:
    """Return a step that segments random pictures, all but one size as usual."""
    if kind == "megapixels":
        height = math.isqrt(int(size * 750_000))
        whole, few = (height, height * 4 // 3), name_embeds(model, USUAL["names"])
        resized = pictures(model, 1, SIDE, SIDE * 4 // 3)
        return lambda: merge_masks(predict_windows(model, resized, few, SIDE, STRIDE), whole)
    sizes = USUAL | {kind: int(size)}
    embeds = name_embeds(model, sizes["names"])
    side = math.isqrt(sizes["pixels"])
    if kind == "windows":
        wide = pictures(model, 1, side, side * sizes["windows"])
        return lambda: merge_masks(predict_windows(model, wide, embeds, side, side))
    batch = pictures(model, sizes["pictures"], side, side)

    def segment() -> None:
        for logits in model(pixel_values=batch, class_embeds=embeds).logits:
            merge_masks(WindowLogits(logits[None], [(0, 0, side, side)], side, side))

    return segment


@torch.inference_mode()
def memory_of_growth(kind: str, size: float) -> float:
    """MB that a first step adds at its peak."""
    model = build("ZegCLIP").eval()
    step = prepare_growth(model, kind, size)
    model(pixel_values=pictures(model, 1, 64, 64), class_embeds=name_embeds(model, 5))
    return added_memory(step)


def big_pictures(names: int = 171, repeats: int = 1) -> dict[str, Any]:
    """
    Time and memory of ZegCLIP on big pictures with many names, in windows of 512 pixels every 426.

    First as the papers do (the picture is resized to a short side of 512 pixels, and scores go back to its own size),
    then in windows of its full resolution. "direct" keeps the scores of all names for all pixels, as the official
    code does. Each run has a process of its own.
    """
    rows: Rows = []
    for size, of in product(((1500, 2000), (3000, 4000)), ("the resized picture", "the picture itself")):
        scale = 1 if of == "the picture itself" else SIDE / min(size)
        runs: dict[str, Rows] = {"ours": [], "direct": []}
        for _, way in product(range(repeats), runs):
            runs[way].append(in_own_process(segment_big, size, names, scale, way))
        for way, some in runs.items():
            medians = {name: statistics.median(run[name] for run in some) for name in some[0]}
            rows.append({"picture": f"{size[1]}x{size[0]}", "windows of": of, "way": way, **medians, "runs": some})
    return {"names": names, "rows": rows}


@torch.inference_mode()
def segment_big(size: tuple[int, int], names: int, scale: float, way: str) -> dict[str, float]:
    """Segment one picture; return windows, seconds in the model and after it, and MB."""
    model = build("ZegCLIP").eval()
    embeds = name_embeds(model, names)
    picture = pictures(model, 1, *(round(side * scale) for side in size))
    model(pixel_values=picture[:, :, :64, :64], class_embeds=embeds)  # what is built once is not the picture's
    figures: dict[str, float] = {}

    def segment() -> None:
        start = time.perf_counter()
        windows = predict_windows(model, picture, embeds, SIDE, STRIDE)
        middle = time.perf_counter()
        (merge_masks if way == "ours" else merge_directly)(windows, size)
        figures.update(windows=len(windows.boxes), model_s=middle - start, merge_s=time.perf_counter() - middle)

    peak = added_memory(segment)
    return figures | {"peak_mb": peak}


ADAPTERS: dict[str, dict[str, Any]] = {
    "10 prompts": {"num_tokens": 10},
    "100 prompts": {"num_tokens": 100},
    "10 prompts and a spectral one": {"num_tokens": 10, "spectral_prompt": True},
}


def adapter_switching(repeats: int = 50) -> dict[str, Any]:
    """
    What it costs to work with several adapters on one CLIP: switching, memory, file sizes.

    Adapters are saved and loaded through the public interface, and outputs after switching are compared with those of
    models that hold one adapter alone. Memory is that of tensors, as they are counted; the time to load a second
    model is of files that the operating system has just seen.
    """
    logging.disable_progress_bar()
    held, logits, seconds = [], {}, {"load_adapter": [], "loading a second model instead": []}

    def timed(name: str, call: Call) -> Any:
        start = time.perf_counter()
        result = call()
        seconds[name].append(time.perf_counter() - start)
        return result

    with tempfile.TemporaryDirectory() as text:
        base, *folders = save_adapters(Path(text))
        for folder in folders:
            load = partial(ZegClipForSemanticSegmentation.from_pretrained, folder)
            alone = timed("loading a second model instead", load).eval()
            logits[folder.name] = logits_of(alone)
        second_mb = tensor_mb(alone)
        del alone
        together = ZegClipForSemanticSegmentation.from_pretrained(base).eval()
        for folder in folders:
            before = tensor_mb(together)
            timed("load_adapter", partial(together.load_adapter, folder, folder.name))
            file_mb = (folder / "adapter_model.safetensors").stat().st_size / 1e6
            held.append({"held": folder.name, "memory_mb": tensor_mb(together) - before, "file_mb": file_mb})
    held.append({"held": "a second model", "memory_mb": second_mb})
    steps = {("set_adapter", name): partial(together.set_adapter, name) for name in ADAPTERS}
    steps |= {(name, ""): getattr(together, name) for name in ("disable_adapters", "enable_adapters")}
    for (name, _), times in alternate(steps, repeats, title="switching").items():
        seconds.setdefault(name, []).extend(times)
    differences = []
    for name in (*ADAPTERS, *reversed(ADAPTERS)):
        together.set_adapter(name)
        differences.append(float((logits_of(together) - logits[name]).abs().max()))
    rows = [{"step": name, **spread(times)} for name, times in seconds.items()]
    return {"steps": rows, "held": held, "largest_difference": max(differences)}


def save_adapters(folder: Path) -> list[Path]:
    """Save a base, and adapters with its kind of decode head in folders of their names; return all folders."""
    torch.manual_seed(0)
    base = folder / "base"
    ZegClipForSemanticSegmentation(ZegClipConfig()).save_pretrained(base)
    for name, fields in ADAPTERS.items():
        tuned = ZegClipForSemanticSegmentation.from_pretrained(base)
        tuned.add_adapter(DeepPromptConfig(**fields), name)
        with torch.no_grad():  # as if trained, so that outputs differ
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter += 0.02 * torch.randn_like(parameter)
        tuned.save_pretrained(folder / name)
    return [base, *(folder / name for name in ADAPTERS)]


@torch.no_grad()
def logits_of(model: ZegClipForSemanticSegmentation) -> torch.Tensor:
    """Return the logits of one random picture and three random names."""
    return model(pictures(model, 1), class_embeds=name_embeds(model, 3)).logits


def tensor_mb(model: torch.nn.Module) -> float:
    """Return the MB of a model's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers())) / 1e6


if __name__ == "__main__":
    run_cases(__doc__, inference, training_step, text_tower, growth, big_pictures, adapter_switching)
