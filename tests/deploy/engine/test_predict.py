import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from deploy_fakes import noise, write_tiff

import kit
from kit.data.rasters import read_image
from kit.deploy.engine import predict as room
from kit.deploy.engine.predict import as_pixels, predict_image
from kit.deploy.weights.load import Weights, load_weights, newest_weights
from kit.errors import DataError, KitError, RasterError, WeightsError
from kit.pipeline.export import Exported


@pytest.fixture
def copied(tiny_weights: Exported, tmp_path: Path) -> Path:
    """A copy of the weights folder that may be broken."""
    shutil.copytree(tiny_weights.path.parent, tmp_path / "weights")
    return tmp_path / "weights" / "tiny.pt"


def test_prediction(tiny_weights: Exported):
    weights = load_weights(tiny_weights.path)
    image = noise(33, 47, 4)
    image[5:9, :, 3] = 0
    probability = predict_image(weights, image)
    assert (probability.shape, probability.dtype) == ((33, 47), np.float32)
    assert probability[5:9].max() == 0 < probability.min(where=image[..., 3] > 0, initial=1)
    assert probability.max() <= 1


def test_newest_weights(tiny_weights: Exported):
    assert newest_weights(tiny_weights.path.parent) == tiny_weights.path


def test_weights_without_the_json_beside_load(copied: Path):
    copied.with_suffix(".json").unlink()
    assert load_weights(copied).card.recipe == "tiny"


def test_missing_weights_offer_the_nearest(copied: Path):
    with pytest.raises(WeightsError, match=r"no weights .*tinny\.pt") as error:
        load_weights(copied.with_name("tinny.pt"))
    assert "'tiny'" in error.value.hint
    with pytest.raises(WeightsError, match="no weights") as error:
        load_weights(copied.parent / "elsewhere/tiny.pt")
    assert error.value.hint == "kit weights lists what is here"


def test_other_bytes(tmp_path: Path):
    (tmp_path / "a.pt").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=r"a\.pt is not a weights file"):
        load_weights(tmp_path / "a.pt")


def test_weights_of_others(tmp_path: Path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickled.pt")
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), tmp_path / "foreign.pt")
    for name in ("pickled", "foreign"):
        with pytest.raises(WeightsError, match=rf"{name}\.pt is not kit's") as error:
            load_weights(tmp_path / f"{name}.pt")
        assert "kit export" in error.value.hint


