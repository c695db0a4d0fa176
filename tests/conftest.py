"""What every test can rely on: no network, a cache of its own, few threads, and a tiny model with its processor."""

import atexit
import ipaddress
import os
import shutil
import socket
import string
import sys
import tempfile
from pathlib import Path

# Libraries read these when they are imported, subprocesses inherit them. A fresh cache keeps data sets
# that an earlier version of the code has generated, and whatever the user has downloaded, out of the tests.
_cache = tempfile.mkdtemp(prefix="zegclip-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ.update(
    HF_HOME=_cache,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="agg",
)
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
os.environ.setdefault("OMP_NUM_THREADS", str(max(min(4, (os.cpu_count() or 1) // _workers), 1)))

# After the environment is set.
import pytest  # noqa: E402
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers import CLIPConfig, CLIPTokenizer  # noqa: E402

from zegclip import (  # noqa: E402
    ZegClipConfig,
    ZegClipForSemanticSegmentation,
    ZegClipImageProcessorPil,
    ZegClipProcessor,
)

GOLDENS = Path(__file__).parent / "goldens"

_attempts: list[str] = []


def _is_local(host: object) -> bool:
    """Tell whether an address never leaves this machine; families without host names (unix, netlink) do not."""
    if isinstance(host, bytes):
        host = host.decode()
    if not isinstance(host, str) or host in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse_network(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if not _is_local(host):
        _attempts.append(f"{event}({host!r})")
        raise RuntimeError(f"tests must not use the network: {_attempts[-1]}")


# The interpreter reports every use of a socket to its audit hooks, whichever library it comes from.
sys.addaudithook(_refuse_network)


@pytest.fixture(autouse=True)
def no_network():
    """Fail a test that tried to use the network, even where the library swallowed the refusal."""
    _attempts.clear()
    yield
    if _attempts:
        pytest.fail(f"tests must not use the network: {', '.join(_attempts)}")


@pytest.fixture
def tokenizer():
    letters = list(string.ascii_lowercase + string.digits + "{}-")
    words = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)},
        merges=[("c", "a"), ("ca", "t</w>")],
        model_max_length=32,
    )


@pytest.fixture
def image_processor():
    return ZegClipImageProcessorPil(size={"shortest_edge": 32}, window_size=32, window_stride=20)


@pytest.fixture
def processor(image_processor, tokenizer):
    return ZegClipProcessor(image_processor, tokenizer)


@pytest.fixture
def model(tokenizer):
    """A model of every part at its smallest, with random weights."""
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip_config = CLIPConfig(
        projection_dim=32,
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 32,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    config = ZegClipConfig(clip_config=clip_config, decoder_attention_heads=2, decoder_ffn_dim=64)
    return ZegClipForSemanticSegmentation(config).eval()


@pytest.fixture
def clip_folder(model, tokenizer, tmp_path):
    """A plain CLIP with its tokenizer, as it would come from the Hub."""
    folder = tmp_path / "clip"
    model.clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def official(tokenizer):
    """A state dict with the official names and shapes that suit ViT-B/16's head counts, and a vocabulary that fits."""
    torch.manual_seed(0)
    state_dict = {}
    with safe_open(GOLDENS / "zegclip_a_inductive.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            if not name.startswith("sd."):
                continue
            shape = file.get_slice(name).get_shape()
            if name.startswith("sd.backbone."):
                shape = [{64: 48, 192: 144}.get(side, side) for side in shape]
            if name == "sd.text_encoder.token_embedding.weight":
                shape[0] = len(tokenizer)
            state_dict[name.removeprefix("sd.")] = torch.randn(shape)
    return state_dict


@pytest.fixture
def checkpoint(official, tmp_path):
    torch.save({"state_dict": official, "meta": {"epoch": 1}}, tmp_path / "official.pth")
    return tmp_path / "official.pth"


@pytest.fixture
def model_folder(model, processor, tmp_path):
    """A folder with the tiny model, whose names differ enough for each to win some pixels."""
    with torch.no_grad():
        model.clip.text_model.embeddings.token_embedding.weight.mul_(20)
        # Untrained scores hardly depend on the place.
        for layer in (model.decode_head.mask_scores.q_proj, model.decode_head.mask_scores.k_proj):
            layer.weight.mul_(10)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
