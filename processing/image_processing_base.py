"""Base class of the two image processors of ZegCLIP, with Pillow and with torchvision as backend."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    get_image_size,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from .image_reading import EXIF_WARNING, exif_frame, load_class_ids, load_rgb, load_upright, read_frame, to_8_bit
from .input_error import InputError
from .merging import best_of_names, class_chunks, resize_maps, running_max
from .resizing import resize_bilinear, resize_nearest, resized_shape
from .windows import check_finite


class ZegClipImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    r"""
    window_size (`int`, *optional*, defaults to 512):
        Side of the square windows of the pipeline and the evaluation, in pixels of the resized picture; `None` for
        the whole picture at once.
    window_stride (`int`, *optional*, defaults to 426):
        Distance between neighbouring windows.
    """

    window_size: int | None
    window_stride: int | None


class ZegClipImageProcessorBase(BaseImageProcessor):
    """
    The official ZegCLIP test pipeline: the short side is resized to 512 pixels with no limit on the long one (bilinear
    without antialiasing, bit-identical to OpenCV), then normalised with ImageNet's statistics (not CLIP's). Nothing is
    cropped or padded.

    A mixin: list it before a backend class of transformers.
    """

    valid_kwargs = ZegClipImageProcessorKwargs
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 512}
    default_to_square = False
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    window_size: int | None = 512
    window_stride: int | None = 426

    def __init__(self, **kwargs: Unpack[ZegClipImageProcessorKwargs]) -> None:
        super().__init__(**kwargs)
        # The base class takes None for "not given", but here it means the whole picture.
        if "window_size" in kwargs:
            self.window_size = kwargs["window_size"]
        if "window_stride" in kwargs:
            self.window_stride = kwargs["window_stride"]

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[ZegClipImageProcessorKwargs],
    ) -> BatchFeature:
        r"""
        Turns pictures, and optionally their label maps, into the model's inputs.

        The EXIF orientation of pictures is applied: `pixel_values`, `labels` and all results have the height and width
        of the upright picture.

        Arrays and tensors are converted to 8 bits as described in [`to_8_bit`]: uint8; floats in 0..1 or 0..255; other
        integers in 0..255, uint16 also in 0..65535. With `do_rescale=False` or another `rescale_factor` than 1/255,
        their values are used unchanged.

        Args:
            images: One picture or several: paths, `http(s)` URLs, bytes of files, PIL images of any mode, arrays or
                tensors `(height, width)`, `(channels, height, width)` or `(height, width, channels)`, or with a batch
                axis.
            segmentation_maps: A label map for each picture, with the size of the upright picture: paths, URLs, bytes
                of files, PIL images of a palette or one-channel mode, integer arrays or tensors `(height, width)`.
                They are resized to the nearest pixel and never rescaled.
            kwargs: Any attribute of the image processor, for this call; `return_tensors="pt"` for tensors.

        Returns:
            `pixel_values` `(batch, 3, height, width)` float32 and, with label maps, `labels` `(batch, height, width)`
            int64. Without `return_tensors`, lists of arrays.

            If a PIL image has an EXIF orientation, also `orientations` `(batch, 3)` int64: the EXIF orientation (1..8)
            of each picture, and the height and width of its stored pixels. The model passes it on to
            [`post_process_semantic_segmentation`]. A warning is issued if the size of a map does not tell whether it
            belongs to the upright picture or to the stored pixels.

        Raises:
            InputError: If a file cannot be read, numbers are not colours, label maps do not match their pictures, or
                pictures of different sizes are to be stacked in one tensor.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def fetch_images(self, images: Any) -> Any:
        """Read paths, URLs and bytes; return pictures in memory unchanged."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        return load_rgb(images) if isinstance(images, (str, Path, bytes)) else super().fetch_images(images)

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Convert one picture to the backend's array type, `(3, height, width)`."""
        if isinstance(image, Image.Image):
            image = load_rgb(image) if do_convert_rgb else load_upright(image)
            do_convert_rgb = False
        else:
            sides = {image.shape[0], image.shape[-1]} if do_convert_rgb else set()
            if 4 in sides and not sides & {1, 3}:
                warnings.warn(
                    "An array of four channels is taken for RGBA and composited over white: give three channels if "
                    "the fourth one is something else, such as near infrared.",
                    stacklevel=2,
                )
            if do_rescale and rescale_factor is not None and math.isclose(rescale_factor, 1 / 255, rel_tol=1e-4):
                image = _colours_to_8_bit(image)
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)

    def resize(
        self, image: Any, size: SizeDict, resample: PILImageResampling | int | None = None, **kwargs: Any
    ) -> Any:
        """Resize `(channels, height, width)`: bilinear as in OpenCV, any other filter as in the backend."""
        height, width = resized_shape(image.shape[-2], image.shape[-1], size)
        if resample != PILImageResampling.BILINEAR:
            return super().resize(image, SizeDict(height=height, width=width), resample, **kwargs)
        if isinstance(image, np.ndarray):
            # torch needs a writable array. Channels stay last in memory, where they are when they come from Pillow.
            return resize_bilinear(torch.from_numpy(image.copy(order="K")), height, width).numpy()
        return resize_bilinear(image, height, width)

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        self._refuse_crops(**kwargs)
        names = ("do_convert_rgb", "do_rescale", "rescale_factor", "input_data_format", "device")
        options = {name: kwargs[name] for name in names}
        sources = images
        images = self._prepare_images_structure(_with_channels(self.fetch_images(images), kwargs["input_data_format"]))
        pictures = [self.process_image(image, **options) for image in images]
        pixel_values = self._preprocess(pictures, **kwargs)
        shapes = [tuple(values.shape[-2:]) for values in pixel_values]
        if return_tensors is not None and len(set(shapes)) > 1:
            sizes = ", ".join(f"{height}x{width}" for height, width in dict.fromkeys(shapes))
            raise InputError(
                f"Resized pictures of different sizes ({sizes}) cannot be stacked in one tensor: set one size as "
                'size={"height": ..., "width": ...}, or use the pipeline, which processes them one at a time.'
            )
        data: dict[str, Any] = {"pixel_values": pixel_values}
        frames = [
            exif_frame(image) if isinstance(image, Image.Image) else (1, *picture.shape[-2:])
            for image, picture in zip(images, pictures)
        ]
        if any(orientation != 1 for orientation, *_ in frames):
            data["orientations"] = np.array(frames)
            if any(orientation in (2, 3, 4) or (orientation > 4 and h == w) for orientation, h, w in frames):
                warnings.warn(EXIF_WARNING, stacklevel=2)
        if segmentation_maps is not None:
            class_ids = _read_segmentation_maps(segmentation_maps, [picture.shape[-2:] for picture in pictures])
            _warn_of_orientations(sources, segmentation_maps)
            data["labels"] = [resize_nearest(ids, *shape) for ids, shape in zip(class_ids, shapes)]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _refuse_crops(
        self,
        do_center_crop: bool | None = None,
        do_pad: bool | None = None,
        crop_size: Any = None,
        pad_size: Any = None,
        data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> None:
        """Raise `InputError` for settings of other image processors, which would silently do nothing here."""
        settings = {"do_center_crop": do_center_crop, "do_pad": do_pad, "crop_size": crop_size, "pad_size": pad_size}
        for name, value in settings.items():
            if value:
                raise InputError(
                    f"{name} is not supported: the whole picture is segmented. Leave it out or set it to False."
                )
        if data_format not in (None, ChannelDimension.FIRST):
            raise InputError(f"data_format must be channels_first, as the model needs it, not {data_format}.")

    def _preprocess(
        self,
        images: list[Any],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | Iterable[float],
        image_std: float | Iterable[float],
        **kwargs: Any,
    ) -> list[Any]:
        processed = []
        for image in images:
            if do_resize:
                image = self.resize(image, size, resample)
            if do_rescale or do_normalize:
                factor = rescale_factor if do_rescale else 1.0
                image = _scale(image, factor, *((image_mean, image_std) if do_normalize else ()))
            processed.append(image)
        return processed

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """
        Turn a model's mask logits into maps of class ids.

        Args:
            outputs: Has `.logits (batch, names, h, w)` and, if [`preprocess`] returned them, `.orientations`; with
                `.class_of_name (names,)`, ids and scores are those of classes, and the score of a class is the best of
                its names'. Pixels of names without a class, the background, get the id -1.
            target_sizes: `(height, width)` of each picture's map; `None` for the size of the logits. A map belongs to
                the upright picture, with the EXIF orientation applied. There is one exception: if a PIL image was
                rotated by 90 degrees and the target size is in portrait format although the upright picture is in
                landscape format, or the reverse, the map is rotated back and matches the stored pixels, whose size
                `picture.height` and `picture.width` tell.
            return_segmentation_scores: Whether to return the scores of all classes too. Otherwise only a few classes
                are upsampled at a time.

        Returns:
            A list with a map `(height, width)` int64 for each picture or, with scores, with a
            [`SemanticSegmentationPostProcessorOutput`] of `segmentation`, the same map, and `segmentation_scores`,
            `(classes, height, width)` float32 in [0, 1]: the sigmoid of the bilinearly resized logits, or their
            softmax over the names if `outputs.score_function` is `"softmax"`, as it is for training-free models.

        Raises:
            InputError: If the number of target sizes is not the number of pictures, or a logit is not finite.
        """
        logits = outputs.logits
        check_finite(logits)
        if target_sizes is None:
            target_sizes = [logits.shape[-2:]] * len(logits)
        elif len(target_sizes) != len(logits):
            raise InputError(f"Got {len(target_sizes)} target sizes for the logits of {len(logits)} pictures.")

        is_softmax = getattr(outputs, "score_function", "sigmoid") == "softmax"
        class_of_name = getattr(outputs, "class_of_name", None)
        if is_softmax and (logits.shape[1] == 1 if class_of_name is None else not class_of_name.any()):
            warnings.warn(
                "The scores of a training-free model compare names, so a single class wins every pixel: give more of "
                "them, or background=True to the processor.",
                stacklevel=2,
            )
        orientations = getattr(outputs, "orientations", None)
        results: list[Any] = []
        for index, (picture_logits, target_size) in enumerate(zip(logits, target_sizes)):
            height, width = (int(side) for side in target_size)
            turn_back = None if orientations is None else _find_rotation(orientations[index].tolist(), height, width)
            if turn_back is not None:
                height, width = width, height
            else:
                self._warn_of_other_format(height, width, *logits.shape[-2:])
            if return_segmentation_scores:
                resized = resize_maps(picture_logits, height, width)
                if turn_back is not None:
                    resized = turn_back(resized)
                ids = resized.argmax(dim=0)
                scores = resized.softmax(dim=0) if is_softmax else resized.sigmoid()
                if class_of_name is not None:
                    ids, scores = class_of_name[ids], best_of_names(scores, class_of_name)
                data = {"segmentation": ids, "segmentation_scores": scores}
                results.append(SemanticSegmentationPostProcessorOutput(data=data))
            else:
                chunks = class_chunks(len(picture_logits), height, width, picture_logits.device)
                ids, _ = running_max(resize_maps(picture_logits[chunk], height, width) for chunk in chunks)
                ids = ids if class_of_name is None else class_of_name[ids]
                results.append(ids if turn_back is None else turn_back(ids))
        return results

    def _warn_of_other_format(self, height: int, width: int, logits_height: int, logits_width: int) -> None:
        keeps_format = "shortest_edge" in dict(self.size)
        if keeps_format and (height - width) * (logits_height - logits_width) < 0:
            warnings.warn(
                f"The target size ({height}, {width}) has another format than the picture that the model saw, so the "
                "map is squeezed: give (height, width) of the upright picture, EXIF orientation applied.",
                stacklevel=3,
            )


def _scale(image: Any, factor: float, mean: float | Iterable[float] = 0.0, std: float | Iterable[float] = 1.0) -> Any:
    """
    Rescale and normalise `(channels, height, width)` in one step, float32.

    Computed in this order, `(value - mean / factor) / (std / factor)`, the result is bit-identical to the official
    code.
    """
    channels = [np.asarray(numbers, dtype=np.float64).reshape(-1, 1, 1) / factor for numbers in (mean, std)]
    for numbers, given in zip(channels, (mean, std)):
        if len(numbers) != len(image) and isinstance(given, Iterable):
            raise InputError(
                f"image_mean and image_std need one number per channel ({len(image)}), not {len(numbers)}."
            )
    centre, spread = (numbers.astype(np.float32) for numbers in channels)
    if isinstance(image, torch.Tensor):
        return (image.float() - torch.from_numpy(centre).to(image.device)) / torch.from_numpy(spread).to(image.device)
    values = np.empty(image.shape, np.float32)
    np.subtract(image, centre, out=values, dtype=np.float32, casting="unsafe")
    return np.divide(values, spread, out=values)


def _warn_of_orientations(pictures: Any, segmentation_maps: Any) -> None:
    """Warn if a picture and its label map have different EXIF orientations and their sizes do not reveal it."""
    pairs = zip(*(items if isinstance(items, (list, tuple)) else [items] for items in (pictures, segmentation_maps)))
    for pair in pairs:
        (orientation, *size), (map_orientation, *map_size) = map(_stored_frame, pair)
        if orientation != map_orientation and size == map_size:
            warnings.warn(
                "A picture is rotated by its EXIF orientation and its segmentation map is not: if the map was drawn "
                "on the stored pixels, the two do not align.",
                stacklevel=3,
            )
            return


def _stored_frame(source: Any) -> tuple[int, int, int]:
    """EXIF orientation, height and width as stored; arrays and URLs count as upright."""
    if isinstance(source, Image.Image):
        return exif_frame(source)
    if isinstance(source, (str, Path, bytes)) and not str(source).startswith(("http://", "https://")):
        orientation, (width, height) = read_frame(source)
        return orientation, height, width
    height, width = tuple(getattr(source, "shape", (0, 0)))[-2:]
    return 1, height, width


def _find_rotation(frame: Sequence[int], height: int, width: int) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """
    Find the rotation of `(..., height, width)` from the upright picture back to the stored pixels.

    Args:
        frame: EXIF orientation, height and width of the stored pixels.
        height: Of the target size.
        width: Of the target size.

    Returns:
        The rotation, or `None` if the target size has the format of the upright picture, or is square.
    """
    orientation, stored_height, stored_width = frame
    if orientation < 5 or (height - width) * (stored_height - stored_width) <= 0:
        return None
    return _TURNS_BACK[orientation]


# By EXIF orientation.
_TURNS_BACK: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {
    5: lambda maps: maps.mT.contiguous(),
    6: lambda maps: maps.rot90(1, (-2, -1)),
    7: lambda maps: maps.flip(-2, -1).mT.contiguous(),
    8: lambda maps: maps.rot90(-1, (-2, -1)),
}


def array_size(picture: np.ndarray | torch.Tensor) -> tuple[int, int]:
    """Return height and width of an array or tensor, whose layout is found as in [`preprocess`]."""
    return (
        tuple(picture.shape)
        if picture.ndim == 2
        else get_image_size(picture, infer_channel_dimension_format(picture, (1, 3, 4)))
    )


def _with_channels(images: Any, input_data_format: str | ChannelDimension | None) -> Any:
    """Add a channel axis to grey pictures `(height, width)`, as the first axis or as the input format says."""
    if isinstance(images, (list, tuple)):
        return [_with_channels(image, input_data_format) for image in images]
    if getattr(images, "ndim", None) != 2:
        return images
    return images[..., None] if input_data_format == ChannelDimension.LAST else images[None]


def _colours_to_8_bit(image: Any) -> Any:
    """Apply [`to_8_bit`] to an array or tensor."""
    if not isinstance(image, torch.Tensor):
        return to_8_bit(image)
    if image.dtype == torch.uint8:
        return image
    # NumPy has no bfloat16.
    values = image.float() if image.dtype == torch.bfloat16 else image
    return torch.from_numpy(to_8_bit(values.detach().cpu().numpy())).to(image.device)


def _read_segmentation_maps(segmentation_maps: Any, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """One label map or several, of any supported kind, as int64 arrays of the given shapes `(height, width)`."""
    if not isinstance(segmentation_maps, (list, tuple)) and getattr(segmentation_maps, "ndim", 2) < 3:
        segmentation_maps = [segmentation_maps]
    class_ids = [_read_segmentation_map(segmentation_map) for segmentation_map in segmentation_maps]
    if len(class_ids) != len(shapes):
        raise InputError(f"Got {len(class_ids)} segmentation maps for {len(shapes)} pictures.")
    for index, (ids, shape) in enumerate(zip(class_ids, shapes)):
        if ids.shape != tuple(shape):
            raise InputError(
                f"Segmentation map {index} has {ids.shape[0]}x{ids.shape[1]} pixels (height x width), but its picture "
                f"has {shape[0]}x{shape[1]}; the EXIF orientation is applied to both."
            )
    return class_ids


def _read_segmentation_map(segmentation_map: Any) -> np.ndarray:
    if isinstance(segmentation_map, (str, Path, bytes, Image.Image)):
        return load_class_ids(segmentation_map)
    class_ids = np.asarray(segmentation_map.cpu() if isinstance(segmentation_map, torch.Tensor) else segmentation_map)
    if class_ids.ndim != 2 or class_ids.dtype.kind not in "iub":
        raise InputError(
            f"A segmentation map needs integer class ids (height, width), but got {class_ids.dtype} of shape "
            f"{class_ids.shape}."
        )
    return class_ids.astype(np.int64)


__all__ = ["ZegClipImageProcessorBase", "ZegClipImageProcessorKwargs", "array_size"]
