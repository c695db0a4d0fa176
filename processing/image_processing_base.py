"""What the two image processors of ZegCLIP (Pillow and torchvision backend) share."""

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
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from .image_reading import EXIF_WARNING, exif_frame, load_class_ids, load_rgb, load_upright, read_frame, to_8_bit
from .input_error import InputError
from .resizing import resize_bilinear, resize_nearest, resized_shape
from .windows import class_chunks, resize_maps, running_max


class ZegClipImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    r"""
    window_size (`int`, *optional*, defaults to 512):
        Side of the square windows, in pixels of the resized picture, that the pipeline and the evaluation predict in;
        `None` for the whole picture at once.
    window_stride (`int`, *optional*, defaults to 426):
        Distance between neighbouring windows.
    """

    window_size: int | None
    window_stride: int | None


class ZegClipImageProcessorBase(BaseImageProcessor):
    """
    The official ZegCLIP test pipeline: the short side becomes 512 pixels with no limit on the long one, bilinear
    without antialiasing and bit-identical to OpenCV's, then ImageNet's statistics (not CLIP's). Nothing is cropped or
    padded.

    It stands before a backend class of transformers in the bases of an image processor.
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
        # The base class reads None as "not given", but as a window size it means the whole picture.
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

        Pictures are turned upright by their EXIF orientation. `pixel_values`, `labels` and all results have the frame
        of the upright picture.

        Numbers of arrays and tensors are understood as [`to_8_bit`] says: uint8; floats of 0..1 or 0..255; other
        integers of 0..255, uint16 also of 0..65535. With `do_rescale=False`, or a `rescale_factor` of one's own, they
        are used as they are.

        Args:
            images: One picture or several: paths, `http(s)` addresses, bytes of files, PIL images of any mode, arrays
                or tensors `(height, width)`, `(channels, height, width)` or `(height, width, channels)`, or four axes
                for several.
            segmentation_maps: A label map for each picture and of its upright size: paths, addresses, bytes of files,
                PIL images of a palette or one-channel mode, integer arrays or tensors `(height, width)`. Resized to
                the nearest pixel, never rescaled: ids stay ids.
            kwargs: Any attribute of the image processor, for this call; `return_tensors="pt"` for tensors.

        Returns:
            `pixel_values` `(batch, 3, height, width)` float32 and, with label maps, `labels` `(batch, height, width)`
            int64. Without `return_tensors`, lists of arrays.

            Where PIL images were turned upright, also `orientations` `(batch, 3)` int64: the EXIF orientation (1..8)
            of each picture, and height and width of its pixels before they were turned. The model hands it on to
            [`post_process_semantic_segmentation`]. A warning comes where that could not tell a map over the upright
            picture from one over the PIL image by its size.

        Raises:
            ValueError: If a file cannot be read, numbers are no colours, label maps don't fit their pictures, or
                pictures of different sizes shall become one tensor.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def fetch_images(self, images: Any) -> Any:
        """Reads paths, addresses and bytes; leaves pictures in memory as they are."""
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
        """One picture in the backend's array type, `(3, height, width)`."""
        if isinstance(image, Image.Image):
            image = load_rgb(image) if do_convert_rgb else load_upright(image)
        elif do_rescale and rescale_factor is not None and math.isclose(rescale_factor, 1 / 255, rel_tol=1e-4):
            image = _understand(image)
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)

    def resize(
        self, image: Any, size: SizeDict, resample: PILImageResampling | int | None = None, **kwargs: Any
    ) -> Any:
        """Resizes `(channels, height, width)`: bilinear as OpenCV, any other filter as the backend's own."""
        height, width = resized_shape(image.shape[-2], image.shape[-1], size)
        if resample != PILImageResampling.BILINEAR:
            return super().resize(image, SizeDict(height=height, width=width), resample, **kwargs)
        if isinstance(image, np.ndarray):
            # The copy is contiguous and writable, which torch asks for.
            return resize_bilinear(torch.from_numpy(image.copy()), height, width).numpy()
        return resize_bilinear(image, height, width)

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        names = ("do_convert_rgb", "do_rescale", "rescale_factor", "input_data_format", "device")
        options = {name: kwargs[name] for name in names}
        sources = images if isinstance(images, (list, tuple)) else [images]
        images = self._prepare_images_structure(_with_channels(self.fetch_images(images), kwargs["input_data_format"]))
        pictures = [self.process_image(image, **options) for image in images]
        pixel_values = self._preprocess(pictures, **kwargs)
        shapes = [tuple(values.shape[-2:]) for values in pixel_values]
        if return_tensors is not None and len(set(shapes)) > 1:
            sizes = ", ".join(f"{height}x{width}" for height, width in dict.fromkeys(shapes))
            raise InputError(
                f"The pictures come out at different sizes ({sizes}) and don't fit into one tensor: set one size "
                'as size={"height": ..., "width": ...}, or use the pipeline, which takes them one at a time.'
            )
        data: dict[str, Any] = {"pixel_values": pixel_values}
        frames = [_frame(image, picture) for image, picture in zip(images, pictures)]
        if any(orientation != 1 for orientation, *_ in frames):
            data["orientations"] = np.array(frames)
            if any(orientation in (2, 3, 4) or (orientation > 4 and h == w) for orientation, h, w in frames):
                warnings.warn(EXIF_WARNING, stacklevel=2)
        if segmentation_maps is not None:
            class_ids = _read_segmentation_maps(segmentation_maps)
            _check_segmentation_maps(class_ids, [tuple(picture.shape[-2:]) for picture in pictures])
            maps = segmentation_maps if isinstance(segmentation_maps, (list, tuple)) else [segmentation_maps]
            if any(_are_turned_apart(source, segmentation_map) for source, segmentation_map in zip(sources, maps)):
                warnings.warn(
                    "A picture is turned by its EXIF orientation and its segmentation map is not: if that was drawn "
                    "over the stored pixels, it lies on the wrong side.",
                    stacklevel=2,
                )
            data["labels"] = [resize_nearest(ids, *shape) for ids, shape in zip(class_ids, shapes)]
        return BatchFeature(data=data, tensor_type=return_tensors)

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
        Turns a model's mask logits into maps of class ids.

        Args:
            outputs: Has `.logits (batch, names, h, w)` and, from [`preprocess`] through the model, perhaps
                `.orientations`.
            target_sizes: `(height, width)` of each picture's map; `None` for the logits' own size. A map has the frame
                of the upright picture, with the EXIF orientation applied. Only where a PIL image was turned by a
                quarter, and its target is wide although the upright picture is tall, or tall although that is wide,
                the map is turned back: it fits the pixels of the PIL image, whose `height` and `width` are known by
                another frame.
            return_segmentation_scores: Whether to return every class's scores too. Without them, only a few classes at
                a time are upsampled.

        Returns:
            A list with a map `(height, width)` int64 for each picture or, with scores, with a
            [`SemanticSegmentationPostProcessorOutput`] of `segmentation`, the same map, and `segmentation_scores`,
            `(names, height, width)` float32 in [0, 1], the sigmoid of the bilinearly resized logits.

        Raises:
            ValueError: If there is not one target size for each picture.
        """
        logits = outputs.logits
        if target_sizes is None:
            target_sizes = [logits.shape[-2:]] * len(logits)
        elif len(target_sizes) != len(logits):
            raise InputError(f"Got {len(target_sizes)} target sizes for the logits of {len(logits)} pictures.")

        orientations = getattr(outputs, "orientations", None)
        keeps_format = "shortest_edge" in dict(self.size)
        results: list[Any] = []
        for index, (picture_logits, target_size) in enumerate(zip(logits, target_sizes)):
            height, width = (int(side) for side in target_size)
            turn_back = None if orientations is None else _turning_back(orientations[index].tolist(), height, width)
            if turn_back is not None:
                height, width = width, height
            elif keeps_format and (height - width) * (logits.shape[-2] - logits.shape[-1]) < 0:
                warnings.warn(
                    f"The target size ({height}, {width}) has another format than the picture that the model saw, so "
                    "the map is squeezed: give (height, width) of the upright picture, EXIF orientation applied.",
                    stacklevel=2,
                )
            if return_segmentation_scores:
                resized = resize_maps(picture_logits, height, width)
                if turn_back is not None:
                    resized = turn_back(resized)
                results.append(
                    SemanticSegmentationPostProcessorOutput(
                        data={"segmentation": resized.argmax(dim=0), "segmentation_scores": resized.sigmoid()}
                    )
                )
            else:
                chunks = class_chunks(len(picture_logits), height, width)
                ids, _ = running_max(resize_maps(picture_logits[chunk], height, width) for chunk in chunks)
                results.append(ids if turn_back is None else turn_back(ids))
        return results


def _scale(image: Any, factor: float, mean: float | Iterable[float] = 0.0, std: float | Iterable[float] = 1.0) -> Any:
    """
    Rescale and normalise `(channels, height, width)` in one step, float32.

    In this order, `(value - mean / factor) / (std / factor)`, the result has the official code's bits.
    """
    channels = [np.asarray(numbers, dtype=np.float64).reshape(-1, 1, 1) / factor for numbers in (mean, std)]
    for numbers, given in zip(channels, (mean, std)):
        if len(numbers) != len(image) and isinstance(given, Iterable):
            raise InputError(
                f"image_mean and image_std need a number for each of the {len(image)} channels, not {len(numbers)}."
            )
    centre, spread = (numbers.astype(np.float32) for numbers in channels)
    if isinstance(image, torch.Tensor):
        return (image.float() - torch.from_numpy(centre).to(image.device)) / torch.from_numpy(spread).to(image.device)
    values = np.empty(image.shape, np.float32)
    np.subtract(image, centre, out=values, dtype=np.float32, casting="unsafe")
    return np.divide(values, spread, out=values)


def _frame(image: Any, picture: Any) -> tuple[int, int, int]:
    """A picture's EXIF orientation, 1 for what is none in memory, and height and width as they were given."""
    return exif_frame(image) if isinstance(image, Image.Image) else (1, *picture.shape[-2:])


