"""Model cards: of runs and of other models."""

import html
import json
import platform
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file

from zegclip import DEFAULT_MODEL
from zegclip.commands.main import main
from zegclip.errors import UsageError
from zegclip.modeling.model_error import ModelError
from zegclip.picture_world.dataset import export_picture_world
from zegclip.sharing.cards import write_card
from zegclip.sharing.model_facts import card_files
from zegclip.training.evaluate import evaluate
from zegclip.training.train import train

ROOT = Path(__file__).parents[3]
CONFIG = str(ROOT / "configs" / "zegclip_picture_world_inductive.yaml")
NASTY = {"lamp": "a|b <script>", "turtle": "*x* [y](z) {{ 1 }}", "cat": "`c` & -->"}
KEYS = ("pacc", "miou_seen", "miou_unseen", "hiou")


def arguments(place, output, *words):
    given = [CONFIG, "--model", str(place), "--output_dir", str(output), "--num_eval_pictures", "2", "--use_cpu"]
    return [*given, "--window_stride", "48", *words]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where a user's things lie: a base model, and pictures of classes with names that mean trouble."""
    folder = tmp_path_factory.mktemp("users") / "somebody"
    shutil.copytree(DEFAULT_MODEL, folder / "bases" / "my-clip")
    for split in ("train", "tuning"):
        export_picture_world(folder / "data" / "my-pictures" / split, split, 4)
        classes = folder / "data" / "my-pictures" / split / "classes.txt"
        names = classes.read_text().splitlines()
        classes.write_text("\n".join(NASTY.get(name, name) for name in names))
    return folder


@pytest.fixture(scope="module")
def trained(place):
    """What train.py leaves."""
    output = place / "outputs" / "a-run"
    words = ["--dataset", str(place / "data" / "my-pictures"), "--unseen_classes", "cake", "rocket", "grass"]
    words += ["--num_train_pictures", "4", "--total_train_batch_size", "2", "--max_steps", "2", "--seen_offset", "0.1"]
    train(arguments(place / "bases" / "my-clip", output, *words))
    return output


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "a-run"))


