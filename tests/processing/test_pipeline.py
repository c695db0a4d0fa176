import base64
import copy
import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPProcessor, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from zegclip import DeepPromptConfig
from zegclip.processing import name_encoder
from zegclip.processing import pipeline as pipeline_module
from zegclip.processing.input_error import InputError
from zegclip.processing.merging import merge_masks
from zegclip.processing.name_encoder import NameEncoder
from zegclip.processing.names import UnknownWordsWarning
from zegclip.processing.pipeline import TASK, ZeroShotImageSegmentationPipeline
from zegclip.processing.windows import predict_windows

LABELS = ["cat", "tree", "b"]


def make_pipeline(model, processor, **options):
    return ZeroShotImageSegmentationPipeline(model=model, processor=processor, task=TASK, device="cpu", **options)


@pytest.fixture
def pipe(model, processor):
    return make_pipeline(model, processor)


@pytest.fixture
def segment(pipe):
    """Segment pictures, by default noise and into LABELS."""
    return lambda images=None, **options: pipe(
        noise() if images is None else images, **{"candidate_labels": LABELS, **options}
    )


def embed(pipe, labels=LABELS):
    return NameEncoder(pipe.model, pipe.processor, None).encode(labels)


def noise(height=40, width=90, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def same(one, other):
    return all(
        a["label"] == b["label"] and a["score"] == b["score"] and a["mask"].tobytes() == b["mask"].tobytes()
        for a, b in zip(one, other, strict=True)
    )


def test_it_equals_processor_model_and_sliding_windows_in_sequence(segment, model, processor):
    with torch.no_grad():
        inputs = processor(images=noise(), text=LABELS, return_tensors="pt")
        class_embeds = model.get_class_embeds(inputs["input_ids"], inputs["attention_mask"])
        ids, scores = merge_masks(predict_windows(model, inputs["pixel_values"], class_embeds, 32, 20), (40, 90))
    assert len(ids.unique()) > 1
    results = segment()
    assert [result["label"] for result in results] == LABELS
    for index, result in enumerate(results):
        inside = ids == index
        assert result["mask"].mode == "L"
        np.testing.assert_array_equal(np.asarray(result["mask"]), 255 * inside.numpy())
        assert isinstance(result["score"], float)
        assert result["score"] == pytest.approx(scores[inside].mean().item() if inside.any() else 0.0, abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"refine": True},
        {"candidate_labels": [["cat", "dog"], "tree"]},
        {"background": ["dog"]},
        {"training_free_weight": 0.5, "background": ["dog"]},
    ],
)
@pytest.mark.parametrize("trained", [True, False])
def test_a_class_map_and_all_scores_say_what_the_masks_say(pipe, clip_folder, settings, trained):
    if not trained:
        settings = {name: value for name, value in settings.items() if name != "training_free_weight"}
        pipe = pipeline(TASK, model=str(clip_folder), device="cpu")
    settings = {"images": noise(), "candidate_labels": LABELS} | settings
    masks = pipe(**settings, return_segmentation_scores=True)
    result = pipe(**settings, output_type="class_map", return_segmentation_scores=True)
    ids, best = result["segmentation"], result["scores"]
    of_label = result["segmentation_scores"]
    assert of_label.shape == (len(masks), *ids.shape)
    assert 0 <= of_label.min() <= of_label.max() <= 1
    assert result["labels"] == [row["label"] for row in masks]
    for index, row in enumerate(masks):
        assert np.array_equal(np.asarray(row["mask"]) > 0, ids == index)
        assert np.array_equal(row["segmentation_scores"], of_label[index])
    inside = ids >= 0
    np.testing.assert_allclose(of_label.max(axis=0)[inside], best[inside], rtol=0, atol=1e-6)
    chosen = np.take_along_axis(of_label, np.maximum(ids, 0)[None], axis=0)[0]
    np.testing.assert_allclose(chosen[inside], best[inside], rtol=0, atol=1e-6)
    assert inside.all() or "background" in settings
    middle = float(np.median(best))
    above = pipe(**settings, output_type="class_map", threshold=middle)
    assert np.array_equal(above["segmentation"], np.where(best < middle, -1, ids))
    assert np.array_equal(above["scores"], best)
    assert "segmentation_scores" not in above


