"""Properties of the model: batches, names, sizes, precisions, saving and loading."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_models import HEADS, gradients, labels, load, logits, move, names, pictures, random
from transformers import CLIPModel, Trainer, TrainingArguments

from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.modeling.head_zegclip import IDENTITY_SLOPE, IDENTITY_THRESHOLD
from zegclip.modeling.loss_maps import count_present_masks
from zegclip.modeling.losses import dice_loss, focal_loss, ssim_loss
from zegclip.modeling.model_error import ModelError
from zegclip.processing.input_error import InputError
from zegclip.processing.names import UnknownWordsWarning


@pytest.fixture
def prompted(model):
    """A model with an adapter whose values are all away from their initial ones."""
    model.add_adapter(DeepPromptConfig(num_tokens=3))
    return move(model, by=0.05)


@pytest.fixture(params=HEADS)
def whole(request, model):
    """A model with each kind of trained head and an adapter, all values away from their initial ones."""
    kind = request.param
    config = ZegClipConfig(clip_config=model.config.clip_config, decode_head_type=kind, **HEADS[kind])
    torch.manual_seed(0)
    whole = ZegClipForSemanticSegmentation(config)
    whole.add_adapter(DeepPromptConfig(num_tokens=3, spectral_prompt=kind == "spectral"))
    move(whole, by=0.05)
    head = whole.decode_head.modules_to_save["default"]
    with torch.no_grad():
        if kind == "consensus":
            # From weights of 0.02 the descriptor would be all bias: the same for all names.
            head.query_proj.weight *= 10
        elif kind == "spectral":
            mixing = head.mask_scores.mixing
            for parameter in mixing.low_proj.parameters():
                parameter *= 0.1  # what patches have in common would put all of them on the same side of the gate
            mixing.gate.copy_(random(32, seed=5))
            share = (mixing(whole.get_image_embeds(pictures())[1]).abs().amax(dim=-1) > 0).float().mean()
            assert 0.2 < share < 0.8
    return whole


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 24), (33, 50), (1, 1), (8, 72)])
def test_any_size_and_number_of_names(whole, height, width):
    for count in (1, 7):
        scores = logits(whole, {"pixel_values": pictures(2, height, width), "class_embeds": names(count)})
        assert scores.shape == (2, count, -(-height // 8), -(-width // 8))
        assert scores.isfinite().all()


def test_autocast(whole):
    inputs = {"pixel_values": pictures(), "class_embeds": names(), "labels": labels()}
    exact = logits(whole, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = whole(**inputs)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert (output.logits.float() - exact).abs().max() < 0.1 * exact.abs().max()
    for name, parameter in whole.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any() or name.endswith("k_proj.bias"), name


@torch.no_grad()
def test_a_batch_equals_its_pictures(whole):
    batch = pictures(3, 40, 24)
    together = whole(batch, class_embeds=names()).logits
    alone = torch.cat([whole(picture[None], class_embeds=names()).logits for picture in batch])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_permuted_names_permute_the_logits(whole):
    order = torch.tensor([2, 0, 1])
    straight = whole(pictures(), class_embeds=names()).logits
    permuted = whole(pictures(), class_embeds=names()[order]).logits
    torch.testing.assert_close(permuted, straight[:, order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_another_name_leaves_the_others_alone_but_where_patches_look_at_names(whole, count):
    few = whole(pictures(), class_embeds=names(7)[:count]).logits
    more = whole(pictures(), class_embeds=names(7)).logits[:, :count]
    if whole.config.decode_head_type == "consensus":
        assert (more - few).abs().amax(dim=(0, 2, 3)).min() > 0.01  # of each name, and far beyond rounding
    else:
        torch.testing.assert_close(more, few, atol=1e-5, rtol=0)


def test_eager_equals_sdpa(whole, processor):
    """Logits, and the gradients of all that is trained."""
    inputs = {"pixel_values": pictures(2, 40, 24), **processor(text=["cat", "a longer name"], return_tensors="pt")}
    outputs, learned = {}, {}
    for implementation in ("eager", "sdpa"):
        whole.set_attn_implementation(implementation)
        configs = [module.config for module in whole.decode_head.modules() if hasattr(module, "config")]
        assert {config._attn_implementation for config in configs} == {implementation}
        outputs[implementation] = logits(whole, inputs)
        learned[implementation] = gradients(whole, inputs | {"labels": labels(2, 40, 24)})
    torch.testing.assert_close(outputs["eager"], outputs["sdpa"], atol=1e-5, rtol=0)
    for name, gradient in learned["eager"].items():
        torch.testing.assert_close(gradient, learned["sdpa"][name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_other_precisions(whole, dtype):
    inputs = {"class_embeds": names(), "labels": labels()}
    exact = whole(pictures(), **inputs)
    other = whole.to(dtype)(pictures().to(dtype), **inputs)
    assert other.logits.dtype == dtype
    assert other.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (other.logits.float() - exact.logits).abs().max() < 0.1 * exact.logits.abs().max()


def test_everything_trained_learns_and_gradient_checkpointing_changes_nothing(whole):
    inputs = {"pixel_values": pictures(), "class_embeds": names(), "labels": labels()}
    expected, actual = (gradients(whole, inputs, checkpointing) for checkpointing in (False, True))
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        # A softmax does not change by what is added to all of its scores.
        assert gradient.abs().max() > 1e-8 or name.endswith("k_proj.bias"), name
        torch.testing.assert_close(actual[name], gradient, msg=name)


def test_compiles_with_any_number_of_names(prompted):
    torch._dynamo.reset()
    compiled = torch.compile(prompted, backend="aot_eager", dynamic=True, fullgraph=True)
    for count in (7, 5, 40):  # at first none that another side has too, which PyTorch would take for the same
        inputs = {"pixel_values": pictures(), "class_embeds": names(count), "output_hidden_states": True}
        with torch._dynamo.config.patch(error_on_recompile=count != 7):
            actual = logits(compiled, inputs)
        expected = logits(prompted, inputs)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["spectral"], indirect=True)
def test_spt_seg_compiles_with_any_number_of_names_and_any_size(whole):
    torch._dynamo.reset()
    compiled = torch.compile(whole, backend="aot_eager", dynamic=True, fullgraph=True)
    for count, size in ((3, (32, 40)), (5, (48, 24))):  # 2 would be taken for the batch
        inputs = {"pixel_values": pictures(2, *size), "class_embeds": names(count)}
        expected = logits(whole, inputs)
        torch.testing.assert_close(logits(compiled, inputs), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_tuple_output(prompted):
    output = prompted(pictures(), class_embeds=names())
    assert torch.equal(prompted(pictures(), class_embeds=names(), return_dict=False)[0], output.logits)


def test_templates_are_averaged(model, processor):
    processor.prompt_templates = ["a photo of a {}", "the {}"]
    tokens = processor(text=["cat", "dog"], return_tensors="pt")
    both = model.get_class_embeds(**tokens)
    alone = []
    for template in processor.prompt_templates:
        processor.prompt_templates = [template]
        alone.append(model.get_class_embeds(**processor(text=["cat", "dog"], return_tensors="pt")))
    expected = F.normalize(alone[0] + alone[1], dim=-1)
    torch.testing.assert_close(both, expected, atol=1e-5, rtol=0)


def test_rows_that_are_no_multiple_of_the_templates(model):
    model.config.prompt_templates = ["{}", "a {}"]
    with pytest.raises(ValueError, match="templates"):
        model.get_class_embeds(torch.ones(3, 4, dtype=torch.long))


def test_names_are_needed_once(model):
    for inputs in ({}, {"input_ids": torch.ones(1, 4, dtype=torch.long), "class_embeds": names()}):
        with pytest.raises(ModelError, match="class_embeds"):
            model(pictures(), **inputs)


@pytest.mark.parametrize(("bad", "named"), [(3, "id 3"), (254, "id 254"), (-1, "id -1"), (0.7, "whole numbers")])
def test_labels_that_are_no_ids_of_the_names(model, bad, named):
    ids = torch.full((2, 32, 32), 255, dtype=torch.float32 if isinstance(bad, float) else torch.long)
    ids[1, 5, 6] = bad
    with pytest.raises(ModelError, match=named):
        model(pictures(), class_embeds=names(), labels=ids)


def test_the_loss_ignores_how_the_trainer_counts(model):
    inputs = {"pixel_values": pictures(), "class_embeds": names(), "labels": labels()}
    assert torch.equal(model(**inputs).loss, model(**inputs, num_items_in_batch=7).loss)
    assert model.accepts_loss_kwargs is False


@pytest.mark.parametrize(
    "weights",
    [
        {"focal_weight": 100.0, "dice_weight": 1.0, "ssim_weight": 0.0},
        {"focal_weight": 100, "dice_weight": 0, "ssim_weight": 1},
        {"focal_weight": 0.0, "dice_weight": 0.0, "ssim_weight": 3.0},
        {"focal_weight": 2.0, "dice_weight": 0.5, "ssim_weight": 0.25, "cross_entropy_weight": 0.5},
        {"focal_weight": 0, "dice_weight": 0, "cross_entropy_weight": 2},
    ],
)
@pytest.mark.parametrize("ignored_as_negatives", [True, False])
@pytest.mark.parametrize("of_probabilities", [True, False])
def test_the_loss_is_the_sum_of_the_terms_with_a_weight(model, weights, ignored_as_negatives, of_probabilities):
    """Each term is computed from the upsampled logits, with the configuration's options."""
    given = {"focal_alpha": 0.4, "focal_gamma": 1.5, "ssim_of_probabilities": of_probabilities}
    given |= {"ignored_pixels_as_negatives": ignored_as_negatives}
    config = ZegClipConfig(**weights, **given)  # a weight that is not named keeps its default
    for name in (*given, "focal_weight", "dice_weight", "ssim_weight", "cross_entropy_weight"):
        setattr(model.config, name, getattr(config, name))
    ids = labels(ignored_rows=9)
    output = model(pictures(), class_embeds=names(), labels=ids)
    scores = F.interpolate(output.logits, size=(32, 32), mode="bilinear")
    present, count = count_present_masks(ids, 3, 255)
    rule = {"ignored_as_negatives": ignored_as_negatives}
    terms = {
        "focal": focal_loss(scores, ids, count, alpha=0.4, gamma=1.5, **rule),
        "dice": dice_loss(scores, ids, present, count, **rule),
        "ssim": ssim_loss(scores, ids, of_probabilities=of_probabilities, **rule),
        "cross_entropy": F.cross_entropy(scores, ids, ignore_index=255),
    }
    expected = {
        f"loss_{name}": weights[f"{name}_weight"] * terms[name] for name in terms if weights.get(f"{name}_weight")
    }
    assert output.loss_dict.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(output.loss_dict[name], value)
    torch.testing.assert_close(output.loss, sum(output.loss_dict.values()))


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 65504.0), (torch.bfloat16, 1e6)])
@pytest.mark.parametrize("kind", ["mixed", "all ignored", "one class"])
def test_losses_of_logits_at_the_end_of_half_precision(model, dtype, largest, kind):
    for term in ("focal", "dice", "ssim", "cross_entropy"):
        setattr(model.config, f"{term}_weight", 1.0)
    signs = torch.randint(2, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0)) * 2 - 1
    scores = (signs * largest).to(dtype).requires_grad_()
    ids = {"mixed": labels(3, 16, 16), "all ignored": torch.full((2, 16, 16), 255)}
    ids["one class"] = torch.ones(2, 16, 16, dtype=torch.long)
    with torch.autocast("cpu", dtype=dtype):
        terms, _ = model.compute_loss(scores, ids[kind])
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.isfinite() for term in terms.values()), terms
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("with_adapter", [True, False])
def test_save_and_load_identity(whole, tmp_path, with_adapter):
    if not with_adapter:
        whole.delete_adapter("default")
        move(whole, by=0.05)  # the base's own head is at its initial values
    whole.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.config.describe_head() == whole.config.describe_head()
    stored = again.state_dict()
    assert stored.keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(stored[name], tensor), name
    # Where the weights lie in memory decides how a matrix product rounds its last bit.
    inputs = {"pixel_values": pictures(2, 40, 24), "class_embeds": names()}
    torch.testing.assert_close(logits(again, inputs), logits(whole, inputs), atol=1e-5, rtol=0)
    assert {path.suffix for path in tmp_path.iterdir() if path.stat().st_size > 20_000} == {".safetensors"}


