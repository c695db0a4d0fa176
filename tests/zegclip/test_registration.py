"""Importing the package: what it registers, in whatever order, and how little it loads before it is used."""

import subprocess
import sys

import pytest

import zegclip

CHECK = """
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, AutoProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY
import peft.mapping

assert "zegclip" in CONFIG_MAPPING
assert "zero-shot-image-segmentation" in PIPELINE_REGISTRY.get_supported_tasks()
assert any(str(kind).endswith("DEEP_PROMPT") for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_alone_imports_neither_torch_nor_transformers():
    run("import sys, zegclip; zegclip.METRIC; assert not {'torch', 'transformers', 'peft'} & sys.modules.keys()")


@pytest.mark.parametrize(
    "first",
    [
        "import transformers; import zegclip",
        "import zegclip; import peft",  # which imports transformers when half of it is there
        "import zegclip; import accelerate",
        "from zegclip.modeling.configuration_zegclip import ZegClipConfig",
        "from zegclip import *",
        "import zegclip.loading",
        "import zegclip.plain_clip",
    ],
)
def test_everything_is_registered_whatever_is_imported_first(first):
    run(f"{first}\n{CHECK}")


def test_the_public_names_are_there_and_others_are_not():
    assert set(zegclip.__all__) <= set(dir(zegclip))
    for name in zegclip.__all__:
        assert getattr(zegclip, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'ZegClip'"):
        _ = zegclip.ZegClip