def test_paths_lists_tuples_and_generators(segment, tmp_path):
    pictures = [noise(seed=1), noise(30, 33, seed=2), noise(1, 1, seed=3)]
    pictures[0].save(tmp_path / "picture.png")
    expected = [segment(picture) for picture in pictures]
    assert same(segment(str(tmp_path / "picture.png")), expected[0])
    assert same(segment(tmp_path / "picture.png"), expected[0])
    for images in (pictures, tuple(pictures), (picture for picture in pictures)):
        assert all(same(one, other) for one, other in zip(segment(images), expected, strict=True))
    assert segment([]) == []


def test_names_are_encoded_once_for_all_pictures_of_a_call(segment, model, monkeypatch):
    calls, encode = [], model.get_class_embeds
    monkeypatch.setattr(model, "get_class_embeds", lambda **kwargs: calls.append(kwargs) or encode(**kwargs))
    for number, pictures in enumerate((noise(), [noise()] * 2, (noise(),) * 2, (noise() for _ in range(3))), start=1):
        list(segment(pictures))
        assert len(calls) == number


def step_of_fused_adamw(model, processor):
    weight = model.clip.text_projection.weight.requires_grad_(True)
    weight.grad = torch.randn_like(weight)
    torch.optim.AdamW([weight], lr=0.5, fused=True).step()


def change_unnoticed(model, processor):
    model.clip.text_projection.weight.data.copy_(torch.randn(32, 32))


def add_text_prompts(model, processor):
    ids = processor.text_prompt_ids()
    config = DeepPromptConfig(text_prompts="words", text_prompt_ids=ids, text_prompt_init="random")
    model.add_adapter(config, "random")
    model.eval()  # what is added is in training mode


def load_others(model, processor):
    model.load_state_dict({name: 2 * weight for name, weight in model.state_dict().items()})


@pytest.mark.parametrize("change", [step_of_fused_adamw, change_unnoticed, add_text_prompts, load_others])
def test_a_changed_model_gives_results_of_its_own(pipe, segment, model, processor, change):
    before = embed(pipe)
    segment()
    change(model, processor)
    assert same(segment(), make_pipeline(model, processor)(noise(), candidate_labels=LABELS))
    assert not torch.allclose(embed(pipe), before)


def test_adapters_that_are_switched_give_results_of_their_own(pipe, model, processor):
    plain = embed(pipe)
    add_text_prompts(model, processor)
    tuned = embed(pipe)
    assert not torch.allclose(tuned, plain)
    model.disable_adapters()
    assert torch.equal(embed(pipe), plain)
    model.enable_adapters()
    assert torch.equal(embed(pipe), tuned)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_converted_model_gives_results_in_its_new_precision(pipe, segment, model, processor, dtype):
    segment()
    model.to(dtype)
    assert embed(pipe).dtype == dtype
    assert same(segment(), make_pipeline(model, processor)(noise(), candidate_labels=LABELS))


def test_long_names_are_not_encoded_beside_short_ones(pipe, model, processor, monkeypatch):
    monkeypatch.setattr(name_encoder, "ROWS_AT_ONCE", 2)
    labels = ["cat", "a b c d e f g h", "dog", "a b c d e f g h i", "tree"]
    expected = model.get_class_embeds(**processor(text=labels, return_tensors="pt")).detach()
    widths, encode = [], model.get_class_embeds
    monkeypatch.setattr(
        model, "get_class_embeds", lambda **kwargs: widths.append(kwargs["input_ids"].shape[1]) or encode(**kwargs)
    )
    torch.testing.assert_close(embed(pipe, labels), expected, atol=1e-6, rtol=0)
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_labels_as_a_string_and_as_a_default(segment, model, processor):
    assert same(segment(candidate_labels="cat, tree,b"), segment())
    assert same(segment(candidate_labels="\ncat,\ntree\r\nb\n"), segment())
    assert same(make_pipeline(model, processor, candidate_labels=LABELS)(noise()), segment())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        *(
            ({"candidate_labels": labels}, "[Cc]lass")
            for labels in ([], ["cat", "cat"], ["cat", 3], ["cat", ""], "cat,,tree", "", None)
        ),
        *(({"threshold": threshold}, "threshold") for threshold in (50, -0.1, float("nan"), "0.2")),
        ({"training_free_weight": "0.5"}, "training_free_weight"),
        ({"window_size": 16, "window_stride": 17}, "window_stride"),
        ({"batch_size": 0}, "batch_size"),
        ({"output_type": "mask"}, "output_type"),
        ({"images": "no_such.png"}, r"no_such\.png"),
        # Names are compared also if they are not encoded together.
        ({"candidate_labels": ["a  b", "a b", "cat"]}, "'a  b' and 'a b'"),
    ],
)
def test_bad_arguments_are_named(segment, monkeypatch, arguments, named):
    monkeypatch.setattr(name_encoder, "ROWS_AT_ONCE", 1)
    with pytest.raises(InputError, match=named):
        segment(**arguments)


