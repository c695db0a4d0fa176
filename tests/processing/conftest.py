"""A tiny model whose random names differ enough for each to win some pixels, and a folder that has an address."""

import copy
import functools
import http.server
import threading

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


@pytest.fixture
def served(tmp_path):
    """A folder and its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()
