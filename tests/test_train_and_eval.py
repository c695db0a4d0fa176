"""The two scripts, run as a user runs them, on a tiny CLIP and a handful of drawn scenes."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from small_run import CONFIG, DATA, SMALL, cut_short, options, read_weights
from transformers import CLIPImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from zegclip import ZegClipForSemanticSegmentation
from zegclip.errors import UsageError, reporting_errors
from zegclip.loading import load_processor
from zegclip.picture_world.dataset import export_picture_world
from zegclip.training import evaluate as evaluate_command
from zegclip.training import train as train_command
from zegclip.training.arguments import parse_arguments
from zegclip.training.data import load_data
from zegclip.training.run_folder import lock_output_dir

pytestmark = pytest.mark.thorough

SPT_SEG = {
    "decode_head_type": "spectral", "decode_head_init": "default", "decoder_low_frequency_heads": 1,
    "spectral_prompt": True, "ssim_weight": 1, "dice_weight": 0,
}  # fmt: skip
LDVC = {
    "decode_head_type": "consensus", "decode_head_init": "default", "num_decoder_layers": 2, "out_indices": [0, 1],
    "decoder_window_size": 2, "decoder_top_k": 4, "dice_weight": 1,
}  # fmt: skip
EACH_STEP = {
    "max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 5, "logging_steps": 1,
    "learning_rate": 0.01, "warmup_steps": 0,
}  # fmt: skip
MODEL_ROW = "model, papers' protocol"


def train(clip_folder, output, **fields):
    fields = SMALL | {"model": clip_folder, "output_dir": output, "max_steps": 2} | fields
    return train_command.train([CONFIG, *options(**fields)])


def evaluate(run, output, **fields):
    return evaluate_command.evaluate([CONFIG, *options(model=run, output_dir=output, **(DATA | fields))])


def export(folder, /, **splits):
    """Write drawn scenes as a data set with the given number of pictures in each split; return its folder."""
    for name, count in splits.items():
        export_picture_world(folder / name, "train", count)
    return folder


def read_state(run):
    return json.loads((run / "trainer_state.json").read_text())


def test_train_saves_an_adapter_that_eval_reads(clip_folder, tmp_path, capsys):
    run = tmp_path / "run"
    metrics = train(clip_folder, run, eval_strategy="steps", eval_steps=1, report_to="tensorboard")
    files = {path.name for path in run.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "processor_config.json", "tokenizer.json"} <= files
    assert {path.name for path in run.glob("samples/*.png")} == {"step_000001.png", "step_000002.png"}
    for path in (run / "curves.png", *run.glob("samples/*.png")):
        with Image.open(path) as picture:
            assert picture.size > (100, 100)
    assert list(run.rglob("events.out.tfevents.*"))
    printed = capsys.readouterr().out
    for suffix in ("txt", "csv", "md"):
        table = (run / f"per_class.{suffix}").read_text()
        assert "lamp" in table
        assert "unseen" in table
    assert (run / "per_class.txt").read_text().strip() in printed

    results = evaluate(run, tmp_path / "eval")
    folder = tmp_path / "eval" / "eval_picture_world_tuning"
    assert results == json.loads((folder / "results.json").read_text())
    assert evaluate(run, tmp_path / "eval") == results  # from the counts in the folder
    for name in ("pacc", "miou_seen", "miou_unseen", "hiou", "objects_hiou"):
        assert results[MODEL_ROW][name] == pytest.approx(metrics[f"eval_{name}"], nan_ok=True)
    printed = capsys.readouterr().out
    assert len(results) == len(list(folder.glob("per_class_*.csv"))) == 4
    for row in results:
        assert row.startswith(("model, ", "training-free baseline, "))
        assert row in printed


WHOLE = LDVC | {"text_prompts": "whole", "text_prompt_init": "template"}
NO_VISUAL = LDVC | {"text_prompts": "whole", "text_prompt_init": "random", "num_prompt_tokens": 0}
# Of each run: setting, fields, terms of the loss beside the focal one, and the towers with prompts.
RUNS = {
    "zegclip": ("inductive", {}, ["dice"], ["vision"]),
    "zegclip, transductive": ("transductive", {}, ["dice"], ["vision"]),
    "zegclip, fully supervised": ("fully_supervised", {}, ["dice"], ["vision"]),
    "zegclip, text prompts": ("inductive", {"text_prompts": "words"}, ["dice"], ["vision", "text"]),
    "spt_seg, transductive": ("transductive", SPT_SEG, ["ssim"], ["vision"]),
    "ldvc": ("inductive", WHOLE, ["dice"], ["vision", "text"]),
    "ldvc, words": ("inductive", WHOLE | {"text_prompts": "words"}, ["dice"], ["vision", "text"]),
    "ldvc, transductive": ("transductive", NO_VISUAL, ["dice"], ["text"]),
    "ldvc, fully supervised": ("fully_supervised", NO_VISUAL, ["dice"], ["text"]),
    "consensus head": (
        "inductive", LDVC | {"decoder_top_k": 0, "cross_entropy_weight": 1}, ["dice", "cross_entropy"], ["vision"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RUNS)
def test_every_method_is_trained_resumed_and_evaluated(clip_folder, tmp_path, capsys, monkeypatch, case):
    # The last bits of a name's embedding depend on the list in which it was encoded first.
    monkeypatch.setenv("ZEGCLIP_CACHE", "0")
    setting, fields, losses, prompted = RUNS[case]
    fields = EACH_STEP | fields | {"setting": setting, "eval_strategy": "steps", "eval_steps": 2}
    run = tmp_path / "run"
    metrics = train(clip_folder, run, **fields)
    stages = [run / "inductive", run] if setting == "transductive" else [run]
    steps = 4 // len(stages)
    for stage in stages:
        state = read_state(stage)
        assert state["global_step"] == steps
        terms = [
            {name: value for name, value in entry.items() if name.startswith("loss_")}
            for entry in state["log_history"]
            if "loss" in entry
        ]
        assert [set(found) for found in terms] == [{"loss_focal", *(f"loss_{name}" for name in losses)}] * steps
        assert all(value > 0 for found in terms for value in found.values())

    # All of the adapter is trained, in each stage, and nothing else.
    adapters = [load_file(folder / "adapter_model.safetensors") for folder in (stages[0] / "checkpoint-1", *stages)]
    for before, after in pairwise(adapters):
        assert before.keys() == after.keys()
        assert [name for name in before if torch.equal(before[name], after[name])] == []
    trained = ZegClipForSemanticSegmentation.from_pretrained(run)
    base = ZegClipForSemanticSegmentation.from_pretrained(clip_folder, config=trained.config)
    weights = {name.replace(".base_layer", ""): tensor for name, tensor in trained.clip.state_dict().items()}
    for name, tensor in base.clip.state_dict().items():
        assert torch.equal(weights[name], tensor), name
    seen_all = set(trained.config.seen_class_names) == set(trained.config.id2label.values())
    assert seen_all == (setting == "fully_supervised")
    tokens = {
        tower: [name for name in adapters[-1] if f"{tower}_model.encoder.deep_prompt_tokens" in name]
        for tower in ("vision", "text")
    }
    assert [tower for tower, names in tokens.items() if names] == prompted
    for name in tokens["text"]:  # each token is trained
        first, last = adapters[0][name], adapters[-1][name]
        assert last.shape == (2, 11 if fields["text_prompts"] == "whole" else 9, 32)  # letters: a tiny vocabulary
        assert (first - last).abs().amax(dim=-1).min() > 0

    files = {path.name: path.read_bytes() for path in (run / "adapter_model.safetensors", run / "per_class.csv")}
    cut_short(run, steps // 2)
    capsys.readouterr()
    assert train(clip_folder, run, **fields).keys() == metrics.keys()
    assert str(run / f"checkpoint-{steps // 2}") in capsys.readouterr().out
    assert {name: (run / name).read_bytes() for name in files} == files
    # Finished, it is evaluated once more with what is loaded from the folder.
    assert train(clip_folder, run, **fields)["eval_pacc"] == metrics["eval_pacc"]

    results = evaluate(run, tmp_path / "eval", baseline=False, setting=setting)
    for name in metrics.keys() & {"eval_pacc", "eval_miou_seen", "eval_miou_unseen", "eval_hiou"}:
        assert results[MODEL_ROW][name.removeprefix("eval_")] == pytest.approx(metrics[name], nan_ok=True)
    # Few pixels are right after so few steps, but the table says which classes were found.
    table = tmp_path / "eval" / "eval_picture_world_tuning" / "per_class_model_papers_protocol.csv"
    assert table.read_bytes() == files["per_class.csv"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (LDVC | {"out_indices": [0, 2]}, "out_indices"),
        ({"decode_head_type": "consensus", "decode_head_init": "default"}, "out_indices"),
        ({"text_prompts": "whole", "prompt_templates": ["the {} there"]}, "template"),
        ({"text_prompts": "whole", "prompt_templates": ["a {}", "the {}"]}, "template"),
        ({"text_prompts": "all"}, "text_prompts"),
        ({"dense_attention": "naclip"}, "num_prompt_tokens"),
        ({"text_prompts": "whole", "text_prompt_init": "zero"}, "text_prompt_init"),
        ({"setting": "transductive", "resume_from_checkpoint": "run/checkpoint-1"}, "resume_from_checkpoint"),
    ],
)
def test_fields_that_contradict_each_other_are_named(clip_folder, tmp_path, capsys, fields, named):
    with pytest.raises(SystemExit), reporting_errors("train.py"):
        train(clip_folder, tmp_path / "run", **fields)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert named in line


@pytest.mark.parametrize(("fields", "side"), [({}, 6), ({"spectral_grid_size": 5}, 5)])
def test_the_spectral_filter_has_the_grid_of_the_training_crops(clip_folder, tmp_path, fields, side):
    """The CLIP is configured for 4x4 patches of 8 pixels, crops are of 48."""
    model_args, data_args, _ = parse_arguments([CONFIG, *options(model=clip_folder, **(SMALL | SPT_SEG | fields))])
    _, split = load_data(data_args, training=True)
    processor = load_processor(clip_folder, for_training=True, **data_args.image_processor_fields())
    tuned, names = train_command.build_model(model_args, "inductive", split, processor, data_args.crop_size)
    weights = tuned.base_model.model.clip.vision_model.encoder.deep_prompt_filter["default"]
    assert weights.shape == (side, side // 2 + 1, 32, 2)

    tuned.save_pretrained(tmp_path / "adapter")
    adapter_alone = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter")
    clip = ZegClipForSemanticSegmentation.from_pretrained(clip_folder, config=tuned.base_model.model.config)
    on_a_base = PeftModel.from_pretrained(clip, tmp_path / "adapter")
    for size in ((48, 48), (40, 56)):
        inputs = {"pixel_values": torch.randn(2, 3, *size), **names}
        with torch.no_grad():
            expected = tuned.eval()(**inputs).logits
            for model in (adapter_alone, on_a_base):
                torch.testing.assert_close(model.eval()(**inputs).logits, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("fields", "step"),
    [
        pytest.param({"bf16": True}, 2, id="mixed_precision"),
        # Without an optimiser's state, training starts anew and ends alike.
        pytest.param({"save_only_model": True}, 3, id="save_only_model"),
        # At step 4 of 3 an epoch.
        pytest.param({"max_steps": 6, "save_total_limit": 6, "dataloader_num_workers": 1}, 4, id="later_epoch"),
        # As when the disk is full just after the last step, in the middle of an epoch.
        pytest.param({}, 4, id="after_the_last_step"),
    ],
)
def test_a_run_goes_on_with_the_same_bits(clip_folder, tmp_path, capsys, fields, step):
    fields, run = EACH_STEP | fields, tmp_path / "run"
    train(clip_folder, run, **fields)
    undisturbed = read_weights(run)
    cut_short(run, step)
    for name in ("eval_results.json", "all_results.json"):
        (run / name).write_text("{")
    written = {path: path.stat().st_mtime_ns for path in run.glob("checkpoint-*")}
    capsys.readouterr()
    train(clip_folder, run, **fields)
    assert f"checkpoint-{step}" in capsys.readouterr().out
    assert read_weights(run) == undisturbed
    assert read_state(run)["global_step"] == len(list(run.glob("checkpoint-*"))) == fields["max_steps"]
    if step == fields["max_steps"]:
        assert {path: path.stat().st_mtime_ns for path in run.glob("checkpoint-*")} == written
    if "bf16" in fields:
        train(clip_folder, tmp_path / "float", **(fields | {"bf16": False}))
        assert read_weights(tmp_path / "float") != undisturbed


@pytest.mark.parametrize("greater", [True, False])
def test_the_best_checkpoint_is_evaluated_saved_and_found_where_a_run_is_moved_to(clip_folder, tmp_path, greater):
    fields = EACH_STEP | {
        "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "pacc",
        "greater_is_better": greater, "learning_rate": 0.03,
    }  # fmt: skip
    run, moved = tmp_path / "run", tmp_path / "moved"
    metrics = train(clip_folder, run, **fields)
    state, weights = read_state(run), read_weights(run)
    assert greater or state["best_global_step"] < 4
    results = evaluate(run, tmp_path / "eval", baseline=False)
    assert state["best_metric"] == pytest.approx(metrics["eval_pacc"])
    assert results[MODEL_ROW]["pacc"] == pytest.approx(metrics["eval_pacc"])
    run.rename(moved)
    for step in (3, 4):  # The fourth is the last one.
        cut_short(moved, step)
        train(clip_folder, moved, **fields)
        assert read_weights(moved) == weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_clip_in_half_precision_is_trained_in_float32(model, clip_folder, tmp_path, dtype):
    model.clip.to(dtype).save_pretrained(clip_folder)
    train(clip_folder, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_folder_goes_on_with_its_own_settings_alone(clip_folder, tmp_path):
    run = tmp_path / "run"
    train(clip_folder, run, save_strategy="steps", save_steps=1)
    before = read_weights(run)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "hiou", "eval_strategy": "steps"}
    best |= {"save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    for fields in ({"learning_rate": 0.1}, best):
        with pytest.raises(UsageError, match=re.escape(str(run))):
            train(clip_folder, run, **fields)
        assert read_weights(run) == before
    with pytest.raises(UsageError, match="learning_rate"):
        train(clip_folder, tmp_path / "other", learning_rate=0.01, resume_from_checkpoint=run / "checkpoint-1")

    evaluate(run, tmp_path / "eval", baseline=False)
    path = run / "processor_config.json"
    described = json.loads(path.read_text())
    described["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match="image_processor"):
        evaluate(run, tmp_path / "eval", baseline=False)
    with pytest.raises(UsageError, match="init_adapter"):
        evaluate(run, tmp_path / "eval", init_adapter="there")


def test_unseen_classes_that_were_trained_on_are_named(clip_folder, tmp_path, capsys):
    train(clip_folder, tmp_path / "run", setting="fully_supervised")
    for setting, warned in (("inductive", True), ("fully_supervised", False)):
        capsys.readouterr()
        evaluate(tmp_path / "run", tmp_path / setting, baseline=False, setting=setting)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "Warning" in line] or [""]
        assert ("trained on masks of 'fish'" in line) == warned


def test_classes_that_were_trained_on_are_known_in_any_case(clip_folder, tmp_path, capsys):
    folder = export(tmp_path, folder=2) / "folder"
    fields = {"dataset": folder, "eval_split": "train"}
    train(clip_folder, tmp_path / "run", setting="fully_supervised", unseen_classes="cat", **fields)
    names = (folder / "classes.txt").read_text()
    (folder / "classes.txt").write_text(names.replace("cat\n", "Cat\n").replace("sky\n", "Sky\n"))
    capsys.readouterr()
    evaluate(tmp_path / "run", tmp_path / "eval", baseline=False, setting="inductive", unseen_classes="Cat", **fields)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "Warning" in line]
    assert "trained on masks of 'Cat'" in line


def test_the_embedded_model_is_evaluated_on_classes_that_it_was_not_trained_on(tmp_path, capsys):
    for more, warned in (([], False), (["--eval_split=tuning"], True)):
        folder = str(tmp_path / f"results_{warned}")
        evaluate_command.evaluate(["--use_cpu", "--num_eval_pictures", "1", "--results_dir", folder, *more])
        assert ("count as unseen here" in capsys.readouterr().out) == warned


def test_seen_classes_that_were_not_trained_on_are_named(clip_folder, tmp_path, capsys):
    train(clip_folder, tmp_path / "run")
    for split, warned in (("tuning", False), ("test", True)):
        capsys.readouterr()
        evaluate(tmp_path / "run", tmp_path / split, baseline=False, eval_split=split)
        assert ("not trained on masks of 'fish' and 12 more" in capsys.readouterr().out) == warned


def test_names_that_the_clip_cannot_know_are_printed_before_the_work(clip_folder, tmp_path, capsys):
    folder = export(tmp_path, folder=2) / "folder"
    names = (folder / "classes.txt").read_text().split("\n")
    (folder / "classes.txt").write_text("\n".join(["pelican", *names[1:]]))
    described = json.loads((clip_folder / "config.json").read_text())
    described["vocabulary"] = ["a", "photo", "of", *names]
    (clip_folder / "config.json").write_text(json.dumps(described))
    fields = {"dataset": folder, "eval_split": "train", "unseen_classes": "cat"}
    train(clip_folder, tmp_path / "run", **fields)
    evaluate(tmp_path / "run", tmp_path / "eval", baseline=False, **fields)
    training, evaluation = capsys.readouterr().out.split("Evaluating ")
    for printed, work in ((training, "Training "), (evaluation, "2 pictures, split")):
        assert "'pelican'" in printed.split(work)[0]


def test_init_adapter_continues_an_adapter_and_model_does_not(clip_folder, tmp_path, capsys):
    """With no step that changes anything, self-training ends with the weights of the adapter that it starts from."""
    first = tmp_path / "first"
    train(clip_folder, first, learning_rate=0.01, warmup_steps=0)
    assert "--init_adapter" not in capsys.readouterr().out
    train(first, tmp_path / "anew")
    assert f"--init_adapter {first}" in capsys.readouterr().out
    fields = {"setting": "transductive", "learning_rate": 0, "weight_decay": 0, "lr_scheduler_type": "constant"}
    train(clip_folder, tmp_path / "second", init_adapter=first, **fields)
    before, after = (load_file(run / "adapter_model.safetensors") for run in (first, tmp_path / "second"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def seen_names(run):
    return json.loads((run / "adapter_config.json").read_text())["model_config"]["seen_class_names"]


def test_what_an_initial_adapter_was_trained_on_was_trained_on(clip_folder, tmp_path, capsys):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    train(clip_folder, first, setting="fully_supervised")
    assert "count as unseen here" not in capsys.readouterr().out
    train(clip_folder, second, init_adapter=first)
    assert f"{first} was trained on masks of 'fish' and " in capsys.readouterr().out
    assert set(seen_names(second)) == set(seen_names(first)) > {"fish", "house"}
    assert seen_names(second).index("fish") > seen_names(second).index("house")
    (row,) = [line for line in (second / "README.md").read_text().splitlines() if "seen (masks in training)" in line]
    assert "fish" in row
    assert "model-index" not in (second / "README.md").read_text()  # These are no figures of unseen classes.
    evaluate(second, tmp_path / "eval", baseline=False)
    assert "this model was trained on masks of 'fish'" in capsys.readouterr().out

    train(clip_folder, third, setting="transductive")
    assert seen_names(third) == seen_names(third / "inductive")
    assert "fish" not in seen_names(third)
    assert "count as unseen here" not in capsys.readouterr().out


def test_a_model_is_evaluated_on_classes_of_another_data_set(clip_folder, tmp_path):
    train(clip_folder, tmp_path / "run")
    folder = export(tmp_path, folder=2) / "folder"
    fields = {"dataset": folder, "eval_split": "train", "setting": "cross_dataset", "baseline": False}
    for figures in evaluate(tmp_path / "run", tmp_path / "eval", **fields).values():
        assert 0 <= figures["miou"] <= 100
        assert not figures.get("hiou", 0) > 0


@pytest.mark.parametrize(
    "fields",
    [{}, {"text_prompts": "words"}, pytest.param({"setting": "transductive"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_classes_with_several_names(clip_folder, tmp_path, fields):
    """They have one loss and one figure; that a class is its own synonym changes nothing."""
    folder = export(tmp_path, folder=4) / "folder"
    lines = (folder / "classes.txt").read_text().split()
    fields = {"dataset": folder, "eval_split": "train", "unseen_classes": "cat", "baseline": False} | fields
    trained = {}
    for kind, suffix in {"one": "", "same": "/{}", "two": "/{}s"}.items():
        text = "".join(f"{name}{suffix.format(name) if name in ('cat', 'sky') else ''}\n" for name in lines)
        (folder / "classes.txt").write_text(text)
        metrics = train(clip_folder, tmp_path / kind, **fields, learning_rate=0.01, warmup_steps=0)
        figures = evaluate(tmp_path / kind, tmp_path / f"eval {kind}", **fields)[MODEL_ROW]
        for name, value in figures.items():
            assert value == pytest.approx(metrics[f"eval_{name}"], nan_ok=True)
        trained[kind] = read_weights(tmp_path / kind)
        table = (tmp_path / kind / "per_class.csv").read_text().splitlines()
        assert len(table) == len(lines) + 1
    assert trained["one"] == trained["same"] != trained["two"]
    seen = json.loads((tmp_path / "two" / "config.json").read_text())["seen_class_names"]
    assert {"sky", "skys"} < set(seen)
    assert not {"cat", "cats"} & set(seen)
    with pytest.raises(UsageError, match="names"):
        train(clip_folder, tmp_path / "one", **fields, learning_rate=0.01, warmup_steps=0)


def counted(output, title="model"):
    """What an evaluation has counted under each protocol, picture by picture."""
    (file,) = output.glob(f"eval_*/{title}/counts-*.jsonl")
    return [json.loads(line)["counts"] for line in file.read_text().splitlines()]


def test_a_plain_clip_is_evaluated_without_training(clip_folder, tmp_path):
    """In any of the ways to do so, and as the baseline of what was trained on it."""
    clip_folder = shutil.copytree(clip_folder, tmp_path / "with_numbers")
    # Its own numbers are those that it is trained with, so that a blend sees the same pictures as the baseline.
    numbers = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    CLIPImageProcessorPil(**numbers).save_pretrained(clip_folder)
    fields = {"prompt_templates": "a {}", "window_size": 48}
    found = {}
    for method in ("naclip", "sclip", "plain"):
        evaluate(clip_folder, tmp_path / method, dense_attention=method, **fields)
        found[method] = counted(tmp_path / method)
    assert found["naclip"] != found["sclip"] != found["plain"]
    evaluate(
        clip_folder, tmp_path / "usual", baseline=True, baseline_attention="naclip", similarity_scale=100, **fields
    )
    # By default it is NACLIP, as the baseline is; a scale alone does not change which name is the best.
    assert counted(tmp_path / "usual") == counted(tmp_path / "usual", "training-free_baseline") == found["naclip"]

    run = tmp_path / "run"
    train(clip_folder, run, learning_rate=0.01, warmup_steps=0, training_free_weight=0.5, **fields)
    evaluate(run, tmp_path / "eval", baseline=True, baseline_attention="naclip", training_free_weight=0)
    evaluate(
        run, tmp_path / "blended", baseline=True, baseline_attention="naclip", training_free_weight=1, seen_offset=0
    )
    of_blend, of_baseline = (counted(tmp_path / "blended", title) for title in ("model", "training-free_baseline"))
    assert [list(counts.values()) for counts in of_blend] == [list(counts.values()) for counts in of_baseline]
    # By default with the weight that it was trained with.
    rows = evaluate(run, tmp_path / "refined", baseline=True, baseline_attention="naclip", refine=True)
    assert set(rows) == {
        *(f"model, {name} protocol, refined, 0.5 training-free" for name in ("papers'", "free")),
        *(f"training-free baseline, {name} protocol, refined" for name in ("papers'", "free")),
    }
    assert "0.5 training-free" in (run / "README.md").read_text()
    evaluate(run, tmp_path / "other", baseline=True, baseline_attention="sclip", training_free_weight=0)
    assert counted(tmp_path / "other") == counted(tmp_path / "eval")
    assert counted(tmp_path / "other", "training-free_baseline") != counted(
        tmp_path / "eval", "training-free_baseline"
    )
    of_refined = counted(tmp_path / "refined", "training-free_baseline")
    assert [list(counts.values()) for counts in of_refined] != [list(counts.values()) for counts in of_baseline]


def test_the_scale_of_a_plain_clip_decides_which_scores_are_below_a_threshold(clip_folder, tmp_path):
    folder = export(tmp_path, folder=2) / "folder"
    lines = (folder / "classes.txt").read_text().split()
    (folder / "classes.txt").write_text("\n".join(["background", *lines[1:]]))
    fields = {"dataset": folder, "eval_split": "train", "setting": "cross_dataset", "prompt_templates": "a {}"}
    for scale in (1, 100):
        results = evaluate(
            clip_folder, tmp_path / str(scale), **fields, background_threshold=0.1, similarity_scale=scale
        )
        assert all(row.endswith(", background below 0.1") for row in results)
    assert counted(tmp_path / "1") != counted(tmp_path / "100")


@pytest.mark.parametrize(
    ("trained", "fields", "named"),
    [
        (False, {"training_free_weight": 0.5}, "training_free_weight"),
        (True, {"dense_attention": "naclip", "baseline": False}, "dense_attention"),
        (True, {"similarity_scale": 50, "baseline": False}, "similarity_scale"),
        (False, {"dense_attention": "dclip"}, "dense_attention"),
        (False, {"naclip_sigma": 0}, "naclip_sigma"),
        (False, {"background_threshold": 0.1}, "background_threshold"),
        (False, {"background_threshold": 2}, "background_threshold"),
        (False, {"window_size": -1}, "window_size"),
    ],
)
def test_what_means_nothing_in_an_evaluation_is_refused(clip_folder, tmp_path, capsys, trained, fields, named):
    if trained:
        train(clip_folder, tmp_path / "run")
    with pytest.raises(SystemExit), reporting_errors("eval.py"):
        evaluate(tmp_path / "run" if trained else clip_folder, tmp_path / "eval", **fields)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("eval.py: ")]
    assert named in line


def test_a_project_that_is_moved_goes_on(clip_folder, tmp_path, capsys):
    """Both stages, the model, the data and the evaluation's figures, from elsewhere with the same command."""
    project = tmp_path / "project"
    export(project / "data", train=6, tuning=2)
    clip_folder.rename(project / "clip")

    def go_on(root):
        capsys.readouterr()
        fields = {"setting": "transductive", "unseen_classes": "flower", "dataset": root / "data"}
        train(root / "clip", root / "run", **fields)
        return evaluate(root / "run", root / "eval", baseline=False, **fields), capsys.readouterr().out

    figures, _ = go_on(project)
    weights = read_weights(project / "run")
    moved = project.rename(tmp_path / "elsewhere")
    path = moved / "run" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(moved / "clip")}))
    again, printed = go_on(moved)
    assert "Training " not in printed
    assert "2 of 2 pictures" in printed
    assert again == figures
    assert read_weights(moved / "run") == weights
    # Masks that were repaired are other data, also for the first stage.
    mask = moved / "data" / "train" / "masks" / "000000.png"
    Image.effect_noise(Image.open(mask).size, 3).point(lambda value: value % 2).save(mask)
    with pytest.raises(UsageError, match=r"inductive .* pictures"):
        go_on(moved)