def test_unknown_arguments_are_refused(segment):
    with pytest.raises(TypeError, match="'stride'"):
        segment(stride=3)


def test_threshold_takes_pixels_away(segment):
    assert all(result["mask"].getbbox() is None for result in segment(threshold=1.0))
    assert same(segment(threshold=None, output_type=None), segment())
    for free, limited in zip(segment(threshold=0.0), segment(threshold=0.5)):
        assert not (np.asarray(limited["mask"]) & ~np.asarray(free["mask"])).any()


def test_window_arguments(segment, processor):
    assert same(segment(window_size=32, window_stride=20), segment())
    # Given alone, the size keeps the overlap in proportion: 16 * 20 // 32.
    assert same(segment(window_size=16), segment(window_size=16, window_stride=10))
    whole = segment(window_size=None)
    assert same(segment(window_size=1000), whole)
    processor.image_processor.window_size = None
    assert same(segment(), whole)


def test_templates_are_those_of_the_call_or_of_the_model(pipe, segment, model, processor):
    templates = ["a {}", "the {} there", "one {}"]
    prompts = processor(text=LABELS, prompt_templates=templates, return_tensors="pt")
    expected = model.get_class_embeds(**prompts)
    assert len(expected) == len(LABELS)
    one = segment()
    several = segment(hypothesis_template=templates)
    assert not same(several, one)
    assert same(make_pipeline(model, processor, hypothesis_template=templates)(noise(), LABELS), several)
    assert same(segment(hypothesis_template=processor.prompt_templates[0]), one)
    with pytest.raises(InputError, match="cat"):
        segment(hypothesis_template="a cat")

    processor.prompt_templates = ["the {}"]
    with pytest.warns(UserWarning, match="the {}"):
        assert same(segment(), one)
    model.config.prompt_templates = templates  # as a loaded adapter's
    with pytest.warns(UserWarning, match="one {}"):
        torch.testing.assert_close(embed(pipe), expected, atol=1e-6, rtol=0)
    processor.prompt_templates = templates
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(segment(), several)


def test_an_adapter_that_is_switched_between_two_pictures_takes_its_names_along(pipe, segment, model, processor):
    plain = segment()
    add_text_prompts(model, processor)
    tuned = segment()
    model.disable_adapters()
    results = iter(segment(noise() for _ in range(3)))
    found = [next(results)]
    model.enable_adapters()
    found.append(next(results))
    model.disable_adapters()
    found.append(next(results))
    assert [same(one, plain) for one in found] == [True, False, True]
    assert same(found[1], tuned)


def test_every_picture_may_have_labels_of_its_own(segment, model, processor):
    own = {"image": noise(seed=1), "candidate_labels": ["dog", "cat"]}
    expected = [segment(noise(seed=1), candidate_labels=["dog", "cat"]), segment(noise(seed=2))]
    assert same(segment(own, candidate_labels=None), expected[0])
    mixed = [own, {"image": noise(seed=2)}]
    for images in (mixed, iter(mixed), datasets.Dataset.from_list(mixed)):
        assert all(same(one, other) for one, other in zip(segment(images), expected, strict=True))
    many = [{"image": noise(), "candidate_labels": [f"cat {number}"]} for number in range(20)]
    embedded = NameEncoder(model, processor, None)
    for number in range(20):
        embedded.encode([f"cat {number}"])
    assert len(segment(many)) == 20
    assert len(embedded.encoded) == name_encoder.LISTS_KEPT  # not all, which could fill the memory
    with pytest.raises(InputError, match="candidate_labels"):
        segment(mixed, candidate_labels=None)
    with pytest.raises(InputError, match="'cat'"):
        segment({"image": noise(), "candidate_labels": "cat, cat"})
    with pytest.raises(InputError, match="'image'"):
        segment({"picture": noise()})
    assert same(segment({"image": noise(), "candidate_labels": np.array(LABELS)}), segment())


