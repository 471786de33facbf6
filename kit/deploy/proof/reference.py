"""Predictions of the trained networks on test images, stored in the weights file, so that it can be verified anywhere.

The images are drawn again for verification. The mask and some probabilities of each prediction are stored.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from kit import __version__
from kit.console import track
from kit.deploy.proof.images import Case, some_of
from kit.deploy.proof.parity import Parity, eager_members, eager_probability
from kit.deploy.trust.zip_records import read_extra
from kit.deploy.weights.card import Text
from kit.errors import WeightsError
from kit.system.devices import processor_name
from kit.system.files import parse_json

REFERENCE = "parity.json"  # inside the weights
SAMPLED = 4096  # probabilities kept of an image: 16 KiB, all of one of 64 x 64 px
UNDECIDED = 1e-5  # nearer to one half, the mask may differ on another machine: not compared
HEAD = ("kit_version", "torch_version", "cpu", "threads")
HINT = "export or fetch it again"

Side = Annotated[int, Field(ge=1, le=4096)]


@dataclass(frozen=True)
class StoredAnswer:
    """`Answer` in JSON: arrays as base64 of float32 (little endian) and of packed bits, compressed."""

    height_px: Side
    width_px: Side
    channels: Annotated[int, Field(ge=3, le=4)]
    core: bool
    image_sha256: str
    mask: str
    undecided: str
    sampled: str


@dataclass(frozen=True)
class StoredReference:
    """`Reference` in JSON."""

    kit_version: Text
    torch_version: Text
    cpu: Text
    threads: int
    members: Annotated[int, Field(ge=1, le=1000)]
    votes: str
    images: Annotated[tuple[StoredAnswer, ...], Field(min_length=1, max_length=32)]


@dataclass(frozen=True)
class Answer:
    """The networks' answer on one image."""

    case: Case  # the image
    image_sha256: str  # of its bytes (H, W, C), in hex
    mask: NDArray[np.bool_]  # bool (H, W), where the probability was above one half
    undecided: NDArray[np.bool_]  # bool (H, W), where it was within `UNDECIDED` of one half
    sampled: NDArray[np.float32]  # float32, the probabilities at `some_of` the pixels

    @classmethod
    def of(cls, case: Case, image: NDArray[np.uint8], probability: NDArray[np.float32]) -> "Answer":
        """Returns what is kept of a probability, float32 (H, W)."""
        near = np.abs(probability - 0.5) <= UNDECIDED
        sampled = probability.ravel()[some_of(probability.size, SAMPLED)]
        return cls(case, hashlib.sha256(image.tobytes()).hexdigest(), probability > 0.5, near, sampled)

    @property
    def building(self) -> float:
        """The share of building in the mask, 0..1."""
        return float(self.mask.mean())

    def image(self) -> NDArray[np.uint8]:
        """Returns the image, uint8 (H, W, C).

        Raises:
            WeightsError: this kit draws another image than the one that the networks predicted.
        """
        image = self.case.image()
        if hashlib.sha256(image.tobytes()).hexdigest() != self.image_sha256:
            raise WeightsError(
                f"the test image {self.case} differs from that of the export",
                f"verify with the version of kit that exported the weights; this is {__version__}",
            )
        return image

    def compared(self, probability: NDArray[np.float32]) -> Parity:
        """Returns how a probability, float32 (H, W), compares."""
        if probability.shape != self.mask.shape:
            raise WeightsError(f"a probability of {probability.shape} pixels for the image {self.case}", HINT)
        differences = np.abs(probability.ravel()[some_of(probability.size, SAMPLED)] - self.sampled)
        largest = float(differences.max()) if np.isfinite(probability).all() else float("nan")
        equal = ((probability > 0.5) == self.mask) & ~self.undecided
        return Parity(largest, int(equal.sum()), int((~self.undecided).sum()))

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields of `StoredAnswer`."""
        return asdict(self.case) | {
            "image_sha256": self.image_sha256, "mask": _bits_to_text(self.mask),
            "undecided": _bits_to_text(self.undecided), "sampled": _floats_to_text(self.sampled),
        }  # fmt: skip

    @classmethod
    def from_stored(cls, stored: StoredAnswer) -> "Answer":
        """Returns what `to_dict` wrote; ValueError or zlib.error where it cannot have."""
        shape = stored.height_px, stored.width_px
        case = Case(*shape, stored.channels, stored.core)
        mask, undecided = (_text_to_bits(text, shape) for text in (stored.mask, stored.undecided))
        sampled = _text_to_floats(stored.sampled, (len(some_of(mask.size, SAMPLED)),))
        return cls(case, stored.image_sha256, mask, undecided, sampled)


@dataclass(frozen=True)
class Reference:
    """The networks' answers, and the machine that computed them."""

    kit_version: str  # of the kit that exported
    torch_version: str  # that ran the networks
    cpu: str  # that ran them
    threads: int  # that torch used
    votes: NDArray[np.float32]  # float32 (M, H, W), each network's probability on the first image
    answers: tuple[Answer, ...]  # one an image

    def to_json(self) -> str:
        """Returns the reference as JSON text, see `StoredReference`."""
        head = {key: getattr(self, key) for key in HEAD}
        votes = {"members": len(self.votes), "votes": _floats_to_text(self.votes)}
        return json.dumps(head | votes | {"images": [answer.to_dict() for answer in self.answers]}) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "Reference":
        """Returns the reference in JSON text.

        Args:
            text: the JSON.
            source: where the text was read, for the error.

        Raises:
            WeightsError: it is damaged.
        """
        stored = parse_json(text, StoredReference, f"{REFERENCE} in {source}", WeightsError, HINT)
        try:
            answers = tuple(Answer.from_stored(each) for each in stored.images)
            first = answers[0].case
            votes = _text_to_floats(stored.votes, (stored.members, first.height_px, first.width_px))
        except (ValueError, zlib.error) as cause:
            raise WeightsError(f"{REFERENCE} in {source} is damaged: {cause}", HINT) from cause
        return cls(**{key: getattr(stored, key) for key in HEAD}, votes=votes, answers=answers)


