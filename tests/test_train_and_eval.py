"""The two scripts, run as a user runs them, on a tiny CLIP and a handful of drawn scenes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file

from zegclip import ZegClipForSemanticSegmentation
from zegclip.errors import reporting_errors
from zegclip.loading import load_processor
from zegclip.picture_world.dataset import export_picture_world
from zegclip.training import evaluate as evaluate_command
from zegclip.training import train as train_command
from zegclip.training.arguments import parse_arguments
from zegclip.training.data import load_data
from zegclip.training.run_folder import lock_output_dir

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs" / "zegclip_picture_world_inductive.yaml")
SMALL = ["--num_train_pictures", "6", "--num_eval_pictures", "2", "--total_train_batch_size", "2", "--use_cpu"]
WINDOWS = ["--window_stride", "48"]
HEAD = ["--decoder_attention_heads", "2", "--decoder_ffn_dim", "32", "--num_prompt_tokens", "2", *WINDOWS]
SPT_SEG = [
    "--decode_head_type", "spectral", "--decode_head_init", "default", "--decoder_low_frequency_heads", "1",
    "--spectral_prompt", "true", "--ssim_weight", "1", "--dice_weight", "0",
]  # fmt: skip
LDVC = [
    "--decode_head_type", "consensus", "--decode_head_init", "default", "--num_decoder_layers", "2",
    "--out_indices", "0", "1", "--decoder_window_size", "2", "--decoder_top_k", "4", "--dice_weight", "1",
]  # fmt: skip


def train(clip_folder, output, *words):
    arguments = [CONFIG, "--model", str(clip_folder), "--output_dir", str(output), "--max_steps", "2"]
    return train_command.train([*arguments, *SMALL, *HEAD, *words])


def evaluate(run, output, *words):
    arguments = ["--model", str(run), "--output_dir", str(output), "--window_stride", "48"]
    return evaluate_command.evaluate([CONFIG, *arguments, *SMALL, *words])


def test_train_saves_an_adapter_that_eval_reads(clip_folder, tmp_path, capsys):
    metrics = train(clip_folder, tmp_path / "run")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "processor_config.json", "tokenizer.json"} <= files
    results = evaluate(tmp_path / "run", tmp_path / "eval")
    folder = tmp_path / "eval" / "eval_picture_world_tuning"
    assert results == json.loads((folder / "results.json").read_text())
    assert evaluate(tmp_path / "run", tmp_path / "eval") == results  # the same command goes on
    for name in ("pacc", "miou_seen", "miou_unseen", "hiou", "objects_hiou"):
        assert results["model, papers' protocol"][name] == pytest.approx(metrics[f"eval_{name}"], nan_ok=True)
    printed = capsys.readouterr().out
    assert len(results) == 4
    for row in results:
        assert row.startswith(("model, ", "training-free baseline, "))
        assert row in printed
    assert len(list(folder.glob("per_class_*.csv"))) == 4


def test_training_leaves_what_people_look_at(clip_folder, tmp_path, capsys):
    train(clip_folder, tmp_path / "run", "--eval_strategy", "steps", "--eval_steps", "1", "--report_to", "tensorboard")
    run = tmp_path / "run"
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


@pytest.mark.parametrize("setting", ["transductive", "fully_supervised"])
def test_other_settings_train_with_one_command(clip_folder, tmp_path, setting):
    train(clip_folder, tmp_path / "run", "--setting", setting)
    model = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "run")
    trained_on_all = set(model.config.seen_class_names) == set(model.config.id2label.values())
    assert trained_on_all == (setting == "fully_supervised")
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == (1 if setting == "transductive" else 2)
    if setting == "transductive":
        first = json.loads((tmp_path / "run" / "inductive" / "trainer_state.json").read_text())
        assert first["global_step"] == 1
        started = load_file(tmp_path / "run" / "inductive" / "adapter_model.safetensors")
        ended = load_file(tmp_path / "run" / "adapter_model.safetensors")
        assert started.keys() == ended.keys()
        assert not all(torch.equal(started[name], ended[name]) for name in started)


def test_spt_seg_is_trained_resumed_and_evaluated(clip_folder, tmp_path, capsys):
    words = [*SPT_SEG, "--setting", "transductive", "--max_steps", "4", "--logging_steps", "1"]
    words += ["--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "5"]
    train(clip_folder, tmp_path / "run", *words)
    for folder in (tmp_path / "run" / "inductive", tmp_path / "run"):
        log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        losses = [{name: value for name, value in entry.items() if name.startswith("loss_")} for entry in log]
        assert [set(terms) for terms in losses if terms] == [{"loss_focal", "loss_ssim"}] * 2
        assert all(value > 0 for terms in losses for value in terms.values())
    started = load_file(tmp_path / "run" / "inductive" / "adapter_model.safetensors")
    ended = load_file(tmp_path / "run" / "adapter_model.safetensors")
    (name,) = [name for name in ended if "filter" in name]
    assert not torch.equal(started[name], ended[name])

    weights = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    for name in ("adapter_model.safetensors", "trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    train(clip_folder, tmp_path / "run", *words)
    assert f"Resuming from {tmp_path / 'run' / 'checkpoint-1'}." in capsys.readouterr().out
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == weights

    evaluate(tmp_path / "run", tmp_path / "eval", "--baseline", "false")
    # Nothing is right after so few steps, but the table says which classes were found.
    table = tmp_path / "eval" / "eval_picture_world_tuning" / "per_class_model_papers_protocol.csv"
    assert table.read_text() == (tmp_path / "run" / "per_class.csv").read_text()


def tokens_of(folder, tower):
    """The prompts of one tower in a saved adapter, none if it has none."""
    weights = load_file(folder / "adapter_model.safetensors")
    return [tensor for name, tensor in weights.items() if f"{tower}.encoder.deep_prompt_tokens" in name]


@pytest.mark.parametrize("kind", ["whole", "words"])
def test_ldvc_is_trained_resumed_and_evaluated(clip_folder, tmp_path, capsys, kind):
    words = [
        *LDVC,
        "--text_prompts",
        kind,
        "--text_prompt_init",
        "template",
        "--max_steps",
        "4",
        "--logging_steps",
        "1",
    ]
    words += ["--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "5", "--learning_rate", "0.01"]
    words += ["--eval_strategy", "steps", "--eval_steps", "2", "--warmup_steps", "0"]
    run = tmp_path / "run"
    metrics = train(clip_folder, run, *words)
    described = json.loads((run / "adapter_config.json").read_text())
    assert described["text_prompts"] == kind
    assert described["model_config"]["out_indices"] == [0, 1]
    (first,), (last,) = tokens_of(run / "checkpoint-1", "text_model"), tokens_of(run, "text_model")
    assert first.shape == (2, 11 if kind == "whole" else 9, 32)  # letters: the tiny vocabulary knows few words
    assert (first - last).abs().amax(dim=-1).min() > 0

    files = {path.name: path.read_bytes() for path in (run / "adapter_model.safetensors", run / "per_class.csv")}
    for step in (3, 4):
        shutil.rmtree(run / f"checkpoint-{step}")
    for name in ("adapter_model.safetensors", "trainer_state.json"):
        (run / name).unlink()
    assert train(clip_folder, run, *words).keys() == metrics.keys()
    assert f"Resuming from {run / 'checkpoint-2'}." in capsys.readouterr().out
    assert {name: (run / name).read_bytes() for name in files} == files
    # Finished, it is evaluated once more with what is loaded from the folder.
    assert train(clip_folder, run, *words)["eval_pacc"] == metrics["eval_pacc"]

    results = evaluate(run, tmp_path / "eval")
    for name in ("pacc", "miou_seen", "miou_unseen", "hiou"):
        assert results["model, papers' protocol"][name] == pytest.approx(metrics[f"eval_{name}"], nan_ok=True)
    table = tmp_path / "eval" / "eval_picture_world_tuning" / "per_class_model_papers_protocol.csv"
    assert table.read_bytes() == files["per_class.csv"]

    # Nothing but the adapter has changed.
    trained = ZegClipForSemanticSegmentation.from_pretrained(run)
    base = ZegClipForSemanticSegmentation.from_pretrained(clip_folder, config=trained.config)
    for name, tensor in base.clip.state_dict().items():
        name = name.replace("_model.encoder.", "_model.encoder.base_layer.")
        assert torch.equal(trained.clip.state_dict()[name], tensor), name


@pytest.mark.parametrize("setting", ["transductive", "fully_supervised"])
def test_ldvc_trains_in_other_settings_without_visual_prompts(clip_folder, tmp_path, setting):
    words = [*LDVC, "--text_prompts", "whole", "--text_prompt_init", "random", "--num_prompt_tokens", "0"]
    train(clip_folder, tmp_path / "run", *words, "--setting", setting)
    assert tokens_of(tmp_path / "run", "text_model")
    assert not tokens_of(tmp_path / "run", "vision_model")
    if setting == "transductive":
        (first,), (last,) = (tokens_of(tmp_path / run, "text_model") for run in ("run/inductive", "run"))
        assert not torch.equal(first, last)
    evaluate(tmp_path / "run", tmp_path / "eval", "--baseline", "false", "--setting", setting)


def test_text_prompts_go_with_any_head(clip_folder, tmp_path):
    train(clip_folder, tmp_path / "run", "--text_prompts", "words")
    assert tokens_of(tmp_path / "run", "text_model")


def test_the_head_may_come_without_text_prompts(clip_folder, tmp_path):
    train(clip_folder, tmp_path / "run", *LDVC, "--decoder_top_k", "0", "--cross_entropy_weight", "1")
    assert not tokens_of(tmp_path / "run", "text_model")
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    terms = [{name for name in entry if name.startswith("loss_")} for entry in log if "loss" in entry]
    assert all(found == {"loss_focal", "loss_dice", "loss_cross_entropy"} for found in terms)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*LDVC, "--out_indices", "0", "2"], "out_indices names layer 2, but the vision tower has 0 to 1"),
        (["--decode_head_type", "consensus", "--decode_head_init", "default"], r"out_indices=\[7, 11\] must name one"),
        (["--text_prompts", "whole", "--prompt_templates", "the {} there"], "one template that ends with the name"),
        (["--text_prompts", "whole", "--prompt_templates", "a {}", "the {}"], "one template that ends with the name"),
        (["--text_prompts", "all"], 'text_prompts must be "whole", "words" or None'),
        (["--text_prompts", "whole", "--text_prompt_init", "zero"], "text_prompt_init must be"),
    ],
)
def test_what_contradicts_itself_is_one_sentence(clip_folder, tmp_path, capsys, words, message):
    arguments = [CONFIG, "--model", str(clip_folder), "--output_dir", str(tmp_path / "run"), *SMALL, *HEAD, *words]
    with pytest.raises(SystemExit), reporting_errors("train.py"):
        train_command.train(arguments)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert re.search(message, line), line


@pytest.mark.parametrize(("words", "side"), [([], 6), (["--spectral_grid_size", "5"], 5)])
def test_the_spectral_filter_has_the_grid_of_the_training_crops(clip_folder, tmp_path, words, side):
    """The CLIP is configured for 4x4 patches of 8 pixels, crops are of 48."""
    arguments = [CONFIG, "--model", str(clip_folder), *SMALL, *HEAD, *SPT_SEG, *words]
    model_args, data_args, _ = parse_arguments(arguments)
    _, split = load_data(data_args, training=True)
    processor = load_processor(clip_folder, **data_args.image_processor_fields())
    build_model = train_command.build_model
    tuned, names = build_model(model_args, "inductive", split, processor, data_args.crop_size)
    weights = tuned.base_model.model.clip.vision_model.encoder.deep_prompt_filter["default"]
    assert weights.shape == (side, side // 2 + 1, 32, 2)

    tuned.save_pretrained(tmp_path / "adapter")
    adapter_alone = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter")
    clip = ZegClipForSemanticSegmentation.from_pretrained(clip_folder, config=tuned.base_model.model.config)
    put_on = PeftModel.from_pretrained(clip, tmp_path / "adapter")
    for size in ((48, 48), (40, 56)):
        inputs = {"pixel_values": torch.randn(2, 3, *size), **names}
        with torch.no_grad():
            expected = tuned.eval()(**inputs).logits
            for model in (adapter_alone, put_on):
                torch.testing.assert_close(model.eval()(**inputs).logits, expected, atol=1e-6, rtol=0)


def test_a_run_that_ended_after_its_last_step_is_not_trained_further(clip_folder, tmp_path, capsys):
    """As when the disk is full just then: the last checkpoint is there, but not what comes after it."""
    words = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "4"]  # in the middle of an epoch
    train(clip_folder, tmp_path / "run", *words)
    weights = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    for name in ("adapter_model.safetensors", "trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    for name in ("eval_results.json", "all_results.json"):
        (tmp_path / "run" / name).write_text("{")
    train(clip_folder, tmp_path / "run", *words)
    assert "checkpoint-4: the training has finished before" in capsys.readouterr().out
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == weights
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 4


@pytest.mark.parametrize("greater", ["true", "false"])
def test_the_last_figures_are_those_of_the_model_that_is_saved(clip_folder, tmp_path, greater):
    """With the best checkpoint loaded at the end, that is not the last step's."""
    words = ["--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps"]
    words += ["--save_steps", "2", "--save_total_limit", "5", "--load_best_model_at_end", "true"]
    words += ["--metric_for_best_model", "pacc", "--greater_is_better", greater, "--learning_rate", "0.1"]
    metrics = train(clip_folder, tmp_path / "run", *words, "--warmup_steps", "0")
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    results = evaluate(tmp_path / "run", tmp_path / "eval", "--baseline", "false")
    assert state["best_metric"] == pytest.approx(metrics["eval_pacc"])
    assert results["model, papers' protocol"]["pacc"] == pytest.approx(metrics["eval_pacc"])