def test_synonyms_make_one_class(segment, model, processor):
    flat = segment(candidate_labels=["cat", "tree", "b", "dog"])
    nested = segment(candidate_labels=[["cat", "b"], ["tree", "dog"]])
    assert [result["label"] for result in nested] == ["cat", "tree"]
    masks = {result["label"]: np.asarray(result["mask"]) for result in flat}
    np.testing.assert_array_equal(np.asarray(nested[0]["mask"]), masks["cat"] | masks["b"])
    # The order of synonyms, a name twice and lists of one name change nothing but the label.
    reordered = segment(candidate_labels=[["b", "cat", "b"], ["dog", "tree"]])
    assert [np.array_equal(a["mask"], b["mask"]) for a, b in zip(nested, reordered, strict=True)] == [True, True]
    assert same(segment(candidate_labels=[[label] for label in LABELS]), segment())
    own = {"image": noise(), "candidate_labels": [["cat", "b"], ["tree", "dog"]]}
    assert same(segment(own), nested)

    inputs = processor(images=noise(), text=[["cat", "b"], ["tree", "dog"]], return_tensors="pt")
    assert inputs["class_of_name"].tolist() == [0, 0, 1, 1]
    outputs = model(**inputs)
    assert outputs.logits.shape[1] == 4
    (ids,) = processor.post_process_semantic_segmentation(outputs, [(40, 90)])
    (scored,) = processor.post_process_semantic_segmentation(outputs, [(40, 90)], return_segmentation_scores=True)
    assert torch.equal(scored["segmentation"], ids)
    assert scored["segmentation_scores"].shape == (2, 40, 90)
    outputs.class_of_name = None
    (names,) = processor.post_process_semantic_segmentation(outputs, [(40, 90)])
    assert torch.equal(names // 2, ids)
    labels = torch.randint(0, 2, (1, *inputs["pixel_values"].shape[-2:]), generator=torch.Generator().manual_seed(0))
    loss = model(**inputs, labels=labels).loss
    best = torch.stack([outputs.logits[:, :2].amax(dim=1), outputs.logits[:, 2:].amax(dim=1)], dim=1)
    torch.testing.assert_close(loss, sum(model.compute_loss(best, labels)[0].values()))


def test_a_blend_with_what_the_clip_says_without_training(model, processor, tmp_path):
    """Also of an adapter with text prompts, which the training-free part must not use."""
    prompts = DeepPromptConfig(num_tokens=2, text_prompts="words", text_prompt_ids=processor.text_prompt_ids())
    model.add_adapter(prompts)
    pipe = make_pipeline(model.eval(), processor)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "prompt" in name:
                parameter.normal_()
        inputs = processor(images=noise(), text=LABELS, return_tensors="pt")
        names = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        own, alone = (model.get_class_embeds(**names, with_prompts=with_prompts) for with_prompts in (True, False))
        assert not torch.allclose(own, alone, atol=1e-2)
        windows = predict_windows(model, inputs["pixel_values"], own, 32, 20)
        others = predict_windows(model.get_training_free_logits, inputs["pixel_values"], alone, 32, 20)
    for weight in (0.25, 1.0):
        ids, scores = merge_masks(windows, (40, 90), blend=(others, weight))
        for index, result in enumerate(pipe(noise(), candidate_labels=LABELS, training_free_weight=weight)):
            inside = ids == index
            np.testing.assert_array_equal(np.asarray(result["mask"]), 255 * inside.numpy())
            assert result["score"] == pytest.approx(scores[inside].mean().item() if inside.any() else 0.0, abs=1e-6)
    unblended, blended = (
        pipe(noise(), candidate_labels=LABELS, training_free_weight=weight) for weight in (0.0, 0.25)
    )
    assert not same(unblended, blended)
    assert same(pipe(noise(), candidate_labels=LABELS), unblended)
    # An adapter that was stored with a weight is used with it.
    model.config.training_free_weight = 0.25
    pipe.save_pretrained(tmp_path)
    stored = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert same(stored(noise(), candidate_labels=LABELS), blended)
    assert same(stored(noise(), candidate_labels=LABELS, training_free_weight=0.0), unblended)


def test_a_single_label_competes_in_a_blend_too(segment):
    """Without training it would get the score 1 everywhere, whatever is there."""
    options = {"candidate_labels": ["cat"], "training_free_weight": 1.0}
    [alone] = segment(background=False, **options)
    assert alone["score"] == 1.0
    [usual] = segment(**options)
    assert 0 <= usual["score"] < 1
    assert same([usual], segment(background=True, **options))
    as_default = segment(candidate_labels=["cat"])  # the trained head's sigmoid needs no others
    assert same(as_default, segment(candidate_labels=["cat"], background=False))


def test_arrays_and_tensors(segment):
    expected = segment()
    array = np.asarray(noise())
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for picture in (array, tensor, tensor.float() / 255):
        assert same(segment(picture), expected)
    for batch in (array[None].repeat(2, axis=0), tensor[None].expand(2, -1, -1, -1), [array, tensor]):
        assert all(same(one, expected) for one in segment(batch))
    transparent = np.asarray(noise().convert("RGBA"))
    assert same(segment(transparent), expected)
    grey = np.asarray(noise().convert("L"))
    assert same(segment(grey), segment(Image.fromarray(grey)))


def test_columns_of_a_data_set(segment):
    pictures = datasets.Dataset.from_dict({"image": [noise(seed=1), noise(30, 50, seed=2)]})
    expected = [segment(noise(seed=1)), segment(noise(30, 50, seed=2))]
    for images in (pictures["image"], KeyDataset(pictures, "image"), map(dict, pictures)):
        assert all(same(one, other) for one, other in zip(segment(images), expected, strict=True))


def test_pictures_as_base64(segment, tmp_path):
    noise().save(tmp_path / "picture.png")
    text = base64.b64encode((tmp_path / "picture.png").read_bytes()).decode()
    assert same(segment(text), segment())
    assert same(segment(f"data:image/png;base64,{text}"), segment())
    with pytest.raises(InputError) as raised:
        segment(text[200:])
    assert len(str(raised.value)) < 200


def test_parts_of_the_processor(model, processor, segment):
    image_processor = copy.deepcopy(processor.image_processor)
    image_processor.size = {"shortest_edge": 64}
    own = make_pipeline(model, processor, image_processor=image_processor)
    assert not same(own(noise(), candidate_labels=LABELS), segment())
    processor.image_processor = image_processor
    assert same(own(noise(), candidate_labels=LABELS), segment())
    with pytest.raises(InputError, match="CLIPProcessor"):
        make_pipeline(model, CLIPProcessor(CLIPImageProcessorPil(), processor.tokenizer))
    with pytest.raises(InputError, match="not a CLIPImageProcessorPil"):
        make_pipeline(model, processor, image_processor=CLIPImageProcessorPil())
    with pytest.raises(InputError, match="not a CLIPVisionModel"):
        make_pipeline(model.clip.vision_model, processor)


def test_threads_predict_without_dropout_while_the_model_trains(pipe, segment):
    expected = segment()
    pipe.model.train()
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: segment(), range(16)))
    assert all(same(result, expected) for result in results)
    assert pipe.model.training