def _are_turned_apart(picture: Any, segmentation_map: Any) -> bool:
    """Whether one of the two has an EXIF orientation that the other has not, and their sizes do not tell."""
    (orientation, *size), (map_orientation, *map_size) = (_stored_frame(item) for item in (picture, segmentation_map))
    return orientation != map_orientation and size == map_size


def _stored_frame(source: Any) -> tuple[int, int, int]:
    """EXIF orientation, height and width as stored; arrays, tensors and what lies at addresses have no orientation."""
    if isinstance(source, Image.Image):
        return exif_frame(source)
    if isinstance(source, (str, Path, bytes)) and not str(source).startswith(("http://", "https://")):
        orientation, (width, height) = read_frame(source)
        return orientation, height, width
    height, width = tuple(getattr(source, "shape", (0, 0)))[-2:]
    return 1, height, width


def _turning_back(frame: Sequence[int], height: int, width: int) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """
    What takes `(..., height, width)` from the upright frame to that of the pixels as they were given; `None` where a
    map of the target size lies in the upright one, as far as its format tells.
    """
    orientation, given_height, given_width = frame
    if orientation < 5 or (height - width) * (given_height - given_width) <= 0:
        return None
    return _TURNS_BACK[orientation]


# By EXIF orientation.
_TURNS_BACK: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {
    5: lambda maps: maps.mT.contiguous(),
    6: lambda maps: maps.rot90(1, (-2, -1)),
    7: lambda maps: maps.flip(-2, -1).mT.contiguous(),
    8: lambda maps: maps.rot90(-1, (-2, -1)),
}


