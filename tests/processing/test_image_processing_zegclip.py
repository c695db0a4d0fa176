import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from zegclip.processing.image_processing_pil_zegclip import ZegClipImageProcessorPil
from zegclip.processing.image_processing_zegclip import ZegClipImageProcessor
from zegclip.processing.input_error import InputError

GOLDENS = Path(os.environ.get("ZEGCLIP_GOLDENS", Path(__file__).parents[1] / "goldens"))
BACKENDS = list(dict.fromkeys([ZegClipImageProcessor, ZegClipImageProcessorPil]))
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=sorted(GOLDENS.glob("*_preprocess.safetensors")), ids=lambda path: path.stem)
def golden(request):
    return load_file(request.param)


@pytest.fixture(params=BACKENDS)
def small(request):
    return request.param(size={"shortest_edge": 32})


@pytest.fixture
def values_of(small):
    """`pixel_values` of pictures."""
    return lambda images, **options: small(images, return_tensors="pt", **options)["pixel_values"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["test_up", "test_down"])
def test_official_test_pipeline(golden, backend, case):
    picture = Image.fromarray(golden[f"{case}.image_rgb_uint8"].numpy())
    pixel_values = backend(size={"shortest_edge": 64})(picture, return_tensors="pt")["pixel_values"]
    # Only float32 rounding of the normalisation differs: one grey level would be 0.017.
    torch.testing.assert_close(pixel_values[0], golden[f"{case}.pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["up", "down"])
def test_official_resize_of_training_pictures_and_labels(golden, backend, case):
    image_processor = backend(size={"shortest_edge": 70, "longest_edge": 281})
    outputs = image_processor(
        Image.fromarray(golden[f"test_{case}.image_rgb_uint8"].numpy()),
        Image.fromarray(golden[f"train_{case}.label_in"].numpy()),
        do_rescale=False,
        do_normalize=False,
        return_tensors="pt",
    )
    resized = outputs["pixel_values"][0].permute(1, 2, 0)
    assert torch.equal(resized, golden[f"train_{case}.image_resized_rgb_uint8"])
    assert outputs["labels"].dtype == torch.int64
    assert torch.equal(outputs["labels"][0], golden[f"train_{case}.label_resized"].long())


def test_defaults_are_those_of_the_official_pipeline():
    image_processor = ZegClipImageProcessor()
    outputs = image_processor(Image.fromarray(NOISE), return_tensors="pt")
    assert outputs["pixel_values"].shape == (1, 3, 512, 768)
    assert (image_processor.window_size, image_processor.window_stride) == (512, 426)


def test_all_kinds_of_input_give_the_same(values_of, served):
    folder, address = served
    path = folder / "picture.png"
    Image.fromarray(NOISE).save(path)
    expected = values_of(Image.fromarray(NOISE))
    assert expected.shape == (1, 3, 32, 48)
    array, tensor = NOISE, torch.from_numpy(NOISE).permute(2, 0, 1)
    flipped = NOISE[:, ::-1].copy()[:, ::-1]
    read_only = NOISE.copy()
    read_only.flags.writeable = False
    sources = (path, str(path), path.read_bytes(), f"{address}/picture.png", [Image.fromarray(NOISE)])
    for images in (*sources, array, array[None], [array], flipped, read_only, tensor, [tensor], tensor[None]):
        assert torch.equal(values_of(images), expected)


@pytest.mark.parametrize("kind", ["array", "list", "batch", "channels first", "tensor"])
@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "float16", "int16", "uint16", "16 bits", "int32", "uint32", "int64", "uint64", "0..1"],
)
def test_every_number_type_gives_the_same_pixel_values(values_of, dtype, kind):
    expected = values_of(NOISE)
    if dtype == "0..1":
        arrays = [(NOISE / 255).astype(precision) for precision in ("float32", "float64", "float16")]
    else:
        arrays = [NOISE.astype(np.uint16) * 257 if dtype == "16 bits" else NOISE.astype(dtype)]
    for array in arrays:
        images = {
            "array": array,
            "list": [array],
            "batch": array[None],
            "channels first": array.transpose(2, 0, 1),
            "tensor": torch.from_numpy(array).permute(2, 0, 1),
        }[kind]
        assert torch.equal(values_of(images), expected)