def test_the_batch_size_is_that_of_windows(model, processor, segment, monkeypatch):
    calls, forward = [], model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda pixel_values, **kwargs: calls.append(len(pixel_values)) or forward(pixel_values=pixel_values, **kwargs),
    )
    segment()
    segment(batch_size=2)
    make_pipeline(model, processor, batch_size=1)([noise()], candidate_labels=LABELS)
    assert calls == [3, 2, 1, 1, 1, 1]


def test_names_of_the_configuration_in_the_pipeline_for_image_segmentation(model, processor, segment, tmp_path):
    model.set_class_names(LABELS, processor)
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    loaded = pipeline("image-segmentation", model=str(tmp_path), device="cpu")
    results = {result["label"]: np.asarray(result["mask"]) for result in loaded(noise())}
    expected = {result["label"]: np.asarray(result["mask"]) for result in segment(window_size=None)}
    assert set(results) == {label for label, mask in expected.items() if mask.any()}
    assert len(results) > 1
    for label, mask in results.items():
        # That pipeline upsamples logits, this one also their sigmoid to the picture's size.
        assert (mask == expected[label]).mean() > 0.95


def test_scores_that_are_nan_are_refused(segment, model):
    with torch.no_grad():
        model.clip.visual_projection.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        segment()


def test_a_tokenizer_of_another_model(pipe, tokenizer):
    tokenizer.add_tokens(["zebra"])
    pipe.processor.tokenizer = tokenizer
    with pytest.raises(InputError, match="token id 82"):
        pipe(noise(), candidate_labels=["cat", "zebra"])