def test_everything_is_initialised_from_a_plain_clip(model, tmp_path):
    clip = CLIPModel(model.config.clip_config)
    clip.save_pretrained(tmp_path)
    loaded = load(tmp_path, config=ZegClipConfig(clip_config=clip.config, **HEADS["zegclip"]))
    for name, tensor in clip.state_dict().items():
        assert torch.equal(loaded.clip.state_dict()[name], tensor), name
    for name, parameter in loaded.decode_head.named_parameters():
        expected = model.decode_head.get_parameter(name)
        assert parameter.isfinite().all()
        assert 0.5 < (parameter.std() + 1e-3) / (expected.std() + 1e-3) < 2, name
    assert torch.equal(loaded.decode_head.layers[0].fc1.weight, loaded.decode_head.layers[1].fc1.weight)
    assert torch.equal(loaded.clip.vision_model.embeddings.position_ids[0], torch.arange(17))


def test_a_plain_clip_folder_is_enough(model, tmp_path):
    config = copy.deepcopy(model.config.clip_config)
    config.projection_dim = 64  # the default head has 8 heads
    CLIPModel(config).save_pretrained(tmp_path)
    loaded = ZegClipForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.config.clip_config.projection_dim == 64
    assert loaded.config.model_type == "zegclip"


def test_layers_start_alike(model):
    first, last = model.decode_head.layers[0], model.decode_head.mask_scores
    assert torch.equal(model.decode_head.layers[1].fc1.weight, first.fc1.weight)
    assert torch.equal(last.q_proj.weight, first.q_proj.weight)
    assert first.q_proj.weight.abs().max() <= 32**-0.5