def make_reference(
    networks: Sequence[nn.Module], views: str, pad_multiple: int, cases: Sequence[Case], weights: Sequence[float] = ()
) -> Reference:
    """Returns the answers of networks on drawn images.

    Args:
        networks: in eval mode on the CPU.
        views: `none`, `flips` or `d4`.
        pad_multiple: px.
        cases: the images; the first, a small one, runs twice: its votes are kept by network.
        weights: of the networks' votes, see `mean_vote`.
    """
    answers = []
    for case in track(cases, "networks on test images"):
        image = case.image()
        job = (networks[:1], image, "none", ()) if case.core else (networks, image, views, weights)
        some, pixels, turned, by_weight = job
        answers.append(Answer.of(case, image, eager_probability(some, pixels, turned, pad_multiple, by_weight)))
    votes = eager_members(networks, cases[0].image(), views, pad_multiple)
    cpu = processor_name(torch.device("cpu"))
    return Reference(__version__, str(torch.__version__), cpu, torch.get_num_threads(), votes, tuple(answers))


def read_reference(path: Path) -> Reference | None:
    """Returns the reference in a weights file; None if an older version exported it.

    Raises:
        WeightsError: it is damaged.
    """
    text = read_extra(path, REFERENCE)
    return None if text is None else Reference.from_json(text, str(path))


def _bits_to_text(bits: NDArray[np.bool_]) -> str:
    return base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode()


def _text_to_bits(text: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    size = shape[0] * shape[1]
    packed = zlib.decompressobj().decompress(base64.b64decode(text), size // 8 + 2)  # no more, whatever it claims
    if len(packed) != -(-size // 8):
        raise ValueError(f"{len(packed)} bytes of a mask of {size} pixels")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=size).astype(bool).reshape(shape)


def _floats_to_text(values: NDArray[np.float32]) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _text_to_floats(text: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32).reshape(shape)
