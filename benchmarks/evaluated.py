"""The model, pictures and names that a configuration evaluates, for the benchmarks that take one."""

from typing import Any, NamedTuple

import torch

from zegclip import DEFAULT_MODEL, ZegClipForSemanticSegmentation, ZegClipProcessor
from zegclip.loading import load_model, load_processor
from zegclip.processing.class_split import ClassSplit
from zegclip.training.arguments import parse_arguments
from zegclip.training.data import load_data
from zegclip.training.pictures import EvaluationPictures


class Evaluated(NamedTuple):
    """What `eval.py` works with; `names` are the tokens of all class names, `windows` their side and step."""

    source: str
    model: ZegClipForSemanticSegmentation
    processor: ZegClipProcessor
    split: ClassSplit
    split_name: str | None
    pictures: EvaluationPictures
    names: Any
    windows: tuple[int, int]

    def class_embeds(self, model: ZegClipForSemanticSegmentation | None = None) -> torch.Tensor:
        """Encode all names, `(classes, dim)`."""
        templates = len(self.processor.prompt_templates)
        return (model or self.model).get_class_embeds(**self.names, num_templates=templates)


def load_evaluated() -> Evaluated:
    """Load what the configuration and fields on the command line say; the model is the embedded one by default."""
    model_args, data_args, training_args = parse_arguments()
    source = model_args.model or str(DEFAULT_MODEL)
    processor = load_processor(source, model_args.prompt_templates, **data_args.image_processor_fields())
    data, split = load_data(data_args, training=False)
    images = processor.image_processor
    return Evaluated(
        source=model_args.model or "embedded default model",
        model=load_model(source).to(training_args.device),
        processor=processor,
        split=split,
        split_name=data_args.eval_split,
        pictures=EvaluationPictures(data["validation"], split, images),
        names=processor(text=list(split.names), return_tensors="pt").to(training_args.device),
        windows=(images.window_size, images.window_stride),
    )
