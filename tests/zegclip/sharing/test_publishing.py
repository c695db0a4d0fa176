"""What is shared loads everywhere: with this package and without it, from folder and Hub, and when saved again."""

import ast
import getpass
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import pipeline

from zegclip import DEFAULT_MODEL, DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.commands.main import main
from zegclip.errors import UsageError
from zegclip.modeling.base_fingerprint import OtherBaseWarning
from zegclip.sharing.publishing import code_files, export, push
from zegclip.training.training_arguments import ZegClipTrainingArguments

ROOT = Path(__file__).parents[3]
PROBE = ROOT / "tests" / "launched" / "probe_artefacts.py"
# As in the probe.
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8))
NAMES = ["cat", "tree", "dog"]
KINDS = ("full model", "base + adapter", "adapter alone")


@pytest.fixture
def hub(monkeypatch):
    """A stand-in of the Hub that is running."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "launched")
    with importlib.import_module("hub_stand_in").serve_hub() as server:
        yield server


@pytest.fixture
def models(model, processor, clip_folder, tmp_path):
    """One of each method, and one of each kind: all of its own, an adapter with its base, one that names its base."""
    config = model.config.to_dict()
    fields = {"full model": {"decode_head_type": "spectral", "decoder_low_frequency_heads": 1}}
    consensus = {"decode_head_type": "consensus", "num_decoder_layers": 1, "out_indices": [1]}
    fields["adapter alone"] = consensus | {"decoder_window_size": 2, "decoder_top_k": 2}
    made = {}
    for kind in KINDS:
        folder = tmp_path / "sources" / kind
        other = ZegClipConfig.from_dict(config | fields.get(kind, {}))
        torch.manual_seed(1)
        source = ZegClipForSemanticSegmentation.from_pretrained(clip_folder, config=other)
        if kind == "base + adapter":
            source.add_adapter(DeepPromptConfig(num_tokens=2, spectral_prompt=True, spectral_grid_size=4))
            source.save_with_base(folder)
        elif kind == "adapter alone":
            prompts = {"text_prompts": "whole", "text_prompt_ids": processor.text_prompt_ids()}
            source.add_adapter(DeepPromptConfig(num_tokens=2, **prompts))
            source.save_pretrained(folder)
        else:
            source.save_pretrained(folder)
        processor.save_pretrained(folder)
        made[kind] = ZegClipForSemanticSegmentation.from_pretrained(folder).eval()
    return made


@pytest.fixture
def artefacts(models, tmp_path):
    """Each kind exported, by its path."""
    places = {}
    for kind, source in models.items():
        # Beside the base of the one that goes alone.
        places[kind] = export(source, tmp_path / f"shared {kind}", whole={"adapter alone": False}.get(kind))
    return places


def probe(installed, save_to, places, **environment):
    words = ["with" if installed else "without", str(save_to), *map(str, places)]
    done = subprocess.run(
        [sys.executable, str(PROBE), *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=save_to.parent,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(save_to.parent / f"cache {words[0]}"),
            **environment,
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def expected_results(model, processor):
    """What the probe computes, with the model that was shared."""
    inputs = processor(images=PICTURE, text=NAMES, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits.flatten()


def test_every_kind_loads_everywhere_and_again_when_saved_from_there(models, artefacts, processor, tmp_path):
    masks = {}
    for installed in (True, False):
        home = "zegclip" if installed else "transformers_modules"
        first = probe(installed, tmp_path / home, artefacts.values())
        again = [tmp_path / home / str(n) / loader for n in range(len(KINDS)) for loader in ("model", "pipeline")]
        second = probe(installed, tmp_path / f"again {home}", again)
        for number, kind in enumerate(KINDS):
            expected = expected_results(models[kind], processor)
            for results in (first[number], second[2 * number], second[2 * number + 1]):
                for loader, (modules, values) in results.items():
                    assert {name.split(".")[0] for name in modules} == {home}
                    if loader == "pipeline":
                        assert values == masks.setdefault(kind, values)
                    else:
                        assert (torch.tensor(values) - expected).abs().max() < 1e-6


def test_without_trust_nothing_of_a_folder_is_run(artefacts, tmp_path):
    for installed in (True, False):
        marked = artefacts["full model"] / "modeling_zegclip.py"
        marked.write_text(marked.read_text() + f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
        code = "import sys\n" + ("import zegclip\n" if installed else "sys.modules['zegclip'] = None\n")
        code += "from transformers import AutoModelForSemanticSegmentation as Auto\n"
        code += f"Auto.from_pretrained({str(artefacts['full model'])!r}, trust_remote_code={installed})"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=environment)
        assert (done.returncode == 0) == installed
        assert not (tmp_path / "ran").exists()  # the installed package, or a refusal


def test_what_is_shared_names_nothing_of_this_machine(artefacts, tmp_path):
    for kind, folder in artefacts.items():
        files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert {"README.md", "config.json", "processor_config.json", "tokenizer.json", "pipeline.py"} <= set(files)
        assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
        assert {Path(name).suffix for name in files} <= {".json", ".py", ".md", ".safetensors", ".png"}
        for name, content in files.items():
            for secret in (str(ROOT), str(tmp_path), f"/{getpass.getuser()}/"):
                assert secret.encode() not in content, f"{kind}: {name} names {secret}"
        ModelCard.load(folder / "README.md")


def test_code_that_travels_lies_flat_and_imports_nothing_of_the_package():
    names = {path.stem for path in code_files()}
    assert len(names) == len(code_files())
    for path in code_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                assert node.module in names
    assert "convert_official_checkpoint" not in names


def test_with_the_package_a_shared_folder_is_saved_as_any_other(artefacts, tmp_path):
    """What it says of its own code would be wrong where no code is saved beside it."""
    again = ZegClipForSemanticSegmentation.from_pretrained(artefacts["base + adapter"])
    again.save_pretrained(tmp_path / "plain")
    stored = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not {"auto_map", "custom_pipelines"} & set(stored)


def test_only_the_active_adapter_is_shared(models, artefacts, tmp_path):
    source = ZegClipForSemanticSegmentation.from_pretrained(artefacts["adapter alone"])
    source.load_adapter(artefacts["adapter alone"], adapter_name="other")
    source.set_adapter("other")
    with torch.no_grad():
        source.clip.vision_model.encoder.deep_prompt_tokens["other"].add_(1)
    for whole in (False, True):
        shared = export(source, tmp_path / f"whole {whole}", whole=whole)
        loaded = ZegClipForSemanticSegmentation.from_pretrained(shared)
        assert list(loaded.peft_config) == ["default"]
        tokens = loaded.clip.vision_model.encoder.deep_prompt_tokens["default"]
        assert torch.equal(tokens, source.clip.vision_model.encoder.deep_prompt_tokens["other"])


def test_an_adapter_alone_needs_a_base_that_others_have(models, processor, tmp_path):
    with pytest.raises(UsageError, match="base"):
        export(models["base + adapter"], tmp_path / "out", whole=False)
    with pytest.raises(UsageError, match=f"base.* {re.escape(str(tmp_path))}"):
        export(models["adapter alone"], tmp_path / "out", whole=False, repo_id="someone/adapter")
    assert not list(tmp_path.glob("*out*"))


def test_a_base_that_was_changed_is_shared_with_its_adapter(artefacts, processor, tmp_path):
    loaded = ZegClipForSemanticSegmentation.from_pretrained(artefacts["adapter alone"]).eval()
    with torch.no_grad():
        for parameter in loaded.clip.parameters():
            parameter.mul_(1.1)
    with pytest.raises(UsageError, match="has changed"):
        export(loaded, tmp_path / "alone", processor=processor, whole=False)
    export(loaded, tmp_path / "out", processor=processor)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_adapter_alone_finds_its_base_whatever_lies_around(artefacts, processor, models, tmp_path, monkeypatch):
    """Its way to the base starts at its own folder, not where the program runs."""
    (tmp_path / "elsewhere" / "inside").mkdir(parents=True)
    other = ZegClipForSemanticSegmentation(models["full model"].config)
    other.clip.save_pretrained(tmp_path / "elsewhere" / "clip")
    monkeypatch.chdir(tmp_path / "elsewhere" / "inside")
    loaded = ZegClipForSemanticSegmentation.from_pretrained(artefacts["adapter alone"]).eval()
    assert torch.equal(expected_results(loaded, processor), expected_results(models["adapter alone"], processor))
    with pytest.raises(UsageError, match="out"):
        export(loaded, tmp_path / "elsewhere" / "out", whole=False)


def test_the_processor_is_that_of_the_active_adapter(models, artefacts, processor, tmp_path):
    source = models["base + adapter"]
    other = tmp_path / "other"
    source.config.prompt_templates = ["{} there"]
    source.save_pretrained(other)
    processor.image_processor.window_size = 24
    processor.save_pretrained(other)
    loaded = ZegClipForSemanticSegmentation.from_pretrained(artefacts["base + adapter"])
    loaded.load_adapter(other, adapter_name="other")
    stored = json.loads((export(loaded, tmp_path / "out") / "processor_config.json").read_text())
    assert stored["prompt_templates"] == ["{} there"]
    assert stored["image_processor"]["window_size"] == 24


def test_what_saving_cannot_do_is_said(models, tmp_path):
    for source in models.values():
        source.save_pretrained(tmp_path / "out", is_main_process=False)
        assert not list((tmp_path / "out").glob("*"))
    with pytest.raises(UsageError, match="adapter"):
        export(models["full model"], tmp_path / "out", whole=False)
    with pytest.raises(UsageError, match="adapter"):  # before a repository is made
        push(models["full model"], "someone/full", whole=False)


def test_the_export_command(artefacts, tmp_path):
    assert main(["export", str(artefacts["adapter alone"]), str(tmp_path / "out"), "--whole"]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    segmenter = pipeline("zero-shot-image-segmentation", model=str(tmp_path / "out"))
    assert len(segmenter(Image.new("RGB", (40, 40)), candidate_labels=["cat", "dog"])) == 2


PUSH = """
import sys
from pathlib import Path
from zegclip.commands.main import main
from zegclip.loading import load_model
from zegclip.sharing.publishing import push
from transformers import AutoTokenizer, CLIPModel