@pytest.mark.parametrize("layers", [1, 3])
def test_identity_start_is_the_cosine_classifier(model, layers):
    config = copy.deepcopy(model.config)
    config.decode_head_init, config.num_decoder_layers = "identity", layers
    started = ZegClipForSemanticSegmentation(config).eval()
    centred = names() - names().mean(dim=-1, keepdim=True)  # what the layers' norms see
    with torch.no_grad():
        output = started(pictures(), class_embeds=centred)
    cosines = torch.einsum("bhwd,nd->bnhw", output.patch_embeds, F.normalize(output.class_embeds, dim=-1))
    if layers == 1:
        cosines = cosines * output.class_embeds.norm(dim=-1)[:, None, None]
    expected = IDENTITY_SLOPE * (cosines - IDENTITY_THRESHOLD)
    torch.testing.assert_close(output.logits, expected, atol=1e-3, rtol=1e-3)


def test_similarity_head_has_no_parameters(model):
    config = copy.deepcopy(model.config)
    config.decode_head_type = "similarity"
    baseline = ZegClipForSemanticSegmentation(config).eval()
    assert not list(baseline.decode_head.parameters())
    output = baseline(pictures(), class_embeds=names())
    assert output.score_function == "softmax"
    expected = config.similarity_scale * output.patch_embeds[1, 2, 3] @ names()[1]
    torch.testing.assert_close(output.logits[1, 1, 2, 3], expected)