@pytest.mark.parametrize("together", [True, False])
def test_what_is_saved_is_found_by_the_name_of_the_task(pipe, segment, model, processor, tmp_path, together):
    for part in (pipe,) if together else (model, processor):
        part.save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert type(loaded) is ZeroShotImageSegmentationPipeline
    assert same(loaded(noise(), candidate_labels=LABELS), segment())


def test_a_batch_size_that_ran_out_of_memory_is_not_tried_again_in_the_same_call(pipe, segment, monkeypatch):
    pictures = [noise(seed=seed) for seed in range(3)]
    expected = segment(pictures)
    calls, forward = [], pipe.model.forward

    def small_device(pixel_values, **kwargs):
        calls.append(len(pixel_values))
        if len(pixel_values) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(pixel_values=pixel_values, **kwargs)

    monkeypatch.setattr(pipe.model, "forward", small_device)
    with pytest.warns(UserWarning, match=r"\b2\b"):
        found = segment(pictures)
    for one, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)  # sums of other orders
        assert (np.asarray(one["mask"]) == np.asarray(other["mask"])).mean() > 0.999
    assert calls == [3, 2, 1, 2, 1, 2, 1]
    calls.clear()
    segment(batch_size=1)
    assert calls == [1] * 3


def test_a_picture_too_large_for_the_memory_is_named_and_the_next_is_segmented(segment, monkeypatch):
    merge = pipeline_module.merge_masks

    def refuse_wide(windows, target_size, **kwargs):
        if target_size == (40, 90):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes.")
        return merge(windows, target_size, **kwargs)

    monkeypatch.setattr(pipeline_module, "merge_masks", refuse_wide)
    with pytest.raises(MemoryError, match="40 x 90"):
        segment()
    results = iter(segment(noise(width=width) for width in (60, 90, 60)))
    first = next(results)
    with pytest.raises(MemoryError):
        next(results)
    assert same(next(results), first)


def test_unknown_words_are_reported_before_segmentation(pipe, recwarn):
    pipe.model.config.vocabulary = ["a", "photo", "of", "cat", "tree"]
    pipe(noise(), candidate_labels=["cat", "tree"])
    assert not [item for item in recwarn if item.category is UnknownWordsWarning]
    with pytest.warns(UnknownWordsWarning, match="'zebra'") as caught:
        pending = pipe((noise() for _ in range(1)), candidate_labels=["cat", "zebra"])
    assert caught[0].filename == __file__
    assert len(list(pending)) == 1
    with pytest.warns(UnknownWordsWarning, match="'a sketch of a {}'"):
        pipe(noise(), candidate_labels=["cat", "tree"], hypothesis_template="a sketch of a {}")


def test_a_pil_image_with_an_exif_orientation_comes_with_a_warning(pipe, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 64)).save(tmp_path / "phone.png", exif=exif)
    with pytest.warns(UserWarning, match="exif_transpose"):
        (row,) = pipe(Image.open(tmp_path / "phone.png"), candidate_labels=["cat"])
    assert row["mask"].size == (64, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = pipe(str(tmp_path / "phone.png"), candidate_labels=["cat"])
    assert row["mask"].size == (64, 32)


def test_a_model_in_training_mode_predicts_without_dropout_and_stays_in_it(pipe, segment):
    expected = segment()
    pipe.model.config.decoder_dropout = 0.9
    pipe.model.train()
    assert same(segment(), expected)
    assert pipe.model.training


def test_unknown_settings_of_a_picture_are_refused(segment):
    with pytest.raises(InputError, match="'threshold'"):
        segment({"image": noise(), "candidate_labels": LABELS, "threshold": 0.5})


def test_a_pipeline_in_another_precision_is_saved(model, processor, tmp_path):
    """transformers gives the tokenizer the dtype as well, which then cannot be saved."""
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = pipeline(TASK, model=str(tmp_path / "model"), dtype=torch.bfloat16)
    loaded.save_pretrained(tmp_path / "again")
    again = pipeline(TASK, model=str(tmp_path / "again"))
    assert again.model.dtype == torch.bfloat16
    assert same(again(noise(), candidate_labels=LABELS), loaded(noise(), candidate_labels=LABELS))
