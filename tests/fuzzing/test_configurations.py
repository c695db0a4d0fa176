"""Configurations of every kind: fields that agree with each other, or one sentence that names what does not."""

import json
import math
import shutil
from dataclasses import fields
from itertools import count

import pytest
import yaml
from hypothesis import strategies as st
from PIL import Image

from zegclip import DeepPromptConfig, ZegClipConfig
from zegclip.errors import reporting_errors
from zegclip.loading import load_model, load_processor
from zegclip.training.arguments import DataArguments, ModelArguments, parse_arguments

pytestmark = pytest.mark.thorough

ODD_NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 7, 64, 10**6, 2.5, 1e-9, math.nan, math.inf, -math.inf])
ODD_VALUES = st.one_of(
    ODD_NUMBERS,
    st.sampled_from([None, True, False, "", "none", "zegclip", "spectral", "text", "a {}", "{}{}", "\0", "\ud800"]),
    st.lists(st.sampled_from([0, 1, -1, 2.5, True, None, "text", "product", "a photo of a {}", [], {}]), max_size=3),
    st.dictionaries(st.sampled_from(["a", "shortest_edge", "0"]), st.sampled_from([None, 1, "b"]), max_size=2),
)
TRAINING_FIELDS = [
    "learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
    "total_train_batch_size", "weight_decay", "lr_scheduler_type", "lr_scheduler_kwargs", "optim", "output_dir",
    "save_steps", "eval_strategy", "logging_steps", "dataloader_num_workers", "warmup_steps", "bf16", "seed",
]  # fmt: skip
OWN_FIELDS = [item.name for kind in (ModelArguments, DataArguments) for item in fields(kind)]


def mutated(original):
    """Draw a JSON object like another, with some values replaced, also deep within, or taken out."""

    @st.composite
    def mutation(draw):
        described = json.loads(json.dumps(original))
        for _ in range(draw(st.integers(1, 2))):
            place = described
            while True:
                key = draw(st.sampled_from([*sorted(place), "unknown"]))
                if not isinstance(place.get(key), dict) or not place[key] or draw(st.booleans()):
                    break
                place = place[key]
            if draw(st.integers(0, 3)):
                place[key] = draw(ODD_VALUES)
            else:
                place.pop(key, None)
        return described

    return mutation()


def damaged_texts(text):
    """Draw the bytes of a text that is cut, changed or something else."""
    content = text.encode()
    cut = st.integers(0, len(content) - 1).map(lambda length: content[:length])
    places = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=4)

    def change(places):
        changed = bytearray(content)
        for place, value in places:
            changed[place] = value
        return bytes(changed)

    others = [b"", b"{}", b"[]", b"null", b"3", b"\xff\xfe", b"[" * 99_999, b'{"a":' * 9999, b"9" * 9999, b"NaN"]
    return st.one_of(cut, places.map(change), st.sampled_from(others), st.binary(max_size=20))


def test_fields_of_a_model(fuzz, model):
    """A configuration that is built can be saved and read again."""
    clip_config = model.config.clip_config.to_dict()
    names = [name for name in ZegClipConfig.__annotations__ if name != "clip_config"]
    good = {name: getattr(ZegClipConfig(), name) for name in names}

    def check(given):
        built = fuzz.attempt(lambda: ZegClipConfig(clip_config=clip_config, **given), fields=given)
        if built is None:
            return False
        again = ZegClipConfig.from_dict(json.loads(json.dumps(built.to_dict())))
        for name in given.keys() & set(names):
            assert getattr(again, name) == getattr(built, name)
        assert all(math.isfinite(value) for value in vars(built).values() if isinstance(value, float))
        return True

    drawn = [st.dictionaries(st.sampled_from(names), values, max_size=2) for values in (ODD_VALUES, ODD_NUMBERS)]
    fuzz.run("configurations, of models", st.one_of(mutated(good), *drawn), check, few=25, many=300)


def test_fields_of_an_adapter(fuzz):
    names = [item.name for item in fields(DeepPromptConfig)]
    own = [name for name in names if "spectral" in name or "text" in name or name in ("num_tokens", "dropout")]

    def check(given):
        built = fuzz.attempt(lambda: DeepPromptConfig(**given), fields=given)
        if built is None:
            return False
        layers = fuzz.attempt(lambda: (built.prompted_layers(12), built.filtered_layers(12)))
        assert layers is None or all(0 <= index < 12 for some in layers for index in some)
        return layers is not None

    lists = st.lists(st.integers(-2, 20), max_size=4)
    values = st.one_of(ODD_VALUES, st.integers(-20, 20), lists, st.sampled_from(["words", "whole"]))
    drawn = st.dictionaries(st.sampled_from([*own, *["num_deep_layers"] * 4]), values, max_size=3)
    fuzz.run("configurations, of adapters", drawn, check, few=40, many=300)