def test_a_broken_card(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/extra/card.json", "{}")
    with pytest.raises(WeightsError, match=r"a\.pt is damaged: field kit_version"):
        load_weights(tmp_path / "a.pt")


def test_an_archive_with_a_card_and_no_module(tiny_weights: Exported, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/extra/card.json", tiny_weights.card.to_json())
    with pytest.raises(WeightsError, match="does not load as TorchScript"):
        load_weights(tmp_path / "a.pt")


def test_a_truncated_file(copied: Path):
    copied.write_bytes(copied.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match="not a weights file"):
        load_weights(copied)


def test_weights_that_do_not_match_the_card_beside(copied: Path):
    beside = copied.with_suffix(".json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"file_sha256": "0" * 64}))
    with pytest.raises(WeightsError, match=r"tiny\.json says 000000000000\.\.\.: not the same export"):
        load_weights(copied)
    beside.write_text("[]")
    with pytest.raises(WeightsError, match=r"tiny\.json is damaged"):
        load_weights(copied)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu(tiny_weights: Exported):
    with pytest.raises(KitError, match="no device cuda"):
        load_weights(tiny_weights.path, "cuda")


@pytest.mark.parametrize("channels", [3, 4])
def test_read_image(tmp_path: Path, channels: int):
    image = noise(20, 33, channels)
    assert np.array_equal(read_image(write_tiff(tmp_path / "a.tif", image)), image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (noise(9, 9, 1), "has 1 band of uint8, expected 3"),
        (noise(9, 9, 5), "has 5 bands of uint8, expected 3"),
        (noise(9, 9).astype(np.uint16), r"bands\.tif has 3 bands of uint16"),
    ],
)
def test_wrong_bands(tmp_path: Path, image: np.ndarray, message: str):
    with pytest.raises(RasterError, match=message):
        read_image(write_tiff(tmp_path / "bands.tif", image))


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("compress", ["jpeg", "deflate", "none"])
def test_a_truncated_tiff(tmp_path: Path, kept: float, compress: str):
    path = write_tiff(
        tmp_path / "cut.tif", noise(200, 200), compress=compress, tiled=True, blockxsize=64, blockysize=64
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(RasterError, match=r"cannot read .*cut\.tif"):
        read_image(path)


def test_a_missing_image(tmp_path: Path):
    with pytest.raises(RasterError, match="no image"):
        read_image(tmp_path / "a.tif")


def test_one_call_predicts(tiny_weights: Exported, monkeypatch: pytest.MonkeyPatch):
    loaded: list[Path] = []

    def loading(path: Path, device: str) -> Weights:
        loaded.append(path)
        return load_weights(path, device)

    monkeypatch.setattr(room, "load_weights", loading)
    monkeypatch.setattr(room, "_LAST", {})
    image = noise(40, 50)
    expected = predict_image(load_weights(tiny_weights.path), image)
    for _ in range(2):
        np.testing.assert_allclose(kit.predict(tiny_weights.path, image, device="cpu"), expected, atol=1e-5)
    np.testing.assert_array_equal(kit.predict(str(tiny_weights.path), image, tuning=False, device="cpu"), expected)
    assert len(loaded) == 2  # tuned, and as shipped
    with pytest.raises(WeightsError, match="no weights"):
        kit.predict("nowhere.pt", image)
    with pytest.raises(AttributeError, match="no attribute 'predikt'"):
        _ = kit.predikt


RGB = noise(20, 30)
RGBA = np.dstack([RGB, np.full((20, 30), 200, np.uint8)])


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (RGB[..., ::-1], RGB[..., ::-1]),  # BGR of OpenCV, turned to RGB: negative strides
        (RGB[::-1, ::2], RGB[::-1, ::2]),
        (np.asfortranarray(RGB), RGB),
        (RGB[..., 0], np.dstack([RGB[..., 0]] * 3)),
        (RGB[..., :1], np.dstack([RGB[..., 0]] * 3)),
        (torch.from_numpy(RGB), RGB),
        (PIL.Image.fromarray(RGB), RGB),
        (PIL.Image.fromarray(RGBA), RGBA),
        (PIL.Image.fromarray(RGB[..., 0]), np.dstack([RGB[..., 0]] * 3)),
        (PIL.Image.fromarray(RGB).convert("P"), np.asarray(PIL.Image.fromarray(RGB).convert("P").convert("RGB"))),
        (PIL.Image.fromarray(RGBA).convert("LA"), np.asarray(PIL.Image.fromarray(RGBA).convert("LA").convert("RGBA"))),
    ],
    ids=["bgr", "flipped", "fortran", "grey", "one-band", "tensor", "pil", "pil-rgba", "pil-grey", "pil-p", "pil-la"],
)
def test_any_image_of_8_bits_is_taken(tiny_weights: Exported, image: object, expected: np.ndarray):
    pixels = as_pixels(image)
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected)
    loaded = kit.load(tiny_weights.path, "cpu")
    probability = kit.predict(loaded, image)
    np.testing.assert_array_equal(probability, predict_image(loaded, pixels))
    np.testing.assert_array_equal(probability, kit.predict(tiny_weights.path, image, tuning=False, device="cpu"))


def test_a_pil_image_is_turned_upright(tmp_path: Path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    PIL.Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(as_pixels(PIL.Image.open(tmp_path / "a.png")), np.rot90(RGB, -1))


@pytest.mark.parametrize(
    ("image", "message", "hint"),
    [
        (RGB.astype(np.float32), r"array of float32 \(20 x 30 x 3\), expected uint8", "8-bit"),
        (RGB[..., 0] > 9, "array of bool", "8-bit"),
        (np.zeros((9, 9, 5), np.uint8), r"array of 9 x 9 x 5, expected \(H, W\)", "8-bit"),
        (RGB.transpose(2, 0, 1), r"array of 3 x 20 x 30, expected", r"transpose\(1, 2, 0\)"),
        (np.zeros((0, 9, 3), np.uint8), "array of 0 x 9 x 3", "8-bit"),
        (np.zeros((1, 9, 9, 3), np.uint8), "array of 1 x 9 x 9 x 3", "8-bit"),
        (PIL.Image.new("I;16", (9, 9)), "mode I;16, which is not 8 bits", "8-bit"),
        ("chip.tif", "the image is a str, not pixels", "8-bit"),
        ([[1, 2], [3]], "a list, is not an array", "8-bit"),
    ],
    ids=["float", "bool", "five-bands", "bands-first", "empty", "four-dimensions", "16-bit", "path", "ragged-list"],
)
def test_other_images_are_refused(tiny_weights: Exported, image: object, message: str, hint: str):
    with pytest.raises(DataError, match=message) as caught:
        kit.predict(tiny_weights.path, image)
    assert re.search(hint, caught.value.hint)


def test_a_pil_image_that_is_cut_short(tmp_path: Path):
    PIL.Image.fromarray(noise(64, 64)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    with pytest.raises(DataError, match="cannot be decoded"):
        as_pixels(PIL.Image.open(tmp_path / "a.jpg"))


def test_what_is_public():
    assert sorted(kit.__all__) == ["KitError", "__version__", "load", "predict"]
    for name in kit.__all__:
        assert name == "__version__" or getattr(kit, name).__doc__
