"""Models without a trained head, and what the CLIP below an adapter answers without training."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from tiny_models import load, move, names, pictures
from transformers import CLIPModel

from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.loading import load_model

METHODS = ["plain", "maskclip", "sclip", "clearclip", "naclip"]


@pytest.fixture
def training_free(model):
    """A model without a trained head on the same CLIP."""
    config = ZegClipConfig(
        clip_config=copy.deepcopy(model.config.clip_config),
        decode_head_type="similarity",
        dense_attention="naclip",
        prompt_templates=["a photo of a {}"],
    )
    ours = ZegClipForSemanticSegmentation(config).eval()
    ours.clip.load_state_dict(model.clip.state_dict())
    return ours


def fields(kind, processor):
    ids = processor.text_prompt_ids()
    return {
        "few": {"num_tokens": 2, "num_deep_layers": -1},
        "shallow, doubled": {"num_tokens": 5, "num_deep_layers": 0, "double_class_embedding": True},
        "none, doubled": {"num_tokens": 0, "double_class_embedding": True},
        "spectral": {"num_tokens": 3, "spectral_prompt": True, "spectral_layers": [0, 1], "spectral_grid_size": 5},
        "words": {"num_tokens": 3, "text_prompts": "words", "text_prompt_ids": ids},
        "whole": {"num_tokens": 3, "text_prompts": "whole", "text_prompt_ids": ids, "double_class_embedding": True},
    }[kind]


@pytest.mark.parametrize("kind", ["few", "shallow, doubled", "none, doubled", "spectral", "words", "whole"])
def test_below_every_adapter_lies_the_bare_clip(model, training_free, processor, kind):
    text = processor(text=["cat", "tree", "b"], return_tensors="pt")
    sizes = [pictures(2, 32, 40), pictures(1, 29, 64)]
    tuned = move(get_peft_model(model, DeepPromptConfig(**fields(kind, processor)))).get_base_model()
    with torch.no_grad():
        embeds = training_free.get_class_embeds(**text)
        assert torch.equal(tuned.get_class_embeds(**text, with_prompts=False), embeds)
        for pixel_values in sizes:
            expected = training_free(pixel_values, class_embeds=embeds)
            found = tuned.get_training_free_logits(pixel_values=pixel_values, class_embeds=embeds)
            assert torch.equal(found.logits, expected.logits)
            assert found.score_function == expected.score_function == "softmax"
            # The adapter's own answer is another, and stays as it is.
            own = tuned(pixel_values, class_embeds=embeds)
            assert own.score_function == "sigmoid"
            tuned.get_training_free_logits(pixel_values=pixel_values, class_embeds=embeds)
            assert torch.equal(tuned(pixel_values, class_embeds=embeds).logits, own.logits)
            assert not torch.allclose(own.patch_embeds, expected.patch_embeds, atol=1e-3)


def test_an_adapter_below_the_similarity_head_is_saved_and_loaded(training_free, tmp_path):
    folder = tmp_path / "adapter"
    training_free.clip.save_pretrained(tmp_path / "clip")
    base = load(tmp_path / "clip", decode_head_type="similarity")
    tuned = move(get_peft_model(base, DeepPromptConfig(num_tokens=3)))
    tuned.save_pretrained(folder)
    with torch.no_grad():
        expected = tuned(pixel_values=pictures(), class_embeds=names()).logits
        assert torch.equal(load_model(folder)(pictures(), class_embeds=names()).logits, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_trained_head_without_adapter_reads_patches_of_another_method(model, method):
    """An ablation; its scores stay those of the head."""
    with torch.no_grad():
        plain = model(pictures(2, 32, 40), class_embeds=names())
        model.config.dense_attention = method
        other = model(pictures(2, 32, 40), class_embeds=names())
    assert other.score_function == model.config.score_function == "sigmoid"
    assert other.logits.shape == plain.logits.shape
    assert other.logits.isfinite().all()
    assert torch.allclose(other.patch_embeds, plain.patch_embeds, atol=1e-3) == (method == "plain")


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_pictures_and_permuted_names_permute_the_logits(training_free, method):
    training_free.config.dense_attention = method
    batch, embeds = pictures(3, 32, 56), names(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        logits = training_free(batch, class_embeds=embeds).logits
        singles = torch.cat([training_free(picture[None], class_embeds=embeds).logits for picture in batch])
        permuted = training_free(batch, class_embeds=embeds[order]).logits
    torch.testing.assert_close(singles, logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(permuted, logits[:, order], atol=1e-4, rtol=0)
    assert logits.abs().max() <= training_free.config.similarity_scale
    assert logits.std(dim=1).max() > 0.1


def test_it_compiles_as_one_graph(training_free):
    torch.compiler.reset()
    compiled = torch.compile(training_free, backend="eager", fullgraph=True)
    with torch.no_grad():
        for height, width, count in ((32, 40, 3), (29, 64, 5)):  # the second with any size
            inputs = {"pixel_values": pictures(2, height, width), "class_embeds": names(count)}
            found = compiled(**inputs)
            assert found.score_function == "softmax"
            torch.testing.assert_close(found.logits, training_free(**inputs).logits, atol=1e-4, rtol=0)


def test_clips_own_patches_are_those_of_clip(training_free):
    clip = CLIPModel(training_free.config.clip_config).eval()
    clip.load_state_dict(training_free.clip.state_dict())
    training_free.config.dense_attention = "plain"
    pixel_values = pictures(2, 32, 32)
    with torch.no_grad():
        states = clip.vision_model(pixel_values).last_hidden_state
        patches = clip.visual_projection(clip.vision_model.post_layernorm(states))[:, 1:]
        cosines = torch.einsum("bpd,nd->bnp", torch.nn.functional.normalize(patches, dim=-1), names())
        found = training_free(pixel_values, class_embeds=names()).logits.flatten(2)
    torch.testing.assert_close(found, training_free.config.similarity_scale * cosines, atol=1e-4, rtol=0)


def test_a_converted_table_without_its_adapter(model, training_free):
    """It has the class embedding in it, for the adapter alone."""
    embeds = F.normalize(torch.randn(3, training_free.config.clip_config.projection_dim), dim=-1)
    with torch.no_grad():
        expected = training_free(pictures(), class_embeds=embeds).logits
        embeddings = model.clip.vision_model.embeddings
        embeddings.position_embedding.weight[:1] += embeddings.class_embedding
        model.config.clip_config.class_embedding_doubled = True
        model.add_adapter(DeepPromptConfig(num_tokens=2))
        found = model.get_training_free_logits(pictures(), embeds).logits
        torch.testing.assert_close(found, expected)
        model.disable_adapters()
        torch.testing.assert_close(model.get_training_free_logits(pictures(), embeds).logits, expected)