def test_a_corrupt_picture_in_the_middle_of_an_epoch(clip_folder, tmp_path, capsys):
    folder = export(tmp_path / "folder", train=6, tuning=2)
    broken = folder / "train" / "images" / "000003.png"
    broken.write_bytes(broken.read_bytes()[:500])
    fields = {"dataset": folder, "unseen_classes": "cat", "max_steps": 3}
    for workers in ("0", "1"):
        with pytest.raises(ValueError, match=r"images/000003\.png"):
            train(clip_folder, tmp_path / workers, dataloader_num_workers=workers, **fields)
        assert not (tmp_path / workers / "adapter_model.safetensors").exists()
    train(clip_folder, tmp_path / "run", skip_bad_samples=True, **fields)
    assert "000003.png" in capsys.readouterr().out
    assert "000003.png" in (tmp_path / "run" / "skipped_samples.txt").read_text()
    # A picture that cannot be read is none of those that were measured.
    (folder / "tuning" / "images" / "000000.png").write_bytes(b"")
    capsys.readouterr()
    evaluate(tmp_path / "run", tmp_path / "eval", baseline=False, skip_bad_samples=True, **fields)
    assert "\n1 pictures, split" in capsys.readouterr().out
    assert ", 1 pictures, " in (tmp_path / "run" / "README.md").read_text()