def read(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rows_of(text):
    """Cells of all lines of tables."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def tables_of(text):
    return [rows_of(block) for block in text.split("\n\n") if block.startswith("|")]


def test_metadata_of_a_run_are_read_back(trained):
    card = ModelCard.load(trained / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-segmentation"
    assert {"zero-shot-image-segmentation", "zegclip", "peft"} <= set(card.data.tags)
    assert card.data.license == "unknown"
    assert card.data.base_model is None
    measured = json.loads((trained / "eval_results.json").read_text())
    results = {result.metric_type: result for result in card.data.eval_results}
    for key in KEYS:
        assert results[key].metric_value == pytest.approx(measured[f"eval_{key}"], abs=0.005)
        assert results[key].dataset_name == "my-pictures"
        assert results[key].dataset_split == "tuning"
        assert results[key].dataset_args == {"pictures": 2}


def test_a_card_says_what_was_trained(trained):
    text = read(trained)
    assert "\n# ZegCLIP on my-pictures, inductive\n" in text
    cells = dict(row for row in rows_of(text) if len(row) == 2)
    assert cells["`max_steps`"] == cells["steps trained"] == "2"
    assert cells["`total_train_batch_size`"] == "2"
    assert cells["unseen (no masks in training)"] == "rocket, cake, grass"
    assert cells["base"] == "my-clip"
    assert "zegclip 0.1.0" in cells["versions"]
    weights = load_file(trained / "adapter_model.safetensors")
    assert cells["parameters of the adapter"] == f"{sum(tensor.numel() for tensor in weights.values()):,}"
    assert "`eval.py` has not been run on it" in text


def test_no_card_knows_the_machine(trained, place):
    """No folder but the last of a path, no host, and nothing of PEFT's empty form."""
    (card,) = trained.rglob("README.md")
    text = card.read_text(encoding="utf-8")
    for part in (*place.parts[1:], "bases", "outputs", "data/", platform.node()):
        assert part not in text
    assert not re.search(r"(?<![\w:/<.])/\w", text)
    assert "More Information Needed" not in text
    assert '"path/to/this/folder"' in text
    assert '"owner/name"' in write_card(trained, repo_id="owner/name").read_text()
    assert '"path/to/this/folder"' in write_card(trained).read_text()


def test_every_name_is_shown_as_it_is(trained):
    text = read(trained).split("---\n", 2)[2]
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    for name in NASTY.values():
        assert f", {html.escape(name)}" in page
    assert "<script" not in text
    assert page.count("<table>") == 3
    assert all(len(row) == len(rows[0]) for rows in tables_of(text) for row in rows)


def test_eval_writes_its_figures_into_the_card(run, place, tmp_path, capsys):
    words = ["--dataset", str(place / "data" / "my-pictures"), "--unseen_classes", "cake", "rocket", "grass"]
    words += ["--num_eval_pictures", "4"]  # of which two show no unseen class
    measure = arguments(run, tmp_path / "results", *words)
    results = evaluate(measure)
    assert f"is {run / 'README.md'}." in capsys.readouterr().out
    text = read(run)
    assert "`eval.py` has not been run on it" not in text
    cells = {row[0]: row[1:] for row in rows_of(text)}
    for title, figures in results.items():
        assert cells[title] == [f"{figures[key]:.1f}" for key in KEYS]
    found = {
        (result.metric_name, result.metric_value) for result in ModelCard.load(run / "README.md").data.eval_results
    }
    assert found == {
        (f"{name}, {protocol}", round(results[f"model, {protocol}"][key], 2))
        for protocol in ("papers' protocol", "free protocol")
        for key, name in zip(KEYS, ("pAcc", "mIoU(S)", "mIoU(U)", "hIoU"))
    }
    for part in (*tmp_path.parts[1:], *place.parts[1:]):
        assert part not in text

    # A model may lie where nobody can write; its figures are in the results folder all the same.
    (run / "README.md").unlink()
    (run / "README.md").mkdir()
    assert evaluate(measure) == results
    assert "The model card could not be written" in capsys.readouterr().out
    (run / "README.md").rmdir()

    # Figures belong to the weights that they were measured on.
    weights = load_file(run / "adapter_model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, run / "adapter_model.safetensors")
    assert "None have been measured" in write_card(run).read_text()


def test_a_card_that_was_edited_is_kept_and_shared(run, tmp_path):
    mark = re.search("<!-- Written by zegclip.*-->", read(run))
    for without in ("", mark[0]):
        write_card(run)
        (run / "README.md").write_text(read(run).replace(without, "").rstrip() + "\nMy licence.")
        edited = read(run)
        with pytest.warns(UserWarning, match="was edited"):
            write_card(run)
        assert read(run) == edited
        (run / "README.md").unlink()
        write_card(run)
    (run / "README.md").write_text(edited)
    with pytest.warns(UserWarning, match="was edited"):
        write_card(run)
    assert read(run) == edited
    assert main(["export", str(run), str(tmp_path / "shared")]) == 0
    assert "My licence." in read(tmp_path / "shared")
    (run / "README.md").unlink()
    write_card(run)
    write_card(run)
    assert "My licence." not in read(run)


def test_a_card_that_was_there_before_is_kept(run):
    (run / "README.md").write_bytes("Über uns.".encode("latin-1"))
    (run / "card.json").unlink()
    with pytest.warns(UserWarning, match="written by others"):
        write_card(run)
    assert (run / "README.md").read_bytes() == "Über uns.".encode("latin-1")


def test_what_was_trained_on_is_no_zero_shot_result(run, place, tmp_path):
    words = ["--dataset", str(place / "data" / "my-pictures"), "--unseen_classes", "house", "sky"]
    evaluate(arguments(run, tmp_path / "results", *words, "--baseline", "false"))
    assert "**2 of the classes that count as unseen here were trained on**" in read(run)
    assert "**3 of the classes that count as seen here were not trained on.**" in read(run)
    assert ModelCard.load(run / "README.md").data.eval_results is None


def test_a_whole_model_has_a_card_of_its_configuration(model_folder):
    change(model_folder / "config.json", seen_class_names=["cat", "dog"])
    card = ModelCard.load(write_card(model_folder, repo_id="owner/a-model"))
    assert "peft" not in card.data.tags
    assert "model-index" not in card.data.to_dict()
    assert "None have been measured" in card.text
    assert 'pipeline("zero-shot-image-segmentation", model="owner/a-model", trust_remote_code=True)' in card.text
    assert "| `decoder_ffn_dim` | 64 |" in card.text
    assert "| seen (masks in training) | cat, dog |" in card.text
    assert "LABEL_0" not in card.text


@pytest.mark.parametrize(
    ("dense_attention", "method", "authors"),
    [
        ("naclip", "NACLIP", "Hajimiri"),
        ("sclip", "SCLIP", "Yuille"),
        ("clearclip", "ClearCLIP", "Lan, Mengcheng"),
        ("maskclip", "MaskCLIP", "Zhou, Chong"),
        ("plain", "CLIP's own last layer", "Radford"),
    ],
)
def test_a_card_of_a_training_free_model_says_nothing_of_training(model_folder, dense_attention, method, authors):
    change(model_folder / "config.json", decode_head_type="similarity", dense_attention=dense_attention)
    card = ModelCard.load(write_card(model_folder))
    assert "training-free" in card.data.tags
    assert f"\n# {method}\n" in card.text
    (rows,) = tables_of(card.text)
    fields = {"`dense_attention`", "`similarity_scale`", "`prompt_templates`"}
    assert {row[0] for row in rows[2:]} == fields | ({"`naclip_sigma`"} if dense_attention == "naclip" else set())
    for part in ("never seen", "masks in training", "its training", "the training's", "training data", "decode head"):
        assert part not in card.text
    assert card.text.count("@inproceedings") == card.text.count(authors) == 1
    # Below a trained head, it is one part of the model, and its paper one of those to cite.
    change(model_folder / "config.json", decode_head_type="zegclip")
    text = write_card(model_folder).read_text()
    assert "never seen" in text
    shown = dense_attention != "plain"
    assert (f"| `dense_attention` | {dense_attention} |" in text) == (authors in text) == shown
    assert "`similarity_scale`" not in text


@pytest.mark.parametrize(
    ("base", "model", "expected"),
    [
        ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16"),
        ("openai/clip-vit-base-patch16", "/somewhere/an-adapter", "openai/clip-vit-base-patch16"),
        ("outputs/clip", "/somewhere/outputs/clip", None),
        ("/somewhere/clip", "/somewhere/clip", None),
        ("../clip", "/somewhere/clip", None),
    ],
)
def test_only_a_hub_id_is_a_base_model(run, monkeypatch, base, model, expected):
    monkeypatch.chdir(run)
    change(run / "adapter_config.json", base_model_name_or_path=base)
    change(run / "run.json", model=model)
    card = ModelCard.load(write_card(run))
    assert card.data.base_model == expected
    assert f"| base | {expected or 'clip'} |" in card.text
    assert ("MIT" in card.text) == (expected is not None)
    assert "somewhere" not in card.text


@pytest.mark.parametrize(
    ("dataset", "stored", "license_name", "mentioned"),
    [
        ("owner/pictures", "owner/pictures", "unknown", "owner/pictures"),
        ("voc", None, "unknown", "PASCAL VOC 2012"),
        ("picture_world", None, "apache-2.0", "of no use on photographs"),
    ],
)
def test_the_data_set_decides_on_the_license(run, dataset, stored, license_name, mentioned):
    change(run / "run.json", dataset=dataset, model=None)
    card = ModelCard.load(write_card(run))
    assert card.data.datasets == stored
    assert card.data.license == license_name
    assert mentioned in card.text


def test_only_pictures_that_are_there_are_shown(run):
    (last,) = run.glob("samples/*.png")
    shutil.copy(last, run / "samples" / "step_000001.png")
    for expected in (["curves.png", f"samples/{last.name}"], [f"samples/{last.name}"]):
        assert card_files(run) == expected
        assert re.findall(r"!\[[^]]*\]\(([^)]*)\)", write_card(run).read_text()) == expected
        (run / "curves.png").unlink(missing_ok=True)


def test_a_mixture_says_of_what(run):
    change(run / "adapter_config.json", spectral_prompt=True, spectral_layers=[0])
    text = write_card(run).read_text()
    assert "# A mixture on my-pictures" in text
    for part in ("decode head `zegclip`", "a spectral prompt", "no text prompts", "loss of focal, dice"):
        assert part in text
    assert text.count("@inproceedings") == 2


@pytest.mark.parametrize("repo_id", ["a/b/c", "owner/na me", '"); import os #', None])
def test_what_fails_leaves_the_card_as_it_was(run, repo_id):
    """A wrong id, and a file of the run that is broken."""
    before = read(run)
    if repo_id is None:
        (run / "card.json").write_text("{")
    with pytest.raises((UsageError, ModelError), match="repo_id" if repo_id else r"card\.json"):
        write_card(run, repo_id=repo_id)
    assert read(run) == before


def test_a_folder_without_a_model_of_ours_gets_no_card(clip_folder, tmp_path):
    for folder in (tmp_path, clip_folder):
        with pytest.raises(ModelError, match=folder.name):
            write_card(folder)
        assert not (folder / "README.md").exists()


def test_the_default_models_card_has_the_sections_of_the_template():
    headings = [
        re.findall(r"^## .*$", (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8"), re.MULTILINE)
        for name in ("template", "default_model")
    ]
    assert headings[0] == headings[1]
    card = ModelCard.load(ROOT / "model_cards" / "default_model.md")
    assert card.data.license == "apache-2.0"
    assert {result.metric_type for result in card.data.eval_results} == set(KEYS)