def test_bfloat16_and_booleans_are_understood(values_of):
    # Of 8 bits, bfloat16 has all.
    assert torch.equal(values_of(torch.from_numpy(NOISE).permute(2, 0, 1).bfloat16()), values_of(NOISE))
    black_and_white = NOISE > 100
    assert torch.equal(values_of(black_and_white), values_of(black_and_white.astype(np.uint8) * 255))


@pytest.mark.parametrize(
    "change",
    [
        lambda noise: noise.astype(np.float32) - 1,
        lambda noise: noise.astype(np.float32) * 2,
        lambda noise: noise / np.float32(254.3),  # Slightly above 1: neither 0..1 nor a black picture of 0..255.
        lambda noise: np.where(noise == 7, np.nan, noise / 255),
        lambda noise: noise.astype(np.int16) - 1,
        lambda noise: noise.astype(np.int32) * 2,
        lambda noise: noise.astype(np.complex64),
    ],
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_numbers_that_are_not_colours_are_refused(small, change, as_tensor):
    array = change(NOISE)
    images = torch.from_numpy(array) if as_tensor else array
    for given in (images, [NOISE, images], images[None]):
        with pytest.raises(InputError, match=str(array.dtype)):
            small(given, return_tensors="pt")


def test_without_rescaling_numbers_are_used_as_they_are(values_of):
    values = np.random.default_rng(1).normal(size=(3, 32, 48)).astype(np.float32)
    np.testing.assert_array_equal(values_of(values, do_rescale=False, do_normalize=False)[0], values)
    deep = NOISE.transpose(2, 0, 1).astype(np.uint16) * 257
    found = values_of(deep, do_resize=False, rescale_factor=1 / 65535, do_normalize=False)[0]
    np.testing.assert_allclose(found, NOISE.transpose(2, 0, 1) / 255, atol=1e-6)


def test_grey_arrays(values_of):
    grey = NOISE[..., 0]
    expected = values_of(Image.fromarray(grey))
    for images in (grey, [grey], grey[None], grey[..., None], torch.from_numpy(grey), (grey / 255).astype(np.float32)):
        assert torch.equal(values_of(images), expected)
    for data_format in ("channels_first", "channels_last"):
        assert torch.equal(values_of(grey, input_data_format=data_format), expected)


@pytest.mark.parametrize(("side", "data_format"), [(3, "channels_first"), (3, "channels_last"), (4, "channels_last")])
def test_input_data_format_is_used(values_of, side, data_format):
    array = np.random.default_rng(2).integers(0, 256, (3, 5, side), dtype=np.uint8)
    if side == 4:
        array[..., 3] = 255
    colours = (array if data_format == "channels_last" else array.transpose(1, 2, 0))[..., :3]
    assert torch.equal(values_of(array, input_data_format=data_format), values_of(Image.fromarray(colours)))


def turned(values, orientation, folder):
    """A picture that an EXIF orientation turns into these values, from a file."""
    ways = {
        2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE",
        8: "ROTATE_270",
    }  # fmt: skip
    image = Image.fromarray(values)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if orientation != 1:
        image = image.transpose(Image.Transpose[ways[orientation]])
    image.save(folder / f"{orientation}.png", exif=exif)
    return Image.open(folder / f"{orientation}.png")


def results(image_processor, model_like, picture, target_size):
    inputs = image_processor(picture, return_tensors="pt")
    outputs = SimpleNamespace(logits=model_like(inputs["pixel_values"]), orientations=inputs.get("orientations"))
    plain = image_processor.post_process_semantic_segmentation(outputs, [target_size])[0]
    scored = image_processor.post_process_semantic_segmentation(outputs, [target_size], True)[0]
    assert torch.equal(plain, scored.segmentation)
    assert scored.segmentation_scores.shape[1:] == plain.shape
    return plain.numpy()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1, 2])
def test_height_and_width_of_a_pil_image_are_a_target_size(tmp_path, orientation, scale):
    """The map matches the stored pixels after a rotation by 90 degrees; otherwise it is upright, with a warning."""
    image_processor = ZegClipImageProcessor(size={"shortest_edge": 40})
    picture = turned(NOISE, orientation, tmp_path)

    def largest_colour(pixel_values):
        return torch.nn.functional.avg_pool2d(pixel_values, 5)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = results(image_processor, largest_colour, picture, (picture.height * scale, picture.width * scale))
        upright = results(image_processor, largest_colour, NOISE, (40 * scale, 60 * scale))
        same = results(image_processor, largest_colour, picture, (40 * scale, 60 * scale))
    expected = np.asarray(turned(upright.astype(np.uint8), orientation, tmp_path)) if orientation > 4 else upright
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(same, upright)
    assert {str(warning.message).count("exif_transpose") for warning in caught} == (
        {1} if orientation in (2, 3, 4) else set()
    )