def test_without_names_the_classes_are_those_of_the_configuration(model, processor, tmp_path):
    with pytest.raises(ModelError, match="set_class_names"):
        model(pictures())
    with pytest.raises(ModelError, match="input_ids"):
        model(pictures(), attention_mask=torch.ones(1, 3))
    with pytest.raises(ModelError, match="input_ids"):
        model(pictures(), input_ids=torch.ones(2, 4, 7, dtype=torch.long))
    for templates in (["a photo of a {}"], ["the {}", "a photo of a {}", "one {}"]):
        processor.prompt_templates = model.config.prompt_templates = templates
        classes = ["cat", "a longer name", "dog"]
        model.set_class_names(classes, processor)
        assert model.config.id2label == dict(enumerate(classes))
        expected = model(pictures(), **processor(text=classes, return_tensors="pt")).logits
        assert torch.equal(model(pictures()).logits, expected)
        labels = torch.zeros(2, 32, 32, dtype=torch.long)
        assert model(pictures(), labels=labels).loss.isfinite()
        model.save_pretrained(tmp_path)
        loaded = ZegClipForSemanticSegmentation.from_pretrained(tmp_path)
        assert torch.equal(loaded(pictures()).logits, expected)
    # Their token ids are those of these names in these templates alone.
    for change in ({"id2label": {0: "cat", 1: "tree"}}, {"prompt_templates": ["a {}"]}):
        other = ZegClipForSemanticSegmentation.from_pretrained(tmp_path, **change)
        with pytest.raises(ModelError, match="set_class_names"):
            other(pictures())
    with pytest.raises(ModelError, match="id2label"):  # names without a place in the logits
        ZegClipForSemanticSegmentation.from_pretrained(tmp_path, id2label={1: "cat", 3: "dog"})(pictures())
    fewer = ZegClipForSemanticSegmentation.from_pretrained(tmp_path, id2label={0: "dog", 1: "cat"})
    assert torch.equal(
        fewer(pictures()).logits, model(pictures(), **processor(text="dog, cat", return_tensors="pt")).logits
    )