def test_the_best_checkpoint_is_found_where_a_run_was_moved_to(clip_folder, tmp_path):
    words = ["--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps"]
    words += [
        "--save_steps",
        "1",
        "--save_total_limit",
        "5",
        "--load_best_model_at_end",
        "true",
        "--metric_for_best_model",
        "pacc",
    ]
    words += ["--greater_is_better", "false", "--learning_rate", "0.1", "--warmup_steps", "0"]
    run, moved = tmp_path / "run", tmp_path / "moved"
    train(clip_folder, run, *words)
    weights = (run / "adapter_model.safetensors").read_bytes()
    assert json.loads((run / "trainer_state.json").read_text())["best_global_step"] < 4
    for name in ("checkpoint-4", "adapter_model.safetensors", "trainer_state.json"):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    run.rename(moved)
    train(clip_folder, moved, *words)
    assert (moved / "adapter_model.safetensors").read_bytes() == weights


def test_a_run_without_optimiser_states_starts_anew_and_ends_alike(clip_folder, tmp_path, capsys):
    words = ["--save_only_model", "true", "--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "3"]
    train(clip_folder, tmp_path / "undisturbed", *words)
    shutil.copytree(tmp_path / "undisturbed", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoint-2")
    for name in ("adapter_model.safetensors", "trainer_state.json"):
        (tmp_path / "killed" / name).unlink()
    capsys.readouterr()
    train(clip_folder, tmp_path / "killed", *words)
    assert "checkpoint-1 lacks part of the training's state (save_only_model)" in capsys.readouterr().out
    ended = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("undisturbed", "killed")]
    assert ended[0] == ended[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_clip_in_half_precision_is_trained_in_float32(model, clip_folder, tmp_path, dtype):
    model.clip.to(dtype).save_pretrained(clip_folder)
    train(clip_folder, tmp_path / "run")
    assert {tensor.dtype for tensor in load_file(tmp_path / "run" / "adapter_model.safetensors").values()} == {
        torch.float32
    }


def test_a_checkpoint_of_another_run_is_no_start(clip_folder, tmp_path):
    train(clip_folder, tmp_path / "first", "--save_strategy", "steps", "--save_steps", "1")
    checkpoint = ["--resume_from_checkpoint", str(tmp_path / "first" / "checkpoint-1")]
    with pytest.raises(ValueError, match="learning_rate"):
        train(clip_folder, tmp_path / "second", "--learning_rate", "0.01", *checkpoint)


def test_which_step_is_kept_belongs_to_a_run(clip_folder, tmp_path):
    train(clip_folder, tmp_path / "run")
    best = ["--load_best_model_at_end", "true", "--metric_for_best_model", "hiou"]
    best += ["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "1", "--save_steps", "1"]
    with pytest.raises(ValueError, match="holds a run with"):
        train(clip_folder, tmp_path / "run", *best)


def test_a_stage_cannot_be_resumed_from_the_other(clip_folder, tmp_path):
    words = ["--setting", "transductive", "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-1")]
    with pytest.raises(ValueError, match="resume_from_checkpoint applies to one stage"):
        train(clip_folder, tmp_path / "run", *words)


def test_unseen_classes_that_were_trained_on_are_named(clip_folder, tmp_path, capsys):
    train(clip_folder, tmp_path / "run", "--setting", "fully_supervised")
    evaluate(tmp_path / "run", tmp_path / "eval", "--baseline", "false")
    assert "Warning: this model was trained on masks of 'clock' and 4 more" in capsys.readouterr().out
    evaluate(tmp_path / "run", tmp_path / "eval2", "--baseline", "false", "--setting", "fully_supervised")
    assert "Warning" not in capsys.readouterr().out


def test_names_that_the_clip_cannot_know_are_said_before_the_work(clip_folder, tmp_path, capsys):
    export_picture_world(tmp_path / "folder", "train", 2)
    names = (tmp_path / "folder" / "classes.txt").read_text().split("\n")
    (tmp_path / "folder" / "classes.txt").write_text("\n".join(["pelican", *names[1:]]))
    described = json.loads((clip_folder / "config.json").read_text())
    described["vocabulary"] = ["a", "photo", "of", *names]
    (clip_folder / "config.json").write_text(json.dumps(described))
    words = ["--dataset", str(tmp_path / "folder"), "--eval_split", "train", "--unseen_classes", "cat"]
    train(clip_folder, tmp_path / "run", *words)
    evaluate(tmp_path / "run", tmp_path / "eval", *words, "--baseline", "false")
    training, evaluation = capsys.readouterr().out.split("Evaluating ")
    for printed, work in ((training, "Training "), (evaluation, "2 pictures, split")):
        before, _ = printed.split(work)
        assert "Warning: this model cannot know 'pelican', so" in before
        assert "Give another model with --model." in before


def test_evaluation_does_not_start_from_an_adapter(tmp_path):
    with pytest.raises(ValueError, match="what is to be evaluated is the model"):
        evaluate(tmp_path / "run", tmp_path / "eval", "--init_adapter", "there")


def test_a_training_says_that_it_does_not_go_on_from_the_model_it_is_given(clip_folder, tmp_path, capsys):
    train(clip_folder, tmp_path / "first")
    assert "is left out" not in capsys.readouterr().out
    train(tmp_path / "first", tmp_path / "second")
    assert f"--init_adapter {tmp_path / 'first'} goes on from it" in capsys.readouterr().out


def test_self_training_starts_from_the_given_adapter(clip_folder, tmp_path):
    """With no step that changes anything, it ends as it has started: all of the adapter has been taken over."""
    train(clip_folder, tmp_path / "first", "--learning_rate", "0.01", "--warmup_steps", "0")
    words = ["--setting", "transductive", "--init_adapter", str(tmp_path / "first"), "--learning_rate", "0"]
    train(clip_folder, tmp_path / "second", *words, "--weight_decay", "0", "--lr_scheduler_type", "constant")
    first, second = (load_file(tmp_path / run / "adapter_model.safetensors") for run in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_is_evaluated_on_classes_of_another_data_set(clip_folder, tmp_path):
    train(clip_folder, tmp_path / "run")
    export_picture_world(tmp_path / "folder", "train", 2)
    words = ["--dataset", str(tmp_path / "folder"), "--eval_split", "train", "--setting", "cross_dataset"]
    results = evaluate(tmp_path / "run", tmp_path / "eval", *words, "--baseline", "false")
    for figures in results.values():
        assert 0 <= figures["miou"] <= 100
        assert not figures.get("hiou", 0) > 0


def test_training_changes_the_adapter_and_nothing_else(clip_folder, tmp_path):
    train(clip_folder, tmp_path / "run", "--learning_rate", "0.01", "--warmup_steps", "0")
    trained = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "run")
    base = ZegClipForSemanticSegmentation.from_pretrained(clip_folder, config=trained.config)
    for name, tensor in base.clip.state_dict().items():
        name = name.replace("vision_model.encoder.", "vision_model.encoder.base_layer.")
        assert torch.equal(trained.clip.state_dict()[name], tensor), name
    head = trained.decode_head.modules_to_save["default"]
    assert head.query_proj.weight[:, :32].abs().max() > 0  # starts at zero with the identity start
    assert trained.config.seen_class_names


def test_another_configuration_does_not_go_on_in_the_same_folder(clip_folder, tmp_path):
    train(clip_folder, tmp_path / "run")
    before = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run with learning_rate 0\.001, but it is 0\.1 now"):
        train(clip_folder, tmp_path / "run", "--learning_rate", "0.1")
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == before


def test_a_project_that_is_moved_goes_on(clip_folder, tmp_path, capsys):
    """Both stages, the model, the data and the evaluation's figures, from elsewhere with the same command."""
    project = tmp_path / "project"
    export_picture_world(project / "data" / "train", "train", 6)
    export_picture_world(project / "data" / "tuning", "tuning", 2)
    clip_folder.rename(project / "clip")
    words = ["--setting", "transductive", "--unseen_classes", "cat", "--dataset"]

    def go_on(root):
        capsys.readouterr()
        train(root / "clip", root / "run", *words, str(root / "data"))
        figures = evaluate(root / "run", root / "eval", "--baseline", "false", *words, str(root / "data"))
        return figures, capsys.readouterr().out

    figures, _ = go_on(project)
    weights = (project / "run" / "adapter_model.safetensors").read_bytes()
    moved = project.rename(tmp_path / "elsewhere")
    change_base(moved / "run", moved / "clip")
    again, printed = go_on(moved)
    assert "the training has finished before" in printed
    assert "2 of 2 pictures were evaluated before" in printed
    assert again == figures
    assert (moved / "run" / "adapter_model.safetensors").read_bytes() == weights
    # Masks that were repaired are other data; the first stage says so, too.
    mask = moved / "data" / "train" / "masks" / "000000.png"
    Image.effect_noise(Image.open(mask).size, 3).point(lambda value: value % 2).save(mask)
    with pytest.raises(ValueError, match=r"inductive holds a run whose pictures had another content"):
        train(moved / "clip", moved / "run", *words, str(moved / "data"))


def change_base(run, base):
    path = run / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))


