"""
Load model folders or Hub ids through every loader, in a process of its own, and print what came of it as JSON.

    python probe_artefacts.py with|without SAVE_TO PLACE...

`without` makes this package impossible to import, and trusts the code that comes with the models. What came through
the model's and the pipeline's loaders is saved again to SAVE_TO/NUMBER/model and SAVE_TO/NUMBER/pipeline.
"""

import json
import sys
from pathlib import Path

import numpy as np

installed, save_to, places = sys.argv[1] == "with", Path(sys.argv[2]), sys.argv[3:]
if installed:
    import zegclip  # noqa: F401
else:
    sys.modules["zegclip"] = None
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModel, AutoModelForSemanticSegmentation, AutoProcessor, pipeline  # noqa: E402
from transformers.utils import logging  # noqa: E402

logging.disable_progress_bar()

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8))
NAMES = ["cat", "tree", "dog"]
TRUST = {} if installed else {"trust_remote_code": True}


def load_and_run(auto_class, place, folder):
    model = auto_class.from_pretrained(place, **TRUST).eval()
    processor = AutoProcessor.from_pretrained(place, **TRUST)
    with torch.no_grad():
        outputs = model(**processor(images=PICTURE, text=NAMES, return_tensors="pt"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return [type(model).__module__, type(processor).__module__], outputs.logits.flatten().tolist()


def segment(place, folder):
    segmenter = pipeline("zero-shot-image-segmentation", model=place, **TRUST)
    masks = segmenter(PICTURE, candidate_labels=NAMES)
    segmenter.save_pretrained(folder)
    return [type(segmenter).__module__], np.stack([np.array(mask["mask"]) for mask in masks]).flatten().tolist()


results = []
for number, place in enumerate(places):
    folder = save_to / str(number)
    results.append(
        {
            "AutoModelForSemanticSegmentation": load_and_run(
                AutoModelForSemanticSegmentation, place, folder / "model"
            ),
            "AutoModel": load_and_run(AutoModel, place, folder / "model"),
            "pipeline": segment(place, folder / "pipeline"),
        }
    )
print(json.dumps(results))