def test_class_names_that_cannot_be_used_change_nothing(model, processor):
    model.set_class_names(["cat", "dog"], processor)
    before = model.config.to_dict()
    processor.tokenizer.add_tokens(["zebra"])
    for classes, other, error in (
        (["zebra", "cat"], processor, InputError),
        (["cat", "cat"], processor, InputError),
        (["cat"], processor.tokenizer, AttributeError),
    ):
        with pytest.raises(error):
            model.set_class_names(classes, other)
        assert model.config.to_dict() == before
    model.config.vocabulary = ["a", "photo", "of", "cat"]
    with pytest.warns(UnknownWordsWarning, match="dog") as caught:
        model.set_class_names(["cat", "dog"], processor)
    assert caught[0].filename == __file__


def test_a_plain_trainer_sees_labels_and_predicts_logits(model, processor, tmp_path):
    model.set_class_names(["cat", "dog"], processor)
    samples = [{"pixel_values": pictures(1, 32, 32)[0], "labels": torch.zeros(32, 32, dtype=torch.long)}] * 2
    trainer = Trainer(
        model,
        TrainingArguments(tmp_path, report_to="none", use_cpu=True),
        eval_dataset=samples,
        compute_metrics=lambda prediction: {"shape": list(prediction.predictions.shape)},
    )
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0
    assert metrics["eval_shape"] == [2, 2, 4, 4]  # the logits alone


def test_an_adapter_brings_its_class_names(model, processor, tmp_path):
    model.set_class_names(["cat"], processor)
    model.add_adapter(DeepPromptConfig(num_tokens=2), "one")
    model.set_class_names(["dog", "tree"], processor)
    model.add_adapter(DeepPromptConfig(num_tokens=2), "two")
    model.set_class_names(["dog", "cat", "tree"], processor)
    model.eval()
    for name, number in (("one", 2), ("two", 3), ("one", 2)):
        model.set_adapter(name)
        assert model(pictures()).logits.shape[1] == number


