import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from zegclip.processing.image_processing_pil_zegclip import ZegClipImageProcessorPil
from zegclip.processing.image_processing_zegclip import ZegClipImageProcessor

GOLDENS = Path(os.environ.get("ZEGCLIP_GOLDENS", Path(__file__).parents[1] / "goldens"))
BACKENDS = list(dict.fromkeys([ZegClipImageProcessor, ZegClipImageProcessorPil]))
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=sorted(GOLDENS.glob("*_preprocess.safetensors")), ids=lambda path: path.stem)
def golden(request):
    return load_file(request.param)


@pytest.fixture(params=BACKENDS)
def small(request):
    return request.param(size={"shortest_edge": 32})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["test_up", "test_down"])
def test_official_test_pipeline(golden, backend, case):
    picture = Image.fromarray(golden[f"{case}.image_rgb_uint8"].numpy())
    pixel_values = backend(size={"shortest_edge": 64})(picture, return_tensors="pt")["pixel_values"]
    # One grey level is 0.017: there is none of difference, only float32 rounding of the normalisation.
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


def test_all_kinds_of_input_give_the_same(small, tmp_path):
    picture = Image.fromarray(NOISE)
    picture.save(tmp_path / "picture.png")
    expected = small(picture, return_tensors="pt")["pixel_values"]
    assert expected.shape == (1, 3, 32, 48)
    path = tmp_path / "picture.png"
    array, tensor = NOISE, torch.from_numpy(NOISE).permute(2, 0, 1)
    for images in (path, str(path), [picture], array, array[None], [array], tensor, [tensor], tensor[None]):
        assert torch.equal(small(images, return_tensors="pt")["pixel_values"], expected)


def test_flipped_and_read_only_arrays(small):
    flipped = NOISE[:, ::-1]
    read_only = flipped.copy()
    read_only.flags.writeable = False
    assert torch.equal(
        small(flipped, return_tensors="pt")["pixel_values"], small(read_only, return_tensors="pt")["pixel_values"]
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_colour_mode_comes_out_as_three_channels(small, mode):
    assert small(Image.new(mode, (5, 3)), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 53)


def test_a_picture_of_one_pixel(small):
    outputs = small(Image.new("RGB", (1, 1)), Image.new("L", (1, 1), 7), return_tensors="pt")
    assert outputs["pixel_values"].shape == (1, 3, 32, 32)
    assert (outputs["labels"] == 7).all()


def test_other_filters_are_the_library_s_own(small):
    picture = Image.fromarray(NOISE)
    bicubic = small(picture, resample=Image.Resampling.BICUBIC, return_tensors="pt")["pixel_values"]
    bilinear = small(picture, return_tensors="pt")["pixel_values"]
    assert bicubic.shape == bilinear.shape
    assert not torch.equal(bicubic, bilinear)


def test_pictures_of_different_sizes(small):
    pictures = [Image.new("RGB", (40, 30)), Image.new("RGB", (30, 40))]
    assert [values.shape for values in small(pictures)["pixel_values"]] == [(3, 32, 43), (3, 43, 32)]
    with pytest.raises(ValueError, match=r"different sizes \(32x43, 43x32\).*\"height\""):
        small(pictures, return_tensors="pt")
    assert small(pictures, size={"height": 16, "width": 24}, return_tensors="pt")["pixel_values"].shape == (
        2,
        3,
        16,
        24,
    )


def test_label_maps_of_every_kind_keep_their_ids(small, tmp_path):
    ids = np.random.default_rng(1).choice([0, 1, 40, 255], (40, 60)).astype(np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path / "mask.png")
    labels = [
        small(Image.fromarray(NOISE), segmentation_maps, return_tensors="pt")["labels"]
        for segmentation_maps in (
            tmp_path / "mask.png",
            [palette],
            Image.fromarray(ids),
            Image.fromarray(ids.astype(np.uint16)),
            ids,
            ids[None].astype(np.int64),
            torch.from_numpy(ids),
        )
    ]
    assert labels[0].shape == (1, 32, 48)
    assert set(labels[0].unique().tolist()) <= {0, 1, 40, 255}
    assert all(torch.equal(label, labels[0]) for label in labels)


@pytest.mark.parametrize(
    ("segmentation_maps", "reason"),
    [
        (Image.new("L", (40, 60)), "60x40 pixels .* its picture has 40x60"),
        (Image.new("RGB", (60, 40)), "not a label map"),
        ([Image.new("L", (60, 40))] * 2, "2 segmentation maps for 1 pictures"),
        (np.zeros((40, 60), dtype=np.float32), "integer class ids"),
        (np.uint8(3), r"integer class ids \(height, width\), but got uint8 of shape \(\)"),
        (np.zeros(60, dtype=np.uint8), r"but got uint8 of shape \(60,\)"),
        (3, r"but got int64 of shape \(\)"),
        (np.zeros((40, 60, 3), dtype=np.uint8), "integer class ids|segmentation maps for"),
    ],
)
def test_label_maps_that_do_not_fit(small, segmentation_maps, reason):
    with pytest.raises(ValueError, match=reason):
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


def test_post_processing_needs_one_target_size_per_picture():
    outputs = SimpleNamespace(logits=torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="1 target sizes for the logits of 2 pictures"):
        ZegClipImageProcessor().post_process_semantic_segmentation(outputs, [(4, 4)])
