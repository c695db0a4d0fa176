"""The service and the endpoint's handler answer what the pipeline answers, and refuse what is too much."""

import base64
import binascii
import importlib.util
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from transformers import pipeline

import zegclip

EXAMPLES = Path(__file__).parents[2] / "examples"
LABELS = ["cat", "tree", "sky"]


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(seed=0, size=(120, 90)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).resize(size).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def class_map():
    segmenter = pipeline("zero-shot-image-segmentation", model=zegclip.DEFAULT_MODEL, output_type="class_map")
    return lambda content, **settings: segmenter(Image.open(io.BytesIO(content)), candidate_labels=LABELS, **settings)[
        "segmentation"
    ]


@pytest.fixture
def service():
    return load("service")


@pytest.fixture
def ask(service):
    client = TestClient(service.app)
    return lambda content, labels="cat,tree,sky", **settings: client.post(
        "/segment", params={"labels": labels, **settings}, content=content
    )


def test_the_service_answers_what_the_pipeline_answers(ask, class_map):
    contents = [picture(seed, (90 + 30 * seed, 90)) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, contents))
    for content, answer in zip(contents, answers, strict=True):
        assert answer.status_code == 200
        mask = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert np.array_equal(mask, class_map(content))
    mask = np.asarray(Image.open(io.BytesIO(ask(contents[0], threshold=0.9).content)))
    expected = class_map(contents[0], threshold=0.9)
    assert np.array_equal(mask, np.where(expected < 0, 255, expected))


def test_the_service_refuses_with_a_reason(ask, service, monkeypatch):
    for content, labels in ((b"no picture", "cat"), (picture()[:200], "cat"), (picture(), "cat,,tree"), (b"", "cat")):
        answer = ask(content, labels)
        assert answer.status_code == 422
        assert answer.json()["detail"]
    assert ask(picture(), threshold=7).status_code == 422
    monkeypatch.setattr(service, "MOST_PIXELS", 120 * 90 - 1)
    assert ask(picture()).status_code == 422
    monkeypatch.setattr(service, "MOST_BYTES", len(picture()) - 1)
    assert ask(picture()).status_code == 413


def test_a_full_queue_refuses_at_once(ask, service, monkeypatch):
    """Places are free again afterwards, also after errors."""
    monkeypatch.setattr(service, "places", threading.BoundedSemaphore(2))
    for _ in range(3):
        assert ask(b"no picture").status_code == 422
    with monkeypatch.context() as patch:
        patch.setattr(service, "MOST_BYTES", 1)
        assert [ask(picture()).status_code for _ in range(3)] == [413] * 3
    started, goes_on = threading.Semaphore(0), threading.Event()
    work = service.work

    def slowly(*arguments):
        started.release()
        goes_on.wait(60)
        return work(*arguments)

    monkeypatch.setattr(service, "work", slowly)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, picture()) for _ in range(2)]
        for _ in waiting:
            assert started.acquire(timeout=60)
        answer = ask(picture())
        goes_on.set()
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert [future.result().status_code for future in waiting] == [200, 200]
    assert ask(picture()).status_code == 200


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_the_handler_answers_what_the_pipeline_answers(class_map, prefix):
    handler = load("handler").EndpointHandler()
    content = picture()
    inputs = prefix + base64.encodebytes(content).decode()  # in lines
    answer = handler({"inputs": inputs, "parameters": {"candidate_labels": LABELS}})
    assert [row["label"] for row in answer] == LABELS
    for index, row in enumerate(answer):
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["mask"]))))
        assert np.array_equal(mask > 0, class_map(content) == index)
    decoded = handler({"inputs": Image.open(io.BytesIO(content)), "parameters": {"candidate_labels": LABELS}})
    assert decoded == answer


def test_the_handler_opens_no_path_and_no_url(tmp_path):
    handler = load("handler").EndpointHandler()
    (tmp_path / "picture.png").write_bytes(picture())
    for place in (str(tmp_path / "picture.png"), "http://localhost/picture.png"):
        for inputs in (place, [place], {"image": place}):
            with pytest.raises(binascii.Error if inputs is place else ValueError):
                handler({"inputs": inputs, "parameters": {"candidate_labels": LABELS}})


def test_the_handler_refuses_parameters_whose_answers_have_no_masks():
    handler = load("handler").EndpointHandler()
    inputs = base64.b64encode(picture()).decode()
    for name, value in (("output_type", "class_map"), ("return_segmentation_scores", True), ("treshold", 0.5)):
        with pytest.raises(ValueError, match=name):
            handler({"inputs": inputs, "parameters": {"candidate_labels": LABELS, name: value}})