def test_a_square_picture_that_is_turned_comes_with_a_warning(tmp_path):
    picture = turned(NOISE[:40, :40], 6, tmp_path)
    with pytest.warns(UserWarning, match="exif_transpose") as caught:
        ZegClipImageProcessor()([picture, picture, NOISE[:40, :40]], return_tensors="pt")
    assert len(caught) == 1


def test_orientations_are_returned_for_pil_images_only(small, tmp_path):
    picture = turned(NOISE, 6, tmp_path)
    path = tmp_path / "6.png"
    assert "orientations" not in small([path, NOISE, Image.fromarray(NOISE)], return_tensors="pt")
    outputs = small([picture, NOISE, path], return_tensors="pt")
    assert outputs["orientations"].tolist() == [[6, 60, 40], [1, 40, 60], [1, 40, 60]]
    assert outputs["orientations"].dtype == torch.int64
    assert small(picture)["orientations"].tolist() == [[6, 60, 40]]
    # Pillow turns a TIFF file itself.
    picture.save(tmp_path / "turned.tif", exif=picture.getexif())
    opened = Image.open(tmp_path / "turned.tif")
    assert torch.equal(small(opened, return_tensors="pt")["pixel_values"][0], outputs["pixel_values"][0])
    assert "orientations" not in small(opened)


def test_a_picture_is_upright_without_conversion_to_rgb_too(values_of, tmp_path):
    assert torch.equal(values_of(turned(NOISE, 6, tmp_path), do_convert_rgb=False), values_of(NOISE))