@pytest.mark.parametrize("argument", ["lables", "output_hidden_state", "pixel_mask"])
def test_an_argument_that_nobody_knows_is_refused(model, argument):
    with pytest.raises(TypeError, match=argument):
        model(pictures(), class_embeds=names(), **{argument: torch.zeros(2, 32, 32)})


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32, 3)])
def test_pixel_values_are_normalised_pictures(model, shape):
    with pytest.raises(ModelError, match="pixel_values"):
        model(pixel_values=torch.zeros(shape), class_embeds=names())
    with pytest.raises(ModelError, match="uint8"):
        model(pixel_values=torch.zeros(1, 3, 32, 32, dtype=torch.uint8), class_embeds=names())


def test_a_blend_that_forward_leaves_out_is_said(model, processor):
    model.config.training_free_weight = 0.1
    inputs = {"pixel_values": pictures(1), **processor(text=["cat", "b"], return_tensors="pt")}
    with pytest.warns(UserWarning, match="training_free_weight"):
        model(**inputs)


def test_another_type_of_decode_head_is_not_a_setting_of_a_model_in_memory(model):
    model.config.decode_head_type = "similarity"
    with pytest.raises(ModelError, match="decode_head_type"):
        model(pixel_values=pictures(1), class_embeds=names())


def test_the_ignore_index_must_not_be_a_class(model):
    inputs = {"pixel_values": pictures(), "class_embeds": names(300), "labels": torch.full((2, 32, 32), 255)}
    with pytest.raises(ModelError, match="semantic_loss_ignore_index"):
        model(**inputs)
    model.config.semantic_loss_ignore_index = 65535
    assert model(**inputs).loss_counts["loss_focal"] == 2  # class 255 in both pictures


def test_labels_may_lie_on_another_device(model, monkeypatch):
    # No second device is needed to see where things are put; only checks of values have to be left out.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    terms, _ = model.compute_loss(torch.zeros(2, 3, 4, 4, device="meta"), labels())
    assert {term.device.type for term in terms.values()} == {"meta"}


def test_a_loss_on_one_process_alone_waits_for_nobody(model, monkeypatch):
    def wait(*args, **kwargs):
        raise AssertionError("a collective call")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *args: 2)
    for name in ("all_reduce", "all_gather", "barrier", "broadcast"):
        monkeypatch.setattr(torch.distributed, name, wait)
    assert model(pictures(), class_embeds=names(), labels=labels()).loss > 0


@pytest.mark.parametrize("eos_token_id", [2, None, 5])
def test_names_are_pooled_at_the_tokenizers_end_token(model, processor, eos_token_id):
    """
    Whatever the configuration says: OpenAI's say 2, and then the text tower takes the largest id, which need not be
    the end token where words were added to the tokenizer.
    """
    processor.tokenizer.add_tokens(["zebra"])
    model.clip.text_model.resize_token_embeddings(len(processor.tokenizer))
    inputs = processor(text=["a zebra on a cat", "zebra"], return_tensors="pt")
    assert inputs["input_ids"].max() > processor.tokenizer.eos_token_id
    with torch.no_grad():
        expected = model.get_class_embeds(**inputs)
        if eos_token_id is not None:
            model.clip.text_model.eos_token_id = eos_token_id
        assert torch.equal(model.get_class_embeds(**inputs), expected)
        # By hand, from the state of each row's end token.
        states = model.clip.text_model(**inputs).last_hidden_state
        ends = (inputs["input_ids"] == processor.tokenizer.eos_token_id).int().argmax(dim=1)
        by_hand = model.clip.text_projection(states[torch.arange(2), ends])
    torch.testing.assert_close(expected, F.normalize(by_hand, dim=-1))