def with_references(name, depth):
    """Write YAML whose few lines stand for nine to the power of their number."""
    rows = [f"b0: &b0 [{', '.join('1' * 9)}]"]
    rows += [f"b{level}: &b{level} [{', '.join([f'*b{level - 1}'] * 9)}]" for level in range(1, depth)]
    return "\n".join([*(row.replace("b0:", f"{name}:", 1) for row in rows), f"seed: *b{depth - 1}"])


YAML_TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["seed", "output_dir", "descriptor", "lr_scheduler_kwargs", "max_steps", "a"]).flatmap(
        lambda name: st.sampled_from(
            [
                "2001-99-99", "!!int x", "!!float x", "!!timestamp x", "!!binary =", "0b", "1:2", "!!set {a}",
                "&a [*a]", "{a: &b {c: *b}}", "!!python/object:os.system {}", "[" * 5000, "{b: " * 3000, "9" * 5000,
            ]
        ).map(lambda value: f"{name}: {value}")
    ),
    st.sampled_from(["? [a]\n: b", "&a [*a]", "<<: 3", "<<: [[]]", "\0", "--- 1\n--- 2", "a: b: c", "\t"]),
    st.sampled_from(["seed", "descriptor", "a"]).map(lambda name: with_references(name, 9)),
)  # fmt: skip


def test_files_and_words_of_a_training(fuzz, tmp_path):
    """What `train.py` and `eval.py` are given."""
    values = st.one_of(ODD_VALUES, st.just({"power": 0.9}), st.sampled_from(["1e-3", "voc", "no", "steps", "a, b"]))
    described = st.dictionaries(st.sampled_from([*OWN_FIELDS, *TRAINING_FIELDS, "unknown"]), values, max_size=3)
    texts = st.one_of(described.map(lambda given: yaml.safe_dump(given, allow_unicode=True)), YAML_TEXTS)
    options = st.sampled_from([*OWN_FIELDS, *TRAINING_FIELDS]).map("--{}".format)
    words = st.lists(st.one_of(options, values.map(str)), max_size=2)
    numbers = count()

    def check(case):
        text, words = case
        # Files have names of their own, so that a sentence about one is no chance.
        path = tmp_path / f"{next(numbers)}.yaml"
        path.write_bytes(text.encode(errors="surrogatepass"))
        words = [word.replace("\0", "0") for word in words]
        fuzz.capfd.readouterr()
        status = 0
        try:
            with reporting_errors("train.py"):
                parse_arguments([str(path), *words, "--use_cpu", "--output_dir", str(tmp_path)])
        except SystemExit as ended:
            status = ended.code
        complaint = fuzz.capfd.readouterr().err
        assert status in (0, 1)
        if status:
            assert complaint.startswith("train.py: ")
            assert len(complaint.splitlines()) == 1
            assert len(complaint) < 2000
        return status == 0

    fuzz.run("configurations, of trainings", st.tuples(texts, words), check, few=20, many=250)


def test_stored_configurations(fuzz, model_folder, noise, tmp_path):
    """A model folder whose configuration, or its processor's, lies: it loads with what it says, or not at all."""
    picture = Image.fromarray(noise[:20, :30])
    names = ["config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"]
    texts = {name: (model_folder / name).read_text(encoding="utf-8") for name in names}

    def contents(name):
        changed = mutated(json.loads(texts[name])).map(lambda described: json.dumps(described).encode())
        return st.tuples(st.just(name), st.one_of(damaged_texts(texts[name]), changed))

    numbers = count()

    def check(case):
        name, content = case
        folder = tmp_path / f"model {next(numbers)}"
        shutil.copytree(model_folder, folder)
        (folder / name).write_bytes(content)
        found = fuzz.segment(folder, picture)
        shutil.rmtree(folder)
        return found is not None

    drawn = st.sampled_from([*names, *names[:3]]).flatmap(contents)
    fuzz.run("configurations, stored", drawn, check, few=20, many=300)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json"])
def test_loaders_name_the_folder(fuzz, model_folder, tmp_path, name):
    """One file that is no JSON."""
    text = (model_folder / name).read_text(encoding="utf-8")
    load = load_model if name == "config.json" else load_processor

    def check(content):
        (model_folder / name).write_bytes(content)
        return fuzz.attempt(lambda: load(model_folder), model_folder) is not None

    fuzz.run("configurations, damaged", damaged_texts(text), check, few=10, many=75)