def test_what_is_probably_wrong_with_masks_is_printed_before_the_first_step(clip_folder, tmp_path, capsys):
    folder = export(tmp_path / "folder", train=2, tuning=2)
    for mask in folder.glob("*/masks/*"):
        Image.open(mask).point(lambda value: 255 * (value > 28)).save(mask)
    for names in folder.rglob("classes.txt"):
        names.write_text("sky\ngrass\n")
    fields = {"dataset": folder, "setting": "fully_supervised"}
    train(clip_folder, tmp_path / "run", **fields)
    before, _ = capsys.readouterr().out.split("Training ")
    (line,) = [line for line in before.splitlines() if line.startswith("note: train")]
    assert "grass" in line
    assert "255" in line
    evaluate(tmp_path / "run", tmp_path / "eval", baseline=False, **fields)
    before, _ = capsys.readouterr().out.split("2 pictures, split")
    assert re.search(r"^note: tuning .*grass", before, re.MULTILINE)


def test_a_training_that_diverges_names_its_pictures(clip_folder, tmp_path, capsys):
    fields = {"dataset": export(tmp_path / "folder", train=2, tuning=1), "unseen_classes": "cat"}
    fields |= {"max_steps": 5, "save_steps": 1, "learning_rate": 1e20, "warmup_steps": 0}
    with pytest.raises(SystemExit) as leaving, reporting_errors("train.py"):
        train(clip_folder, tmp_path / "run", **fields)
    assert leaving.value.code == 1
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert set(re.findall(r"\d{6}\.png", sentence)) == {"000000.png", "000001.png"}
    (step,), (checkpoint,) = re.findall(r"step (\d)", sentence), re.findall(r"\S+checkpoint-\d", sentence)
    assert checkpoint == str(tmp_path / "run" / f"checkpoint-{int(step) - 1}")
    weights = load_file(Path(checkpoint) / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_one_training_at_a_time_in_a_folder(clip_folder, tmp_path):
    with lock_output_dir(tmp_path / "run"), pytest.raises(UsageError, match="run: "):
        train(clip_folder, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_head_that_compares_names_is_trained_by_cross_entropy_alone(clip_folder, tmp_path):
    fields = {"decode_head_type": "similarity", "num_prompt_tokens": 2, "cross_entropy_weight": 1}
    with pytest.raises(UsageError, match="cross_entropy_weight"):
        train(clip_folder, tmp_path / "refused", **fields)
    train(clip_folder, tmp_path / "run", focal_weight=0, dice_weight=0, **fields)
    assert ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "run").config.score_function == "softmax"


def test_a_plain_clip_has_its_own_sizes_where_no_configuration_is_named(clip_folder, tmp_path):
    words = ["--model", clip_folder, "--num_eval_pictures", "1", "--prompt_templates", "a {}", "--use_cpu"]
    evaluate_command.evaluate([*map(str, words), "--results_dir", str(tmp_path)])
    used = json.loads((tmp_path / "model" / "evaluation.json").read_text())["image_processor"]
    expected = load_processor(clip_folder).image_processor.to_dict()
    assert {name: used[name] for name in ("size", "window_size", "image_mean")} == {
        name: json.loads(json.dumps(expected[name])) for name in ("size", "window_size", "image_mean")
    }
