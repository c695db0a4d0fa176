"""Class names of every kind: masks match their names in any order, or the names are refused."""

import json
import string
import unicodedata

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from zegclip.commands.options import read_labels
from zegclip.processing.image_reading import load_class_ids
from zegclip.processing.names import nested_classes, read_classes, split_synonyms

pytestmark = pytest.mark.thorough

KNOWN_LETTERS = string.ascii_lowercase + string.digits + "{}-"
# Different words have different tokens.
WORDS = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=9)
ODD_NAMES = st.one_of(
    st.text(max_size=5),
    st.text(st.characters(categories=["Cc", "Cf", "Cs", "Co", "Zs", "Zl", "Zp", "Mn"]), max_size=5),
    st.sampled_from(
        [" cat ", "CAT", "קו", "خط", "猫", "🐈‍⬛", "e\u0301", "é", "\u200b", "\0", "{}", "{0}", "%s", "-b", "\ud800"]
    ),
    st.sampled_from(["<|endoftext|>", "cat<|endoftext|>dog", "<|startoftext|>"]),
)
LONG_NAMES = st.sampled_from(["a" * 10_000, "a " * 5000, "a" * 30, "🐈" * 9])
NO_NAMES = st.one_of(st.none(), st.integers(), st.floats(), st.booleans(), st.binary(max_size=3), st.just(["cat"]))
GOOD_LISTS = st.lists(WORDS, min_size=1, max_size=6, unique=True)
LISTS = st.one_of(
    GOOD_LISTS,
    st.lists(st.one_of(WORDS, ODD_NAMES), min_size=1, max_size=4, unique_by=str.strip),
    st.lists(st.one_of(WORDS, ODD_NAMES), min_size=1, max_size=4, unique_by=str.strip),
    st.lists(st.one_of(WORDS, ODD_NAMES, LONG_NAMES, NO_NAMES), max_size=6),
    st.one_of(st.integers(250, 2000).map(lambda count: [f"{number}" for number in range(count)]), GOOD_LISTS),
    st.one_of(NO_NAMES, st.dictionaries(WORDS, WORDS, max_size=2), st.text(max_size=20), GOOD_LISTS.map(",".join)),
)


def letters_of(text):
    """The characters of a text that the tiny tokenizer knows."""
    return "".join(letter for letter in unicodedata.normalize("NFC", text).lower() if letter in KNOWN_LETTERS)


def test_masks_belong_to_names_in_any_order(fuzz, segment, processor, noise):
    picture = Image.fromarray(noise[:20, :30])

    def check(case):
        labels, random = case
        result = fuzz.attempt(lambda: segment(picture, labels))
        if result is None:
            return False
        names, class_of_name = read_classes(labels)
        if len(set(class_of_name)) < len(names):
            return True  # Synonyms have tests of their own.
        ids, scores = result
        assert ids.shape == scores.shape == (20, 30)
        assert set(np.unique(ids)) <= set(range(len(names)))
        # No part of a name may be dropped: names with the same tokens have the same scores.
        tokens = [tuple(ids) for ids in processor(text=names, padding=False)["input_ids"]]
        for name, seen in zip(names, tokens[:9]):
            read = [token for token in processor.tokenizer.convert_ids_to_tokens(seen) if "<|" not in token]
            assert "".join(read).replace("</w>", "") == letters_of(f"a photo of a {name}")
        order = list(range(len(names)))
        random.shuffle(order)
        again, scores_again = segment(picture, [names[index] for index in order])
        np.testing.assert_allclose(scores_again, scores, atol=1e-5)
        # The text tower returns its state at the first end token, which also stands for unknown characters.
        seen = [token[: token.index(processor.tokenizer.eos_token_id)] for token in tokens]
        places = {token: place for place, token in enumerate(seen)}
        same = np.array([places[token] for token in seen])
        assert (same[np.array(order)[again]] == same[ids]).mean() > 0.99
        return True

    fuzz.run("labels, masks", st.tuples(LISTS, st.randoms(use_true_random=False)), check, few=20, many=250)


@pytest.mark.parametrize("source", ["text", "file"])
def test_names_through_the_command(fuzz, model_folder, noise, tmp_path, source):
    Image.fromarray(noise[:20, :30]).save(tmp_path / "picture.png")
    odd = st.one_of(ODD_NAMES, LONG_NAMES, st.sampled_from(["\ufeff", "\r", "\r\n", "a\u2028b", "a\x0cb"]))
    names = st.one_of(GOOD_LISTS, st.lists(st.one_of(WORDS, odd), min_size=1, max_size=4), st.lists(odd, max_size=3))
    texts = names.map((", " if source == "text" else "\n").join)
    contents = texts.map(lambda text: text.encode(errors="surrogatepass"))
    contents = contents if source == "text" else st.one_of(contents, contents, st.binary(max_size=30))

    def check(content):
        number = len(list(tmp_path.iterdir()))
        if source == "text":
            given = content.decode(errors="surrogateescape").replace("\0", "0")
            words = [f"--labels={given}"]
            labels = fuzz.attempt(lambda: nested_classes(given))
        else:
            (tmp_path / f"{number}.txt").write_bytes(content)
            words = ["--labels-file", tmp_path / f"{number}.txt"]
            labels = fuzz.attempt(lambda: read_labels(words[1]), words[1])
            lines = [line.strip() for line in content.decode("utf-8-sig", "replace").replace("\r", "\n").split("\n")]
            assert labels in (None, [list(dict.fromkeys(split_synonyms(line))) for line in lines if line])
        output = tmp_path / f"{number} output"
        succeeded, _, complaints = fuzz.command(
            "segment", tmp_path / "picture.png", *words, "--model", model_folder, "--output", output
        )
        if not succeeded:
            assert len(complaints) == 1
            assert not output.exists()
            return False
        record = json.loads((output / "picture.json").read_text(encoding="utf-8"))
        assert [row["label"] for row in record["labels"]] == [names[0] for names in labels]
        ids = load_class_ids(output / "picture_mask.png")
        assert ids.shape == (20, 30)
        for index, row in enumerate(record["labels"]):
            assert row["share"] == pytest.approx((ids == index).mean(), abs=1e-6)
        assert sum(row["share"] for row in record["labels"]) == pytest.approx(1, abs=1e-5)
        assert len(list(output.iterdir())) == 3
        return True

    fuzz.run(f"labels, as {source} through the command", contents, check, few=10, many=125)
