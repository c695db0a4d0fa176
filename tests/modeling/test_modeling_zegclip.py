"""Properties of the model: batches, names, sizes, precisions, saving and loading."""

import copy

import pytest
import torch
from peft import get_peft_model
from transformers import CLIPModel

from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.modeling.head_zegclip import IDENTITY_SLOPE, IDENTITY_THRESHOLD
from zegclip.modeling.losses import ssim_loss


def pictures(count=2, height=32, width=32, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def names(count=3, dim=32, seed=1):
    embeds = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(embeds, dim=-1)


@torch.no_grad()
def move(model, seed=5):
    """Take the trained values away from their initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture
def prompted(model):
    """A model with an adapter whose values are all away from their initial ones."""
    model.add_adapter(DeepPromptConfig(num_tokens=3))
    return move(model)


def consensus_model(clip_config):
    """A model with LDVC's head, whose scores are products of patches and class queries of about unit scale."""
    fields = {"decoder_attention_heads": 2, "decoder_ffn_dim": 64, "num_decoder_layers": 2, "out_indices": [0, 1]}
    fields |= {"decoder_window_size": 2, "decoder_top_k": 2}
    torch.manual_seed(0)
    model = ZegClipForSemanticSegmentation(
        ZegClipConfig(clip_config=clip_config, decode_head_type="consensus", **fields)
    )
    model.add_adapter(DeepPromptConfig(num_tokens=3))
    move(model)
    with torch.no_grad():
        # From weights of 0.02 the descriptor would be all bias: the same for all names.
        model.decode_head.modules_to_save["default"].query_proj.weight *= 10
    return model


@pytest.fixture(params=["zegclip", "spectral", "consensus"])
def whole(request, model):
    """A model with each kind of trained head; of the spectral one's gate, that some patches pass and some don't."""
    if request.param == "zegclip":
        return request.getfixturevalue("prompted")
    if request.param == "consensus":
        return consensus_model(model.config.clip_config)
    fields = {"decode_head_type": "spectral", "decoder_attention_heads": 4, "decoder_low_frequency_heads": 3}
    torch.manual_seed(0)
    spectral = ZegClipForSemanticSegmentation(ZegClipConfig(clip_config=model.config.clip_config, **fields))
    spectral.add_adapter(DeepPromptConfig(num_tokens=3, spectral_prompt=True))
    move(spectral)
    mixing = spectral.decode_head.modules_to_save["default"].mask_scores.mixing
    with torch.no_grad():
        for parameter in mixing.low_proj.parameters():
            parameter *= 0.1  # what patches have in common would put all of them on the same side of the gate
        mixing.gate.copy_(torch.randn(mixing.gate.shape, generator=torch.Generator().manual_seed(0)))
        memory = spectral.get_image_embeds(pictures())[1]
        share = (mixing(memory).abs().amax(dim=-1) > 0).float().mean()
    assert 0.2 < share < 0.8
    return spectral


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 24), (33, 50), (1, 1), (8, 72)])
def test_any_size(whole, height, width):
    logits = whole(pictures(1, height, width), class_embeds=names()).logits
    assert logits.shape == (1, 3, -(-height // 8), -(-width // 8))
    assert logits.isfinite().all()


def test_autocast(whole):
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    exact = whole(pictures(), class_embeds=names(), labels=labels).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = whole(pictures(), class_embeds=names(), labels=labels)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert (output.logits.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert all(
        parameter.grad.isfinite().all() for parameter in whole.decode_head.parameters() if parameter.requires_grad
    )


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


@torch.no_grad()
def test_eager_equals_sdpa(prompted, processor):
    text = processor(text=["cat", "a longer name"], return_tensors="pt")
    outputs = {}
    for implementation in ("eager", "sdpa"):
        prompted.set_attn_implementation(implementation)
        assert prompted.decode_head.original_module.layers[0].config._attn_implementation == implementation
        outputs[implementation] = prompted(pictures(), **text).logits
    torch.testing.assert_close(outputs["eager"], outputs["sdpa"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(whole, dtype):
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    with torch.no_grad():
        exact = whole(pictures(), class_embeds=names(), labels=labels)
        half = whole.to(dtype)(pictures().to(dtype), class_embeds=names(), labels=labels)
    assert half.logits.dtype == dtype
    assert half.loss.dtype == torch.float32
    assert (half.logits.float() - exact.logits).abs().max() < 0.1 * exact.logits.abs().max()


def test_gradient_checkpointing_changes_nothing(prompted):
    labels = torch.randint(3, (2, 32, 32), generator=torch.Generator().manual_seed(2))
    reference = copy.deepcopy(prompted)
    prompted.gradient_checkpointing_enable()
    gradients = []
    for model in (reference, prompted):
        for module in model.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        model.clip.vision_model.encoder.prompt_configs["default"].dropout = 0.0
        model.train()
        model.set_adapter("default")
        model(pictures(), class_embeds=names(), labels=labels).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_only_prompts_and_decode_head_learn(prompted):
    labels = torch.randint(3, (2, 32, 32))
    prompted.set_adapter("default")
    prompted(pictures(), class_embeds=names(), labels=labels).loss.backward()
    for name, parameter in prompted.named_parameters():
        trained = "deep_prompt_" in name or "modules_to_save" in name
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None) == trained, name


def test_compiles_with_any_number_of_names(prompted):
    torch._dynamo.reset()
    compiled = torch.compile(prompted, backend="aot_eager", dynamic=True, fullgraph=True)
    with torch.no_grad():
        for count in (7, 5, 40):  # at first none that another side has too, which PyTorch would take for the same
            expected = prompted(pictures(), class_embeds=names(count)).logits
            with torch._dynamo.config.patch(error_on_recompile=count != 7):
                actual = compiled(pictures(), class_embeds=names(count)).logits
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_hidden_states_have_the_prompts(prompted):
    output = prompted(pictures(), class_embeds=names(), output_hidden_states=True)
    assert [state.shape[1] for state in output.hidden_states[:2]] == [1 + 3 + 16, 1 + 3 + 16]


def test_tuple_output(prompted):
    with torch.no_grad():
        output = prompted(pictures(), class_embeds=names())
        assert torch.equal(prompted(pictures(), class_embeds=names(), return_dict=False)[0], output.logits)


def test_templates_are_averaged(model, processor):
    processor.prompt_templates = ["a photo of a {}", "the {}"]
    tokens = processor(text=["cat", "dog"], return_tensors="pt")
    both = model.get_class_embeds(**tokens, num_templates=2)
    alone = []
    for template in processor.prompt_templates:
        processor.prompt_templates = [template]
        alone.append(model.get_class_embeds(**processor(text=["cat", "dog"], return_tensors="pt"), num_templates=1))
    expected = torch.nn.functional.normalize(alone[0] + alone[1], dim=-1)
    torch.testing.assert_close(both, expected, atol=1e-5, rtol=0)


def test_rows_that_are_no_multiple_of_the_templates(model):
    model.config.prompt_templates = ["{}", "a {}"]
    with pytest.raises(ValueError, match="3 rows, not a multiple of the 2 prompt templates"):
        model.get_class_embeds(torch.ones(3, 4, dtype=torch.long))


def test_names_are_needed_once(model):
    with pytest.raises(ValueError, match="either as input_ids or as class_embeds"):
        model(pictures())
    with pytest.raises(ValueError, match="either as input_ids or as class_embeds"):
        model(pictures(), input_ids=torch.ones(1, 4, dtype=torch.long), class_embeds=names())


@pytest.mark.parametrize("bad", [3, 254, -1])
def test_labels_outside_of_the_names(model, bad):
    labels = torch.full((2, 32, 32), 255)
    labels[1, 5, 6] = bad
    with pytest.raises(ValueError, match=rf"the id {bad}, outside of the 3 class names"):
        model(pictures(), class_embeds=names(), labels=labels)


def test_the_loss_ignores_how_the_trainer_counts(model):
    labels = torch.randint(3, (2, 32, 32))
    plain = model(pictures(), class_embeds=names(), labels=labels).loss
    counted = model(pictures(), class_embeds=names(), labels=labels, num_items_in_batch=7).loss
    assert torch.equal(plain, counted)
    assert model.accepts_loss_kwargs is False


@pytest.mark.parametrize(
    "weights",
    [
        {"focal_weight": 100.0, "dice_weight": 1.0, "ssim_weight": 0.0},
        {"focal_weight": 100, "dice_weight": 0, "ssim_weight": 1},
        {"focal_weight": 0.0, "dice_weight": 0.0, "ssim_weight": 3.0},
        {"focal_weight": 2.0, "dice_weight": 0.5, "ssim_weight": 0.25},
        {"focal_weight": 2.0, "dice_weight": 0.5, "ssim_weight": 0.25, "cross_entropy_weight": 0.5},
        {"focal_weight": 0, "dice_weight": 0, "cross_entropy_weight": 2},
    ],
)
@pytest.mark.parametrize("ignored_as_negatives", [True, False])
def test_the_loss_is_the_sum_of_the_terms_with_a_weight(model, weights, ignored_as_negatives):
    labels = torch.randint(3, (2, 32, 32), generator=torch.Generator().manual_seed(2))
    labels[0, :9] = 255
    model.config.ignored_pixels_as_negatives = ignored_as_negatives
    terms = ("focal", "dice", "ssim", "cross_entropy")
    for term in terms:
        setattr(model.config, f"{term}_weight", 1.0)
    whole = model(pictures(), class_embeds=names(), labels=labels).loss_dict
    given = ZegClipConfig(**weights)  # what is not named keeps its default
    for term in terms:
        setattr(model.config, f"{term}_weight", getattr(given, f"{term}_weight"))
    output = model(pictures(), class_embeds=names(), labels=labels)
    assert output.loss_dict.keys() == {f"loss_{term}" for term in terms if weights.get(f"{term}_weight")}
    for name, value in output.loss_dict.items():
        torch.testing.assert_close(value, weights[f"{name.removeprefix('loss_')}_weight"] * whole[name])
    torch.testing.assert_close(output.loss, sum(output.loss_dict.values()))


@pytest.mark.parametrize("of_probabilities", [False, True])
def test_similarity_of_structure_is_of_logits_or_probabilities(model, of_probabilities):
    model.config.ssim_weight, model.config.ssim_of_probabilities = 1.0, of_probabilities
    model.config.ignored_pixels_as_negatives = False
    labels = torch.randint(3, (2, 32, 32), generator=torch.Generator().manual_seed(2))
    labels[0, :9] = 255
    output = model(pictures(), class_embeds=names(), labels=labels)
    upsampled = torch.nn.functional.interpolate(output.logits, size=(32, 32), mode="bilinear")
    expected = ssim_loss(upsampled, labels, of_probabilities=of_probabilities, ignored_as_negatives=False)
    assert not torch.equal(expected, ssim_loss(upsampled, labels, of_probabilities=of_probabilities))
    torch.testing.assert_close(output.loss_dict["loss_ssim"], expected)


@pytest.mark.parametrize("ignored_as_negatives", [True, False])
def test_cross_entropy_is_of_upsampled_logits_at_labelled_pixels(model, ignored_as_negatives):
    model.config.cross_entropy_weight, model.config.ignored_pixels_as_negatives = 3.0, ignored_as_negatives
    labels = torch.randint(3, (2, 32, 32), generator=torch.Generator().manual_seed(2))
    labels[0, :9] = 255
    output = model(pictures(), class_embeds=names(), labels=labels)
    upsampled = torch.nn.functional.interpolate(output.logits, size=(32, 32), mode="bilinear")
    expected = 3 * torch.nn.functional.cross_entropy(upsampled, labels, ignore_index=255)
    torch.testing.assert_close(output.loss_dict["loss_cross_entropy"], expected)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 65504.0), (torch.bfloat16, 1e6)])
@pytest.mark.parametrize("labels", ["mixed", "all ignored", "one class"])
def test_losses_of_logits_at_the_end_of_half_precision(model, dtype, largest, labels):
    for term in ("focal", "dice", "ssim", "cross_entropy"):
        setattr(model.config, f"{term}_weight", 1.0)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (2, 3, 4, 4), generator=generator) * 2 - 1
    logits = (signs * largest).to(dtype).requires_grad_()
    ids = {"mixed": torch.randint(3, (2, 16, 16), generator=generator), "all ignored": torch.full((2, 16, 16), 255),
           "one class": torch.ones(2, 16, 16, dtype=torch.long)}[labels]  # fmt: skip
    with torch.autocast("cpu", dtype=dtype):
        terms, _ = model.compute_loss(logits, ids)
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.isfinite() for term in terms.values()), terms
    assert logits.grad.isfinite().all()


