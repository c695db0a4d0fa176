"""The Space: what it computes, without gradio, and (slow) the page in a browser."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zegclip
from zegclip.commands.main import main

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"
SCENE = SPACE / "pictures" / "scene_1.png"
LABELS = ["boat", "pear", "kite", "sky", "road"]
INJECTION = "<img src=x onerror=alert()>"


@pytest.fixture(scope="module")
def segmenting():
    spec = importlib.util.spec_from_file_location("segmenting", SPACE / "segmenting.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["segmenting"] = module  # where its dataclass looks for itself
    spec.loader.exec_module(module)
    yield module
    del sys.modules["segmenting"]


def test_models_are_read_from_the_environment(segmenting):
    assert segmenting.read_models({}) == {segmenting.EMBEDDED_NAME: str(zegclip.DEFAULT_MODEL)}
    assert segmenting.read_models({"ZEGCLIP_MODELS": " "}) == segmenting.read_models({})
    text = "VOC = adapters/voc, COCO=owner/name"
    assert segmenting.read_models({"ZEGCLIP_MODELS": text}) == {"VOC": "adapters/voc", "COCO": "owner/name"}


@pytest.mark.parametrize("text", ["owner/name", "a=b,", "=b", "a=b,a=c"])
def test_lists_of_models_that_make_no_sense(segmenting, text):
    with pytest.raises(ValueError, match="ZEGCLIP_MODELS"):
        segmenting.read_models({"ZEGCLIP_MODELS": text})


def test_rows_are_those_of_the_command_line(segmenting, tmp_path):
    models = segmenting.read_models({})
    result = segmenting.segment_picture(str(SCENE), " boat,pear , kite,sky,road", *models, models)
    assert result.warning is None
    assert main(["segment", str(SCENE), "--labels", ", ".join(LABELS), "--output", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "scene_1.json").read_text(encoding="utf-8"))
    assert result.rows == [
        (row["label"], f"{100 * row['share']:.1f} %", f"{row['score']:.2f}") for row in record["labels"]
    ]
    with Image.open(SCENE) as picture, Image.open(tmp_path / "scene_1_mask.png") as mask:
        drawn = zegclip.draw(picture, mask, LABELS, side_by_side=False)  # The page shows the picture already.
        assert np.array_equal(result.mask, mask)
    assert np.array_equal(result.overlay, drawn)
    # Without training, it would be another picture.
    assert result.training_free.size == drawn.size
    assert not np.array_equal(result.training_free, drawn)
    refined = segmenting.segment_picture(str(SCENE), " boat,pear , kite,sky,road", *models, models, refine=True)
    assert not np.array_equal(refined.mask, result.mask)
    # The first name of a class stands for all of them.
    both = segmenting.segment_picture(str(SCENE), "boat/pear, kite/zebra, road, sky", *models, models)
    assert [row[0] for row in both.rows] == ["boat", "kite", "road", "sky"]
    assert both.rows[0] != result.rows[0]
    assert "'zebra'" in both.warning
    # Above every score, nothing has a label.
    nothing = segmenting.segment_picture(str(SCENE), "boat, sky", *models, models, threshold=1.0)
    assert nothing.rows == [("boat", "0.0 %", "-"), ("sky", "0.0 %", "-")]


def test_each_model_is_loaded_once_and_only_when_it_is_chosen(segmenting, tmp_path):
    shutil.copytree(zegclip.DEFAULT_MODEL, tmp_path / "other")
    models = {"mine": str(tmp_path / "other"), "missing": str(tmp_path / "nowhere")}
    first = segmenting.segment_picture(str(SCENE), "boat, sky", "mine", models)
    shutil.rmtree(tmp_path / "other")
    assert segmenting.segment_picture(str(SCENE), "boat, sky", "mine", models).rows == first.rows
    with pytest.raises(ValueError, match="nowhere"):
        segmenting.segment_picture(str(SCENE), "boat, sky", "missing", models)


def test_words_that_the_model_cannot_know_are_named(segmenting):
    models = segmenting.read_models({})
    result = segmenting.segment_picture(str(SCENE), f"boat, zebra, {INJECTION}", *models, models)
    assert [row[0] for row in result.rows] == ["boat", "zebra", INJECTION]
    for part in ("embedded model", "'zebra'", repr(INJECTION)):
        assert part in result.warning


@pytest.mark.parametrize(
    ("path", "labels", "model", "named"),
    [
        (None, "boat", None, "picture"),
        (SCENE, " ", None, "name"),
        (SCENE, "boat,,sky", None, "2"),
        (SCENE, "boat, boat", None, "'boat'"),
        (SCENE, "boat", "other", "'other'.*embedded model"),
        (SPACE / "app.py", "boat", None, "^app.py"),
    ],
)
def test_bad_input_is_named(segmenting, path, labels, model, named):
    models = segmenting.read_models({})
    path = None if path is None else str(path)
    with pytest.raises(ValueError, match=named):
        segmenting.segment_picture(path, labels, model or segmenting.EMBEDDED_NAME, models)


def test_the_examples_are_small_pictures_and_known_words(segmenting):
    pictures = sorted((SPACE / "pictures").iterdir())
    source = (SPACE / "app.py").read_text(encoding="utf-8")
    for path in pictures:
        assert path.stat().st_size < 100_000
        [labels] = re.findall(rf'"{re.escape(path.name)}"\), "(.*)"', source)
        result = segmenting.segment_picture(
            str(path), labels, segmenting.EMBEDDED_NAME, segmenting.read_models({}), threshold=0.0
        )
        assert result.warning is None
    assert len(pictures) == len(re.findall(r"PICTURES /", source))


def test_the_space_and_its_requirements_ask_for_one_gradio():
    readme = (SPACE / "README.md").read_text(encoding="utf-8")
    front_matter = dict(line.split(": ", 1) for line in readme.split("---\n")[1].splitlines())
    assert front_matter["sdk"] == "gradio"
    assert (SPACE / front_matter["app_file"]).is_file()
    requirements = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert f"gradio=={front_matter['sdk_version']}" in requirements


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that remembers every request."""
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        pytest.fail("selenium is missing: pip install -e '.[space]'", pytrace=False)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.fail(
            "Chromium and its driver are missing (Debian, Ubuntu: apt install chromium chromium-driver).",
            pytrace=False,
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1280,1100",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    # With the driver's path, selenium looks for none on the network.
    with webdriver.Chrome(options, Service(driver)) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of the app, which runs in a process of its own and knows two models."""
    if importlib.util.find_spec("gradio") is None:
        pytest.fail("gradio is missing: pip install -e '.[space]'", pytrace=False)
    folder = tmp_path_factory.mktemp("space")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")} | {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "ZEGCLIP_MODELS": f"first={zegclip.DEFAULT_MODEL}, second={zegclip.DEFAULT_MODEL}",
    }
    address = f"http://127.0.0.1:{port}/"
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([sys.executable, SPACE / "app.py"], env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            wait_for(lambda: process.poll() is not None or answers(address), 180)
            assert process.poll() is None, (folder / "log").read_text()
            yield address
        finally:
            process.terminate()
    assert "Traceback" not in (folder / "log").read_text()


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=10) as response:
            return response.status == 200
    except OSError:
        return False


def wait_for(condition, seconds=60):
    """Wait until a condition holds and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "This took too long."
        time.sleep(0.2)
    return value


def find(browser, css):
    """All elements, looked up anew, as gradio draws them anew."""
    return browser.find_elements("css selector", css)


def texts(browser, css):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(element => element.innerText.trim())", css
    )