def _with_channels(images: Any, input_data_format: str | ChannelDimension | None) -> Any:
    """Gives grey pictures `(height, width)` an axis of channels, where the format of all pictures has it."""
    if isinstance(images, (list, tuple)):
        return [_with_channels(image, input_data_format) for image in images]
    if getattr(images, "ndim", None) != 2:
        return images
    return images[..., None] if input_data_format == ChannelDimension.LAST else images[None]


def _understand(image: Any) -> Any:
    """Numbers of an array or tensor as 8-bit colours, see [`to_8_bit`]."""
    if not isinstance(image, torch.Tensor):
        return to_8_bit(image)
    if image.dtype == torch.uint8:
        return image
    # NumPy has no bfloat16.
    values = image.float() if image.dtype == torch.bfloat16 else image
    return torch.from_numpy(to_8_bit(values.detach().cpu().numpy())).to(image.device)


def _read_segmentation_maps(segmentation_maps: Any) -> list[np.ndarray]:
    """One label map or several, of any accepted kind, as `(height, width)` int64 arrays."""
    if not isinstance(segmentation_maps, (list, tuple)) and getattr(segmentation_maps, "ndim", 2) < 3:
        segmentation_maps = [segmentation_maps]
    return [_read_segmentation_map(segmentation_map) for segmentation_map in segmentation_maps]


def _read_segmentation_map(segmentation_map: Any) -> np.ndarray:
    if isinstance(segmentation_map, (str, Path, bytes, Image.Image)):
        return load_class_ids(segmentation_map)
    class_ids = np.asarray(segmentation_map.cpu() if isinstance(segmentation_map, torch.Tensor) else segmentation_map)
    if class_ids.ndim != 2 or class_ids.dtype.kind not in "iub":
        raise InputError(
            f"A segmentation map holds integer class ids (height, width), but got {class_ids.dtype} of shape "
            f"{class_ids.shape}."
        )
    return class_ids.astype(np.int64)


def _check_segmentation_maps(class_ids: list[np.ndarray], shapes: list[tuple[int, ...]]) -> None:
    if len(class_ids) != len(shapes):
        raise InputError(f"Got {len(class_ids)} segmentation maps for {len(shapes)} pictures.")
    for index, (ids, shape) in enumerate(zip(class_ids, shapes)):
        if ids.shape != shape:
            raise InputError(
                f"Segmentation map {index} has {ids.shape[0]}x{ids.shape[1]} pixels (height x width), but its picture "
                f"has {shape[0]}x{shape[1]}; a picture is turned upright by its EXIF orientation, its map too."
            )


__all__ = ["ZegClipImageProcessorBase", "ZegClipImageProcessorKwargs"]
