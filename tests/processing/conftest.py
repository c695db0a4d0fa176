"""A tiny model whose random names differ enough for each to win some pixels."""

import copy

import pytest
import torch

from zegclip import ZegClipForSemanticSegmentation


@pytest.fixture
def model(model):
    config = copy.deepcopy(model.config)
    config.num_decoder_layers, config.decode_head_init = 1, "identity"
    torch.manual_seed(0)
    model = ZegClipForSemanticSegmentation(config).eval()
    with torch.no_grad():
        # Untrained names are so alike that one of them would win everywhere.
        model.clip.text_model.embeddings.token_embedding.weight.mul_(20)
    return model
