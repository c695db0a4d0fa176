import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from zegclip import DEFAULT_MODEL
from zegclip.modeling.outputs import TrainingFreeSegmenterOutput
from zegclip.processing.input_error import InputError
from zegclip.processing.processing_zegclip import ZegClipProcessor


def test_pictures_names_and_label_maps_together(processor):
    picture, mask = Image.new("RGB", (20, 10)), Image.new("L", (20, 10), 1)
    inputs = processor(
        images=[picture, picture], text=["cat", "tree", "b"], segmentation_maps=[mask] * 2, return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (2, 3, 32, 64)
    assert inputs["labels"].shape == (2, 32, 64)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    assert len(inputs["input_ids"]) == 3


def test_either_alone(processor):
    assert set(processor(text=["cat"], return_tensors="pt")) == {"input_ids", "attention_mask", "num_templates"}
    assert set(processor(images=Image.new("RGB", (8, 8)), return_tensors="pt")) == {"pixel_values"}
    with pytest.raises(InputError, match="images"):
        processor()
    with pytest.raises(InputError, match="images"):
        processor(text=["cat"], segmentation_maps=Image.new("L", (8, 8)))


def test_prompts_are_in_order_of_names_then_templates(image_processor, tokenizer):
    processor = ZegClipProcessor(image_processor, tokenizer, prompt_templates=["a {}", "one {} here"])
    inputs = processor(text=["cat", "b{}d"], return_tensors="pt")
    expected = ["a cat", "one cat here", "a b{}d", "one b{}d here"]
    for row, mask, prompt in zip(inputs["input_ids"], inputs["attention_mask"], expected):
        assert row[mask.bool()].tolist() == tokenizer(prompt)["input_ids"]


def test_padding_goes_to_the_longest_and_does_not_change_the_tokens(processor):
    alone = processor(text=["cat"], return_tensors="pt")
    both = processor(text=["cat", "elephant"], return_tensors="pt")
    length = alone["input_ids"].shape[1]
    assert both["input_ids"].shape[1] > length
    assert torch.equal(both["input_ids"][0, :length], alone["input_ids"][0])
    assert both["attention_mask"][0].sum() == length
    filled = processor(text=["cat"], padding="max_length", max_length=20, return_tensors="pt")
    assert filled["input_ids"].shape == (1, 20)


@pytest.mark.parametrize("name", ["<|endoftext|>", "cat<|endoftext|>b", "<|startoftext|>b"])
def test_a_name_that_spells_a_special_token_is_text_as_any_other(processor, name):
    """The end token would silently cut it short: the text tower answers with its state there."""
    tokens = processor.tokenizer.convert_ids_to_tokens(processor(text=[name])["input_ids"][0])
    letters = "".join(token.removesuffix("</w>") for token in tokens if "<|" not in token)
    assert letters == "aphotoofa" + "".join(letter for letter in name if letter.isalpha())
    assert tokens.count("<|startoftext|>") == 1


def test_a_name_that_is_too_long_is_refused(processor, caplog):
    with pytest.raises(InputError, match=r"'x{40}'.* 32"):
        processor(text=["cat", "x" * 40])
    assert not caplog.records  # Nor does the tokenizer warn of it.


NO_BREAK, COMPOSED, ANGSTROM = ("a\u00a0cat", "a cat"), ("caf\u00e9", "cafe\u0301"), ("\u212bngstrom", "\u00c5ngstrom")


@pytest.fixture
def own_tokenizer():
    """The embedded model's, which knows whole words."""
    return ZegClipProcessor.from_pretrained(DEFAULT_MODEL).tokenizer


@pytest.mark.parametrize("templates", [None, ["a {}", "the {} there"]])
@pytest.mark.parametrize(
    "names", [("Cat", "cat"), ("a  cat", "a cat"), NO_BREAK, ("a\tcat", "a cat"), COMPOSED, ANGSTROM]
)
def test_names_that_the_tokenizer_cannot_tell_apart(image_processor, own_tokenizer, templates, names):
    """Equal tokens mean equal scores: one of the names would win no pixel."""
    processor = ZegClipProcessor(image_processor, own_tokenizer, prompt_templates=templates)
    first, second = (processor(text=[name])["input_ids"] for name in names)
    assert first == second
    with pytest.raises(InputError) as error:
        processor(text=[names[0], "tree", names[1]])
    assert all(repr(name) in str(error.value) for name in names)


@pytest.mark.parametrize("names", [("cat", "cats"), ("x!", "x?"), ("\uff43at", "cat"), ("c\u200bat", "cat")])
def test_names_that_the_tokenizer_tells_apart_are_taken(image_processor, own_tokenizer, names):
    first, second = ZegClipProcessor(image_processor, own_tokenizer)(text=list(names))["input_ids"]
    assert first != second


def test_the_readme_s_steps_on_a_picture_that_is_turned(processor, model, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(noise)).save(tmp_path / "phone.png", exif=exif)

    def steps(picture):
        inputs = processor(images=picture, text=["cat", "tree", "b"], return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        sizes = [(picture.height, picture.width)]
        return processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0].numpy()

    expected = steps(Image.fromarray(noise))
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(steps(Image.open(tmp_path / "phone.png")), np.rot90(expected))


@pytest.mark.parametrize("templates", [["a photo"], ["{} and {}"], [3], []])
def test_bad_templates(image_processor, tokenizer, templates):
    with pytest.raises(InputError, match="template"):
        ZegClipProcessor(image_processor, tokenizer, prompt_templates=templates)


@pytest.mark.parametrize("template", ["a photo of a {}", "the {}", "  a  cat: {}"])
def test_text_prompts_stand_for_the_words_before_the_name(image_processor, tokenizer, template):
    """What every prompt begins with, then the name and the end; nothing of the template is lost."""
    processor = ZegClipProcessor(image_processor, tokenizer, prompt_templates=[template])
    ids = processor.text_prompt_ids()
    assert all(type(index) is int for index in ids)
    assert [ids[0], ids[-1]] == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    for name in ("cat", "b", "5-d"):
        own = tokenizer(name)["input_ids"][1:]
        assert processor(text=[name])["input_ids"] == [[*ids[:-1], *own]]


def test_the_default_template_has_six_text_prompts():
    """In the papers' vocabulary; the embedded model's has the same four words."""
    processor = ZegClipProcessor.from_pretrained(DEFAULT_MODEL)
    words = processor.tokenizer.convert_ids_to_tokens(processor.text_prompt_ids())
    assert words == ["<|startoftext|>", "a</w>", "photo</w>", "of</w>", "a</w>", "<|endoftext|>"]


@pytest.mark.parametrize(
    "templates",
    [["a photo of a {}", "the {}"], ["the {} there"], ["a {}."], ["a {} "], ["{}"], [" {}"], ["a photo of a{}"]],
)
def test_templates_that_text_prompts_cannot_stand_for(image_processor, tokenizer, templates):
    """Without a space before the name, its letters and the last word's make tokens that no other name has."""
    processor = ZegClipProcessor(image_processor, tokenizer, prompt_templates=templates)
    with pytest.raises(InputError, match=re.escape(str(templates))):
        processor.text_prompt_ids()


@pytest.mark.parametrize("templates", [None, ["a {}", "the {} there"]])
def test_round_trip(tmp_path, image_processor, tokenizer, templates):
    saved = ZegClipProcessor(image_processor, tokenizer, prompt_templates=templates)
    saved.save_pretrained(tmp_path)
    loaded = ZegClipProcessor.from_pretrained(tmp_path)
    assert loaded.prompt_templates == (templates or ["a photo of a {}"])
    assert json.loads((tmp_path / "processor_config.json").read_text())["prompt_templates"] == loaded.prompt_templates
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    before = saved(images=picture, text=["cat", "tree"], return_tensors="pt")
    after = loaded(images=picture, text=["cat", "tree"], return_tensors="pt")
    assert before.keys() == after.keys()
    assert all(torch.equal(torch.as_tensor(before[key]), torch.as_tensor(after[key])) for key in before)


def test_names_are_padded_on_the_right_whatever_the_tokenizer_is_told(processor):
    expected = processor(text=["cat", "a cat"], return_tensors="pt")
    processor.tokenizer.padding_side = "left"
    given = processor(text=["cat", "a cat"], return_tensors="pt")
    assert all(torch.equal(given[name], expected[name]) for name in ("input_ids", "attention_mask"))


def test_names_as_a_string_and_templates_of_a_call(processor):
    assert processor(text="cat, a tree")["input_ids"] == processor(text=["cat", "a tree"])["input_ids"]
    templates = ["the {}", "a photo of a {}"]
    given = processor(text=["cat", "tree"], prompt_templates=templates)
    processor.prompt_templates = templates
    assert dict(given) == dict(processor(text=["cat", "tree"]))
    assert given["num_templates"] == 2
    processor.prompt_templates = "the {}"  # one, not its letters
    assert processor(text=["cat"])["num_templates"] == 1
    moved = {name: value.to("cpu") for name, value in processor(text=["cat"], return_tensors="pt").items()}
    assert moved["num_templates"] == 1


def test_misspelt_arguments_are_refused(processor):
    with pytest.raises(TypeError, match="do_resiz"):
        processor(images=Image.new("RGB", (8, 8)), do_resiz=False)
    with pytest.raises(TypeError, match="paddin"):
        processor(text=["cat"], text_kwargs={"paddin": True})
    processor(images=Image.new("RGB", (8, 8)), text=["cat"], images_kwargs={"do_resize": False}, padding=True)


@pytest.mark.parametrize(
    "arguments",
    [
        {"do_center_crop": True, "crop_size": 8},
        {"do_pad": True},
        {"crop_size": 8},
        {"data_format": "channels_last"},
        {"is_split_into_words": True},
        {"add_special_tokens": False},
    ],
)
def test_what_it_cannot_do_is_refused(processor, arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        processor(images=Image.new("RGB", (8, 8)), text=["cat"], **arguments)


def test_background_gets_no_class(processor):
    inputs = processor(text=[["cat", "tree"], "b"], background=["sky", "sea"], return_tensors="pt")
    assert inputs["class_of_name"].tolist() == [0, 0, 1, -1, -1]
    likely = torch.tensor([[1.0, 3, 1, 5, 2], [1, 2, 4, 3, 0.5]])  # of two pixels
    logits = likely.log().T.reshape(1, 5, 1, 2)
    outputs = TrainingFreeSegmenterOutput(logits=logits, class_of_name=inputs["class_of_name"])
    [result] = processor.post_process_semantic_segmentation(outputs, return_segmentation_scores=True)
    assert result["segmentation"].tolist() == [[-1, 1]]
    expected = torch.tensor([[3 / 12, 2 / 10.5], [1 / 12, 4 / 10.5]])
    torch.testing.assert_close(result["segmentation_scores"][:, 0], expected)
    [ids] = processor.post_process_semantic_segmentation(outputs)
    assert torch.equal(ids, result["segmentation"])


def test_a_single_class_without_training_is_remarked_on(processor):
    for class_of_name in (None, torch.tensor([0, 0])):
        outputs = TrainingFreeSegmenterOutput(logits=torch.zeros(1, 1 if class_of_name is None else 2, 2, 2))
        outputs["class_of_name"] = class_of_name
        with pytest.warns(UserWarning, match="background"):
            processor.post_process_semantic_segmentation(outputs)