def test_a_target_size_of_another_format_comes_with_a_warning():
    """For instance (width, height) instead of (height, width)."""
    image_processor = ZegClipImageProcessor()
    outputs = SimpleNamespace(logits=torch.zeros(1, 2, 4, 6))
    with pytest.warns(UserWarning, match=r"\(60, 40\) has another format"):
        image_processor.post_process_semantic_segmentation(outputs, [(60, 40)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in ((40, 60), (50, 50)):
            image_processor.post_process_semantic_segmentation(outputs, [size])


def test_a_picture_of_one_pixel(small):
    outputs = small(Image.new("RGB", (1, 1)), Image.new("L", (1, 1), 7), return_tensors="pt")
    assert outputs["pixel_values"].shape == (1, 3, 32, 32)
    assert (outputs["labels"] == 7).all()


def test_other_filters_are_those_of_the_backend(values_of):
    picture = Image.fromarray(NOISE)
    bicubic, bilinear = values_of(picture, resample=Image.Resampling.BICUBIC), values_of(picture)
    assert bicubic.shape == bilinear.shape
    assert not torch.equal(bicubic, bilinear)


def test_pictures_of_different_sizes(small):
    pictures = [Image.new("RGB", (40, 30)), Image.new("RGB", (30, 40))]
    assert [values.shape for values in small(pictures)["pixel_values"]] == [(3, 32, 43), (3, 43, 32)]
    with pytest.raises(InputError, match="32x43, 43x32"):
        small(pictures, return_tensors="pt")
    resized = small(pictures, size={"height": 16, "width": 24}, return_tensors="pt")["pixel_values"]
    assert resized.shape == (2, 3, 16, 24)


def test_label_maps_of_every_kind_keep_their_ids(small, served):
    folder, address = served
    ids = np.random.default_rng(1).choice([0, 1, 40, 255], (40, 60)).astype(np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette(list(range(256)) * 3)
    path = folder / "mask.png"
    palette.save(path)
    sources = (path, path.read_bytes(), f"{address}/mask.png")
    images = ([palette], Image.fromarray(ids), Image.fromarray(ids.astype(np.uint16)))
    labels = [
        small(Image.fromarray(NOISE), segmentation_maps, return_tensors="pt")["labels"]
        for segmentation_maps in (*sources, *images, ids, ids[None].astype(np.int64), torch.from_numpy(ids))
    ]
    assert labels[0].shape == (1, 32, 48)
    assert set(labels[0].unique().tolist()) <= {0, 1, 40, 255}
    assert all(torch.equal(label, labels[0]) for label in labels)


@pytest.mark.parametrize(
    ("segmentation_maps", "reason"),
    [
        (Image.new("L", (40, 60)), "60x40 .* 40x60"),
        (Image.new("RGB", (60, 40)), "RGB"),
        ([Image.new("L", (60, 40))] * 2, "2 .*1 "),
        (np.zeros((40, 60), dtype=np.float32), "float32"),
        (np.zeros(60, dtype=np.uint8), r"uint8 .*\(60,\)"),
        (3, r"int64 .*\(\)"),
        (np.zeros((40, 60, 3), dtype=np.uint8), "40 "),
    ],
)
def test_label_maps_that_do_not_fit(small, segmentation_maps, reason):
    with pytest.raises(InputError, match=reason):
        small(Image.fromarray(NOISE), segmentation_maps)


@pytest.mark.parametrize("window", [(None, None), (48, 40)])
def test_round_trip(tmp_path, window):
    saved = ZegClipImageProcessor(size={"height": 20, "width": 30}, window_size=window[0], window_stride=window[1])
    saved.save_pretrained(tmp_path)
    loaded = ZegClipImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == saved.to_dict()
    assert (loaded.window_size, loaded.window_stride) == window


@pytest.mark.parametrize("target_sizes", [None, [(20, 31), (9, 5)], torch.tensor([[20, 31], [9, 5]])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_post_processing_with_and_without_scores_agrees(target_sizes, dtype):
    logits = torch.randn(2, 19, 6, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    outputs = SimpleNamespace(logits=logits)
    image_processor = ZegClipImageProcessor()
    maps = image_processor.post_process_semantic_segmentation(outputs, target_sizes)
    with_scores = image_processor.post_process_semantic_segmentation(outputs, target_sizes, True)
    shapes = [(6, 8)] * 2 if target_sizes is None else [tuple(int(side) for side in size) for size in target_sizes]
    for ids, result, shape in zip(maps, with_scores, shapes):
        assert ids.dtype == torch.int64
        assert ids.shape == shape
        assert torch.equal(ids, result.segmentation)
        assert result.segmentation_scores.shape == (19, *shape)
        assert 0 <= result.segmentation_scores.min() <= result.segmentation_scores.max() <= 1


@pytest.mark.parametrize("shape", [(4, 20, 30), (20, 30, 4), (4, 30, 3), (3, 20, 4)])
def test_four_channels_are_taken_for_rgba_with_a_warning(small, shape):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small(np.full(shape, 100, dtype=np.uint8), return_tensors="pt")
    assert any("RGBA" in str(one.message) for one in caught) == (3 not in shape)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("with_scores", [True, False])
def test_post_processing_refuses_logits_that_are_not_finite(with_scores, value):
    logits = torch.zeros(1, 2, 3, 3)
    logits[0, 1, 0, 0] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        ZegClipImageProcessor().post_process_semantic_segmentation(
            SimpleNamespace(logits=logits), return_segmentation_scores=with_scores
        )


def test_post_processing_needs_one_target_size_per_picture():
    outputs = SimpleNamespace(logits=torch.zeros(2, 3, 4, 4))
    with pytest.raises(InputError, match="target sizes"):
        ZegClipImageProcessor().post_process_semantic_segmentation(outputs, [(4, 4)])


@pytest.mark.parametrize("orientation", [2, 3, 4])
@pytest.mark.parametrize("kind", ["path", "bytes"])
def test_a_map_that_is_not_rotated_like_its_picture_comes_with_a_warning(
    image_processor, tmp_path, orientation, kind, recwarn
):
    upright = np.zeros((16, 24), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (24, 16)).save(tmp_path / "phone.jpg", exif=exif)
    Image.fromarray(upright).save(tmp_path / "mask.png")
    Image.fromarray(upright).save(tmp_path / "turned.png", exif=exif)
    picture = tmp_path / "phone.jpg" if kind == "path" else (tmp_path / "phone.jpg").read_bytes()
    for segmentation_map in (upright, tmp_path / "mask.png"):
        with pytest.warns(UserWarning, match="EXIF orientation"):
            image_processor(picture, segmentation_map)
    recwarn.clear()
    image_processor(picture, tmp_path / "turned.png")
    assert not [str(item.message) for item in recwarn.list]