def test_save_and_load_identity(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = ZegClipForSemanticSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(pictures(), class_embeds=names()).logits
        assert torch.equal(again(pictures(), class_embeds=names()).logits, expected)
    assert [path.suffix for path in tmp_path.iterdir() if path.stat().st_size > 20_000] == [".safetensors"]


def test_everything_is_initialised_from_a_plain_clip(model, tmp_path):
    clip = CLIPModel(model.config.clip_config)
    clip.save_pretrained(tmp_path)
    torch.manual_seed(3)
    loaded = ZegClipForSemanticSegmentation.from_pretrained(
        tmp_path, config=ZegClipConfig(clip_config=clip.config, decoder_attention_heads=2, decoder_ffn_dim=64)
    )
    for name, tensor in clip.state_dict().items():
        assert torch.equal(loaded.clip.state_dict()[name], tensor), name
    torch.manual_seed(3)
    fresh = ZegClipForSemanticSegmentation(loaded.config)
    for name, parameter in loaded.decode_head.named_parameters():
        expected = fresh.decode_head.get_parameter(name)
        assert parameter.isfinite().all()
        assert 0.5 < (parameter.std() + 1e-3) / (expected.std() + 1e-3) < 2, name
    assert torch.equal(loaded.decode_head.layers[0].fc1.weight, loaded.decode_head.layers[1].fc1.weight)
    position_ids = loaded.clip.vision_model.embeddings.position_ids
    assert torch.equal(position_ids[0], torch.arange(17))


def test_a_plain_clip_folder_is_enough(model, tmp_path):
    config = copy.deepcopy(model.config.clip_config)
    config.projection_dim = 64  # the default head has 8 heads
    CLIPModel(config).save_pretrained(tmp_path)
    loaded = ZegClipForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.config.clip_config.projection_dim == 64
    assert loaded.config.model_type == "zegclip"


def test_device_map(model, tmp_path):
    model.save_pretrained(tmp_path)
    placed = ZegClipForSemanticSegmentation.from_pretrained(tmp_path, device_map="auto").eval()
    with torch.no_grad():
        assert torch.equal(
            placed(pictures(), class_embeds=names()).logits, model(pictures(), class_embeds=names()).logits
        )


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
    cosines = torch.einsum(
        "bhwd,nd->bnhw", output.patch_embeds, torch.nn.functional.normalize(output.class_embeds, dim=-1)
    )
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
    assert output.logits.abs().max() <= 1
    expected = output.patch_embeds[1, 2, 3] @ names()[1]
    torch.testing.assert_close(output.logits[1, 1, 2, 3], expected)


@pytest.mark.parametrize(("num_tokens", "expected"), [(10, 8_039_168), (100, 8_868_608)])
def test_trained_parameters_at_full_size(num_tokens, expected):
    # What gets a gradient in the official code; its published 13.8 M and 14.6 M count weights that never run or learn.
    with torch.device("meta"):
        model = ZegClipForSemanticSegmentation(ZegClipConfig())
        tuned = get_peft_model(model, DeepPromptConfig(num_tokens=num_tokens))
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("argument", ["lables", "output_hidden_state", "pixel_mask"])
def test_an_argument_that_nobody_knows_is_refused(model, argument):
    with pytest.raises(TypeError, match=argument):
        model(pictures(), class_embeds=names(), **{argument: torch.zeros(2, 32, 32)})


def test_the_ignore_index_must_not_be_a_class(model):
    labels = torch.full((2, 32, 32), 255)
    with pytest.raises(ValueError, match="semantic_loss_ignore_index=255"):
        model(pictures(), class_embeds=names(300), labels=labels)
    model.config.semantic_loss_ignore_index = 65535
    output = model(pictures(), class_embeds=names(300), labels=labels)
    assert output.loss_counts["loss_focal"] == 2  # class 255 in both pictures


def test_labels_that_are_no_ids_are_refused(model):
    with pytest.raises(ValueError, match="whole numbers"):
        model(pictures(), class_embeds=names(), labels=torch.full((2, 32, 32), 0.7))


def test_labels_may_lie_on_another_device(model, monkeypatch):
    # No second device is needed to see where things are put; only checks of values have to be left out.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    terms, _ = model.compute_loss(torch.zeros(2, 3, 4, 4, device="meta"), labels)
    assert {term.device.type for term in terms.values()} == {"meta"}


def test_a_loss_on_one_process_alone_waits_for_nobody(model, monkeypatch):
    def wait(*args, **kwargs):
        raise AssertionError("a collective call")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *args: 2)
    for name in ("all_reduce", "all_gather", "barrier", "broadcast"):
        monkeypatch.setattr(torch.distributed, name, wait)
    assert model(pictures(), class_embeds=names(), labels=torch.zeros(2, 32, 32, dtype=torch.long)).loss > 0


def test_double_precision_stays_double_in_the_loss(model):
    output = model.double()(pictures().double(), class_embeds=names().double(),
                            labels=torch.zeros(2, 32, 32, dtype=torch.long))  # fmt: skip
    assert output.loss.dtype == torch.float64


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
    torch.testing.assert_close(expected, torch.nn.functional.normalize(by_hand, dim=-1))