full, whole, alone, clip = sys.argv[1:]
load_model(full).push_to_hub("full")
assert main(["push", whole, "someone/whole", "--private"]) == 0
CLIPModel.from_pretrained(clip).push_to_hub("someone/clip")
AutoTokenizer.from_pretrained(clip).push_to_hub("someone/clip")
# As an adapter that was trained on a CLIP of the Hub.
model = load_model(alone)
model.name_or_path = model.peft_config["default"].base_model_name_or_path = "someone/clip"
push(model, "someone/alone")
"""


PUSH_AS_IN_TRANSFORMERS = """
import os, sys
from transformers import pipeline
os.chdir(os.environ["HF_HOME"])
from zegclip.loading import load_model, load_processor

model, processor, token = load_model(sys.argv[1]), load_processor(sys.argv[1]), os.environ.pop("HF_TOKEN")
usual = {"token": token, "private": True, "commit_message": "a title", "commit_description": "a text"}
more = {"max_shard_size": "100KB", "tags": ["farm"]}
model.add_model_tags("animals")
model.push_to_hub("someone/pushed", **usual, **more)
print(model.push_to_hub("someone/pushed", create_pr=True, token=token))
model.save_pretrained("saved/", push_to_hub=True, **usual, **more)
model.save_pretrained("with-id", push_to_hub=True, repo_id="someone/named", token=token)
pipeline("zero-shot-image-segmentation", model=sys.argv[1]).push_to_hub("someone/pipeline", **usual, **more)
processor.push_to_hub("someone/processor", token=token)
model.config.push_to_hub("someone/config", token=token)
"""


def run_python(code, *words, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TRANSFORMERS_OFFLINE": "0",
            **{k: str(v) for k, v in environment.items()},
        },
    )


COMMANDS = """
import json, sys
from zegclip.commands.main import main

