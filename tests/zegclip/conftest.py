"""A folder with the tiny model, whose names differ enough for each to win some pixels."""

import pytest
import torch


@pytest.fixture
def model_folder(model, processor, tmp_path):
    with torch.no_grad():
        model.clip.text_model.embeddings.token_embedding.weight.mul_(20)
        # Untrained scores hardly depend on the place.
        for layer in (model.decode_head.mask_scores.q_proj, model.decode_head.mask_scores.k_proj):
            layer.weight.mul_(10)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
