"""
A handler for Hugging Face Inference Endpoints: upload it as `handler.py` beside the model's files, with a
`requirements.txt` that names zegclip.
"""

import base64
from io import BytesIO
from typing import Any

from PIL import Image
from transformers import pipeline

import zegclip

PARAMETERS = {"candidate_labels", "hypothesis_template", "threshold", "background", "refine", "training_free_weight"}


class EndpointHandler:
    """Loads a model once and answers requests."""

    def __init__(self, path: str = "") -> None:
        """Load the model of a folder, which the endpoint gives."""
        self.segmenter = pipeline("zero-shot-image-segmentation", model=path or zegclip.DEFAULT_MODEL)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """
        Segment a picture.

        Args:
            data: `inputs`, a PIL image, as the endpoint decodes it, or a file in base64; `parameters`, those of the
                pipeline: `{"candidate_labels": ["cat", "tree"], "threshold": 0.2}`.

        Returns:
            `label`, `score` and `mask`, a PNG in base64, for each label.
        """
        picture = data["inputs"]
        # The pipeline would also open paths and URLs, and those in dictionaries and lists, on the server's behalf.
        if isinstance(picture, str):
            text = "".join(picture.split())  # Some encoders break lines.
            picture = base64.b64decode(text.partition("base64,")[2] or text, validate=True)
        elif not isinstance(picture, Image.Image):
            raise ValueError(f"inputs is a picture, or a file in base64, not {type(picture).__name__}.")
        parameters = data.get("parameters") or {}
        if unknown := parameters.keys() - PARAMETERS:
            raise ValueError(f"parameters are {', '.join(sorted(PARAMETERS))}, not {min(unknown)}.")
        results = self.segmenter(picture, **parameters)
        return [result | {"mask": self._encode(result["mask"])} for result in results]

    @staticmethod
    def _encode(mask: Any) -> str:
        file = BytesIO()
        mask.save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()