sys.exit(max(main(words) for words in json.loads(sys.argv[1])))
"""


def run_commands(*commands, **environment):
    return run_python(COMMANDS, json.dumps([list(map(str, words)) for words in commands]), **environment)


def test_a_repository_holds_the_last_push_alone(hub, artefacts, tmp_path):
    """Weights of another kind that stay would be loaded with the new ones."""
    first, second = (["push", artefacts[kind], "someone/one"] for kind in ("base + adapter", "full model"))
    commands = (first, second, [*second, "--revision", "other"])
    done = run_commands(*commands, HF_HOME=tmp_path / "home", **hub.environment())
    assert done.returncode == 0, done.stderr[-2000:]
    files = set(hub.repositories["someone/one"][-1])
    assert "model.safetensors" in files
    assert not {"adapter_config.json", "adapter_model.safetensors"} & files
    assert "POST /api/models/someone/one/branch/other" in hub.requests


def test_a_card_that_was_edited_on_the_hub_is_kept(hub, artefacts, tmp_path):
    words = ["push", artefacts["full model"], "someone/one"]
    environment = {"HF_HOME": tmp_path / "home", **hub.environment()}
    outputs = []
    for text in (None, None, b"My own words."):
        if text:
            hub.repositories["someone/one"][-1] |= {"README.md": text, "curves.png": b"curves"}
        outputs.append(run_commands(words, **environment))
        assert outputs[-1].returncode == 0, outputs[-1].stderr[-2000:]
    assert ["README.md of someone/one was edited" in done.stderr for done in outputs] == [False, False, True]
    files = hub.repositories["someone/one"][-1]
    assert (files["README.md"], files["curves.png"]) == (b"My own words.", b"curves")
    with (artefacts["full model"] / "README.md").open("a") as card:
        card.write("Later words.")
    assert run_commands(words, **environment).returncode == 0
    assert hub.repositories["someone/one"][-1]["README.md"].endswith(b"Later words.")


@pytest.mark.slow
def test_push_in_one_process_and_load_in_another(hub, models, artefacts, clip_folder, processor, tmp_path):
    environment = {**hub.environment(), "TRANSFORMERS_OFFLINE": "0"}
    done = run_python(PUSH, *artefacts.values(), clip_folder, HF_HOME=str(tmp_path / "home"), **hub.environment())
    assert done.returncode == 0, done.stderr[-3000:]
    ids = ["someone/full", "someone/whole", "someone/alone"]
    for repo_id in ids:
        files = hub.repositories[repo_id][-1]
        assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
        assert len(hub.repositories[repo_id]) == 2  # the empty one, and one commit
        assert repo_id in files["README.md"].decode()
    masks = {}
    for installed in (True, False):
        results = probe(installed, tmp_path / f"hub {installed}", ids, **environment)
        for kind, result in zip(KINDS, results):
            values = torch.tensor(result["AutoModelForSemanticSegmentation"][1])
            assert (values - expected_results(models[kind], processor)).abs().max() < 1e-6
            assert result["pipeline"][1] == masks.setdefault(kind, result["pipeline"][1])


def test_pushing_takes_the_arguments_of_transformers(hub, artefacts, processor, tmp_path):
    (tmp_path / "home").mkdir()
    source = artefacts["base + adapter"]
    done = run_python(PUSH_AS_IN_TRANSFORMERS, source, HF_HOME=tmp_path / "home", **hub.environment())
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("pushed", "saved", "pipeline"):
        files = hub.repositories[f"someone/{name}"][-1]
        assert {"pipeline.py", "processor_config.json", "model.safetensors.index.json"} <= files.keys()
        tags = ModelCard(files["README.md"].decode()).data.tags
        assert {"zegclip", "farm"} <= set(tags)
        assert ("animals" in tags) == (name != "pipeline")
        assert hub.headers[f"someone/{name}"][0] == {"summary": "a title", "description": "a text"}
        assert (
            hub.created[f"someone/{name}"].get("private") or hub.created[f"someone/{name}"]["visibility"] == "private"
        )
    assert len(hub.repositories["someone/pushed"]) == 2
    assert "pipeline.py" in hub.pull_requests["someone/pushed"][0]
    assert done.stdout.splitlines()[-1].endswith("someone/pushed/discussions/1")
    assert "pipeline.py" in hub.repositories["someone/named"][-1]
    assert "processor_config.json" in hub.repositories["someone/processor"][-1]
    assert "config.json" in hub.repositories["someone/config"][-1]
    folder = tmp_path / "sharded"
    for name, content in hub.repositories["someone/pushed"][-1].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    loaded = ZegClipForSemanticSegmentation.from_pretrained(folder).eval()
    saved = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "home" / "saved").eval()
    expected = expected_results(ZegClipForSemanticSegmentation.from_pretrained(source).eval(), processor)
    for other in (loaded, saved):
        assert (expected_results(other, processor) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("wrong", [{"HF_TOKEN": "hf_wrong"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_push_that_the_hub_refuses_or_that_cannot_reach_it(hub, artefacts, tmp_path, wrong):
    environment = {**hub.environment(), "HF_HOME": tmp_path, **wrong}
    done = run_commands(["push", artefacts["full model"], "someone/there"], **environment)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("zegclip: someone/there: ")
    assert "Traceback" not in done.stderr
    assert not hub.repositories


def test_a_model_whose_processor_is_nowhere(models, tmp_path):
    models["full model"].save_pretrained(tmp_path / "bare")
    bare = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="no processor"):
        push(bare, "someone/bare")


def test_training_ends_on_the_hub(hub, clip_folder, tmp_path):
    words = [str(ROOT / "configs" / "zegclip_picture_world_inductive.yaml"), "--model", str(clip_folder), "--use_cpu"]
    words += ["--output_dir", str(tmp_path / "run"), "--max_steps", "1", "--num_train_pictures", "2"]
    words += ["--num_eval_pictures", "1", "--total_train_batch_size", "2", "--decoder_attention_heads", "2"]
    words += ["--decoder_ffn_dim", "32", "--num_prompt_tokens", "2", "--window_stride", "48"]
    code = "import sys; from zegclip.commands.main import main; sys.exit(main(['train', *sys.argv[1:]]))"
    environment = {**hub.environment(), "HF_HOME": str(tmp_path / "home")}
    done = run_python(code, *words, "--push_to_hub", "--hub_model_id", "someone/trained", **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Pushed: " in done.stdout
    files = hub.repositories["someone/trained"][-1]
    assert len(hub.repositories["someone/trained"]) == 2
    assert {"model.safetensors", "adapter_model.safetensors", "curves.png", "modeling_zegclip.py"} <= set(files)
    assert "training_args.bin" not in files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "someone/trained"


def test_half_finished_trainings_are_not_pushed(tmp_path):
    fields = {"use_cpu": True, "push_to_hub": True, "report_to": "none"}
    with pytest.raises(ValueError, match="hub_strategy"):
        ZegClipTrainingArguments(output_dir=str(tmp_path), hub_strategy="every_save", **fields)


@pytest.mark.parametrize("named", [True, False])
def test_a_shared_folder_keeps_its_card_when_it_is_shared_again(models, tmp_path, named):
    export(models["full model"], tmp_path / "first", repo_id="owner/cats")
    card = tmp_path / "first" / "README.md"
    card.write_text(card.read_text() + "\nTaken on a farm.\n")
    (tmp_path / "first" / "curves.png").write_bytes(b"curves")
    again = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "first")
    export(again, tmp_path / "second", run=tmp_path / "first" if named else None, repo_id="01-ai/farm")
    text = (tmp_path / "second" / "README.md").read_text()
    assert text == card.read_text().replace("owner/cats", "01-ai/farm")
    assert 'model="01-ai/farm"' in text
    assert "--model 01-ai/farm`" in text
    assert (tmp_path / "second" / "curves.png").read_bytes() == b"curves"


def test_the_card_of_other_weights_is_not_taken_over(models, tmp_path):
    export(models["full model"], tmp_path / "first")
    card = tmp_path / "first" / "README.md"
    card.write_text(card.read_text() + "\nhIoU 84.3\n")
    again = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "first")
    with torch.no_grad():
        again.decode_head.query_proj.bias += 1
    export(again, tmp_path / "in memory", run=tmp_path / "first")
    export(again, tmp_path / "in memory by default")
    again.save_pretrained(tmp_path / "first")
    export(again, tmp_path / "saved over", run=tmp_path / "first")
    for name in ("in memory", "in memory by default", "saved over"):
        assert "hIoU 84.3" not in (tmp_path / name / "README.md").read_text()
        assert "edited" not in json.loads((tmp_path / name / "card.json").read_text())


@pytest.mark.parametrize("change", ["class names", "base"])
def test_the_card_of_another_description_is_not_taken_over(models, clip_folder, processor, tmp_path, change):
    export(models["adapter alone"], tmp_path / "first")
    card = tmp_path / "first" / "README.md"
    card.write_text(card.read_text() + "\nhIoU 84.3\n")
    if change == "class names":
        again = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "first")
        again.config.seen_class_names = ["zebra"]
    else:
        again = ZegClipForSemanticSegmentation.from_pretrained(clip_folder, config=models["adapter alone"].config)
        with torch.no_grad():
            for parameter in again.clip.parameters():
                parameter.add_(0.1)
        with pytest.warns(OtherBaseWarning):
            again.load_adapter(tmp_path / "first")
    export(again, tmp_path / "second", processor=processor)
    text = (tmp_path / "second" / "README.md").read_text()
    assert "hIoU 84.3" not in text
    assert ("zebra" in text) == (change == "class names")


@pytest.mark.parametrize("place", ["embedded", "copied", "shared"])
def test_the_embedded_model_is_shared_with_its_own_card(tmp_path, place):
    source = DEFAULT_MODEL
    if place == "copied":
        source = shutil.copytree(DEFAULT_MODEL, tmp_path / "copy")
    elif place == "shared":
        source = export(ZegClipForSemanticSegmentation.from_pretrained(DEFAULT_MODEL), tmp_path / "first")
    assert main(["export", str(source), str(tmp_path / "out")]) == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "apache-2.0"
    assert {result.metric_type for result in card.data.eval_results} >= {"hiou", "miou_unseen"}
    assert 'model="path/to/this/folder"' in card.text
    assert "](../" not in card.text


def test_another_model_is_not_shared_with_the_embedded_ones_card(models, processor, tmp_path):
    """Whatever its folder is called."""
    folder = tmp_path / "zegclip" / "default_model"
    models["full model"].save_pretrained(folder)
    processor.save_pretrained(folder)
    other_base = ZegClipForSemanticSegmentation.from_pretrained(DEFAULT_MODEL)
    with torch.no_grad():
        other_base.clip.logit_scale.add_(1)
        for parameter in other_base.clip.text_model.parameters():
            parameter.add_(1)
    other_base.save_with_base(tmp_path / "base")
    named = ZegClipForSemanticSegmentation.from_pretrained(DEFAULT_MODEL, base_model_name_or_path=tmp_path / "base")
    named_folder = export(named, tmp_path / "named", whole=True)
    for source in (folder, named_folder):
        assert main(["export", str(source), str(tmp_path / f"{source.name} out")]) == 0
        assert not ModelCard.load(tmp_path / f"{source.name} out" / "README.md").data.eval_results