def test_other_preprocessing_is_another_evaluation(clip_folder, tmp_path):
    train(clip_folder, tmp_path / "run")
    evaluate(tmp_path / "run", tmp_path / "eval", "--baseline", "false")
    path = tmp_path / "run" / "processor_config.json"
    described = json.loads(path.read_text())
    described["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"has another evaluation \(image_processor differs"):
        evaluate(tmp_path / "run", tmp_path / "eval", "--baseline", "false")


def test_a_corrupt_picture_in_the_middle_of_an_epoch(clip_folder, tmp_path, capsys):
    export_picture_world(tmp_path / "folder" / "train", "train", 6)
    export_picture_world(tmp_path / "folder" / "tuning", "tuning", 2)
    broken = tmp_path / "folder" / "train" / "images" / "000003.png"
    broken.write_bytes(broken.read_bytes()[:500])
    folder = ["--dataset", str(tmp_path / "folder"), "--unseen_classes", "cat", "--max_steps", "3"]
    for workers in ("0", "1"):
        with pytest.raises(ValueError, match=r"images/000003\.png"):
            train(clip_folder, tmp_path / workers, *folder, "--dataloader_num_workers", workers)
        assert not (tmp_path / workers / "adapter_model.safetensors").exists()
    train(clip_folder, tmp_path / "run", *folder, "--skip_bad_samples", "true")
    printed = capsys.readouterr().out
    assert "skipped_samples.txt: 1; the first: " in printed
    assert "000003.png" in (tmp_path / "run" / "skipped_samples.txt").read_text()


def test_what_is_probably_wrong_with_masks_is_said_before_the_first_step(clip_folder, tmp_path, capsys):
    for name in ("train", "tuning"):
        export_picture_world(tmp_path / "folder" / name, "train", 2)
        for mask in (tmp_path / "folder" / name / "masks").iterdir():
            binary = Image.open(mask).point(lambda value: 255 * (value > 28))
            binary.save(mask)
    for names in (tmp_path / "folder").rglob("classes.txt"):
        names.write_text("sky\ngrass\n")
    words = ["--dataset", str(tmp_path / "folder"), "--setting", "fully_supervised"]
    train(clip_folder, tmp_path / "run", *words)
    before, _ = capsys.readouterr().out.split("Training ")
    assert "note: train has no pixel of grass, and value 255, which is read as ignored, covers" in before
    evaluate(tmp_path / "run", tmp_path / "eval", *words, "--baseline", "false")
    before, _ = capsys.readouterr().out.split("2 pictures, split")
    assert "note: tuning has no pixel of grass" in before


def test_a_training_that_diverges_names_its_pictures(clip_folder, tmp_path, capsys):
    export_picture_world(tmp_path / "folder" / "train", "train", 2)
    export_picture_world(tmp_path / "folder" / "tuning", "tuning", 1)
    words = ["--dataset", str(tmp_path / "folder"), "--unseen_classes", "cat", "--max_steps", "5", "--save_steps", "1"]
    with pytest.raises(SystemExit) as leaving, reporting_errors("train.py"):
        train(clip_folder, tmp_path / "run", *words, "--learning_rate", "1e20", "--warmup_steps", "0")
    assert leaving.value.code == 1
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    found = re.fullmatch(
        r"train\.py: In step (\d) the loss of (.*) is not finite \(.*\)\. (.*) is the last .*", sentence
    )
    assert found, sentence
    assert sorted(Path(name).name for name in found[2].split(", ")) == ["000000.png", "000001.png"]
    assert found[3] == str(tmp_path / "run" / f"checkpoint-{int(found[1]) - 1}")
    weights = load_file(Path(found[3]) / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_one_training_at_a_time_in_a_folder(clip_folder, tmp_path):
    with lock_output_dir(tmp_path / "run"), pytest.raises(ValueError, match=r"run: another training is at work there"):
        train(clip_folder, tmp_path / "run")
    with lock_output_dir(tmp_path / "run"):
        assert not (tmp_path / "run" / "run.json").exists()


def test_mixed_precision_goes_on_with_the_same_bits(clip_folder, tmp_path, capsys):
    words = ["--max_steps", "4", "--save_steps", "2", "--save_total_limit", "2", "--learning_rate", "0.01"]
    words += ["--bf16", "true"]
    train(clip_folder, tmp_path / "run", *words)
    undisturbed = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    for name in ("checkpoint-4", "adapter_model.safetensors", "trainer_state.json"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(clip_folder, tmp_path / "run", *words)
    assert f"Resuming from {tmp_path / 'run' / 'checkpoint-2'}" in capsys.readouterr().out
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == undisturbed
    train(clip_folder, tmp_path / "float", *words[:-2])
    assert (tmp_path / "float" / "adapter_model.safetensors").read_bytes() != undisturbed


def test_a_wrong_field_is_one_sentence(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), CONFIG, "--lerning_rate", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("train.py: The command line names the unknown field")
    assert "Traceback" not in result.stderr
