import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from deploy_fakes import ODD, TinyNet

from kit.deploy.proof.images import CASES, Case
from kit.deploy.proof.reference import Answer, Reference, make_reference, read_reference
from kit.errors import WeightsError
from kit.pipeline.export import Exported


@pytest.fixture(scope="module")
def reference() -> Reference:
    return make_reference([TinyNet(1).eval(), TinyNet(2).eval()], "flips", 16, ODD)


def expected(probability: np.ndarray) -> Answer:
    case = Case(*probability.shape)
    return Answer.of(case, case.image(), probability.astype(np.float32))


def test_it_survives_json(reference: Reference):
    text = reference.to_json()
    again = Reference.from_json(text, "here")
    assert again.to_json() == text
    for one, other in zip(reference.answers, again.answers, strict=True):
        assert one.case == other.case
        for name in ("mask", "undecided", "sampled"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
            assert getattr(one, name).dtype == getattr(other, name).dtype
    assert np.array_equal(reference.votes, again.votes)
    assert reference.votes.shape == (2, 33, 33)
    assert (reference.threads, reference.cpu) == (again.threads, again.cpu)


def test_it_lies_in_the_weights(tiny_weights: Exported):
    found = read_reference(tiny_weights.path)
    assert found
    assert [one.case for one in found.answers] == list(ODD)


def test_it_is_small():
    """Even of noise, which cannot be compressed: below 1.3 MB; masks of houses take a tenth."""
    found = []
    for case in CASES:
        chances = np.random.default_rng(0).random((case.height_px, case.width_px), np.float32)
        found.append(Answer.of(case, case.image(), chances))
    votes = np.zeros((5, 33, 33), np.float32)
    assert len(Reference("1", "2", "cpu", 1, votes, tuple(found)).to_json()) < 1.3e6


def test_alpha_counts(reference: Reference):
    one = reference.answers[2]
    assert not one.mask[one.image()[..., 3] == 0].any()


def test_equal_probabilities_compare_as_equal():
    probability = np.linspace(0, 1, 33 * 64, dtype=np.float32).reshape(33, 64)
    parity = expected(probability).compared(probability)
    assert (parity.max_abs, parity.equal_px, parity.pixels) == (0, 33 * 64, 33 * 64)


def test_differences_are_found():
    probability = np.full((33, 64), 0.25, np.float32)
    other = probability.copy()
    other[3, 5] += 0.5
    parity = expected(probability).compared(other)
    assert parity.max_abs == 0.5
    assert parity.equal_px == parity.pixels - 1


def test_a_mask_is_compared_where_no_probability_is_kept():
    probability = np.full((512, 512), 0.25, np.float32)
    other = probability.copy()
    other[7] = 0.75
    assert expected(probability).compared(other).equal_masks == 511 / 512


def test_pixels_at_one_half_are_not_compared():
    probability = np.full((33, 64), 0.5, np.float32)
    probability[0] = 0.9
    other = np.where(probability == 0.5, np.float32(0.5 + 1e-6), probability)
    parity = expected(probability).compared(other)
    assert (parity.equal_px, parity.pixels) == (64, 64)


@pytest.mark.parametrize("side", [33, 512])
def test_nan_anywhere_fails(side: int):
    probability = np.full((side, side), 0.25, np.float32)
    other = probability.copy()
    other[-1, 0] = np.nan
    assert expected(probability).compared(other).fault()


def test_another_size_is_refused():
    with pytest.raises(WeightsError, match=r"\(32, 33\)"):
        expected(np.zeros((33, 33))).compared(np.zeros((32, 33), np.float32))


def test_another_image_is_refused(reference: Reference):
    with pytest.raises(WeightsError, match="33 x 33 RGB differs from that of the export") as error:
        replace(reference.answers[0], image_sha256="0" * 64).image()
    assert "the version of kit that exported" in error.value.hint


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("votes"), "field votes: Field required"),
        (lambda found: found.update(images=[]), "field images: .*at least 1 item"),
        (lambda found: found.update(images=None), "field images: .*, not None"),
        (lambda found: found.update(members=3), "reshape"),
        (lambda found: found["images"][0].update(mask="AAAA"), "Error -3 while decompressing"),
        (lambda found: found["images"][0].update(mask=packed(b"ab")), "2 bytes of a mask of 1089 pixels"),
        (lambda found: found["images"][0].update(mask=packed(bytes(10**6))), "bytes of a mask"),
        (lambda found: found["images"][1].update(sampled=found["images"][1]["sampled"][:-8]), "reshape"),
        (lambda found: found["images"][0].update(height_px=10**9), "field images.0.height_px: .*, not 1000000000"),
        (lambda found: found["images"][0].update(height_px="33"), "field images.0.height_px: .*, not '33'"),
        (lambda found: found["images"][0].update(channels=2), "field images.0.channels: .*, not 2"),
        (lambda found: found.update(cpu="\x1b[2J"), "field cpu"),
    ],
)
def test_a_damaged_reference_is_refused(reference: Reference, change, message: str):
    found = json.loads(reference.to_json())
    change(found)
    with pytest.raises(WeightsError, match=rf"parity\.json in w\.pt is damaged: .*{message}"):
        Reference.from_json(json.dumps(found), "w.pt")


def test_a_truncated_reference_is_refused(reference: Reference):
    with pytest.raises(WeightsError, match=r"parity\.json in w\.pt is not valid JSON"):
        Reference.from_json(reference.to_json()[:-900], "w.pt")
    with pytest.raises(WeightsError, match="damaged"):
        Reference.from_json("[]", "w.pt")