def fill(browser, picture, labels):
    """Upload a picture to the page as it was opened, type labels and press the button."""
    wait_for(lambda: find(browser, "input[type=file]"))[0].send_keys(str(picture))
    wait_for(lambda: find(browser, "[data-testid=image] img, .image-frame img"))
    [box] = [area for area in find(browser, "textarea") if area.is_displayed() and area.is_enabled()]
    box.send_keys(labels)
    [button] = [button for button in find(browser, "button") if button.text == "Segment"]
    button.click()


def table(browser):
    """The rows of the table of names; none as long as it is empty."""
    cells = texts(browser, "#table [role=gridcell]")
    return [tuple(cells[start : start + 3]) for start in range(0, len(cells), 3) if any(cells[start : start + 3])]


def foreign_requests(browser, address):
    """What the page has asked of other servers."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith(address) for url in urls)
    return [url for url in urls if url.startswith("http") and not url.startswith(address)]


@pytest.mark.slow
def test_a_picture_is_uploaded_and_segmented(browser, page, segmenting, tmp_path):
    browser.get(page)
    fill(browser, SCENE, ", ".join(LABELS))
    rows = wait_for(lambda: table(browser))
    models = segmenting.read_models({})
    expected = segmenting.segment_picture(str(SCENE), ", ".join(LABELS), *models, models)
    assert rows == expected.rows
    shown = wait_for(lambda: find(browser, "#overlay img"))[0]
    size = wait_for(lambda: browser.execute_script("return arguments[0].naturalWidth", shown))
    assert size == expected.overlay.width
    for part in ("training_free", "mask"):
        assert wait_for(lambda part=part: find(browser, f"#{part} img"))
    assert not find(browser, "#warning textarea")
    picture = tmp_path / "space.png"
    assert browser.save_screenshot(str(picture))
    with Image.open(picture) as screenshot:
        assert len(screenshot.convert("RGB").getcolors(1 << 24)) > 1000  # more than a blank page
    assert foreign_requests(browser, page) == []


@pytest.mark.slow
def test_labels_are_shown_as_text(browser, page):
    browser.get(page)
    fill(browser, SCENE, f"boat, zebra, {INJECTION}")
    assert [row[0] for row in wait_for(lambda: table(browser))] == ["boat", "zebra", INJECTION]
    [warning] = wait_for(lambda: find(browser, "#warning textarea"))
    for part in ("first", "'zebra'", repr(INJECTION)):
        assert part in warning.get_attribute("value")

    browser.get(page)
    fill(browser, SCENE, f"{INJECTION}, {INJECTION}")
    [message] = wait_for(lambda: texts(browser, ".toast-body"))
    assert repr(INJECTION) in message
    # Had one become an element, its alert would have ended this test.
    assert not find(browser, "img[src=x]")


@pytest.mark.slow
def test_a_broken_picture_is_named(browser, page, tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    browser.get(page)
    fill(browser, tmp_path / "broken.png", "boat, sky")
    [message] = wait_for(lambda: texts(browser, ".toast-body"))
    assert message.count("broken.png") == 1
