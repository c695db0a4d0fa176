"""A tiny model whose class embeddings differ enough that each class wins some pixels, and a folder served by HTTP."""

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
        # Embeddings of an untrained text tower are so similar that one class would win everywhere.
        model.clip.text_model.embeddings.token_embedding.weight.mul_(20)
    return model


@pytest.fixture
def served(tmp_path):
    """A folder and the URL that it is served at."""

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
