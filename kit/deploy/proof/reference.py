"""What the trained networks gave on drawn images: kept inside the weights, so that one file proves itself anywhere.

The images are drawn again where the file is verified; what is kept of each is the mask, whole, and some probabilities.
"""

import base64
import hashlib
import json
import platform
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kit import __version__
from kit.console import track
from kit.deploy.proof.images import Case, some_of
from kit.deploy.proof.parity import Parity, eager_members, eager_probability
from kit.deploy.trust.zip_records import read_extra
from kit.errors import WeightsError

REFERENCE = "parity.json"  # inside the weights
SAMPLED = 4096  # probabilities kept of an image: 16 KiB, all of one of 64 x 64 px
UNDECIDED = 1e-5  # nearer to one half, the mask may turn on another machine: not compared
HEAD = ("kit_version", "torch_version", "cpu", "threads")
LARGEST_PX = 4096  # side of an image that a file may ask for


@dataclass(frozen=True)
class Expected:
    """What is kept of one image.

    Args:
        case: the image.
        image_sha256: of its bytes (H, W, C), in hex.
        mask: bool (H, W), where the probability was above one half.
        undecided: bool (H, W), where it was within `UNDECIDED` of one half.
        sampled: float32, the probabilities at `some_of` the pixels.
    """

    case: Case
    image_sha256: str
    mask: NDArray[np.bool_]
    undecided: NDArray[np.bool_]
    sampled: NDArray[np.float32]

    @classmethod
    def of(cls, case: Case, image: NDArray[np.uint8], probability: NDArray[np.float32]) -> "Expected":
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
            WeightsError: it is not the one that the networks saw.
        """
        image = self.case.image()
        if hashlib.sha256(image.tobytes()).hexdigest() != self.image_sha256:
            raise WeightsError(
                f"the image {self.case} is drawn otherwise than when the weights were exported",
                f"verify with the kit that exported them; this is {__version__}",
            )
        return image

    def compared(self, probability: NDArray[np.float32]) -> Parity:
        """Returns how a probability, float32 (H, W), compares."""
        if probability.shape != self.mask.shape:
            raise WeightsError(f"a probability of {probability.shape} pixels for the image {self.case}")
        differences = np.abs(probability.ravel()[some_of(probability.size, SAMPLED)] - self.sampled)
        largest = float(differences.max()) if np.isfinite(probability).all() else float("nan")
        equal = ((probability > 0.5) == self.mask) & ~self.undecided
        return Parity(largest, int(equal.sum()), int((~self.undecided).sum()))

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON: arrays as base64 of float32 (little endian) and of packed bits, compressed."""
        return asdict(self.case) | {
            "image_sha256": self.image_sha256, "mask": _bits_to_text(self.mask),
            "undecided": _bits_to_text(self.undecided), "sampled": _floats_to_text(self.sampled),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "Expected":
        """Returns what `to_dict` gave; ValueError, KeyError or TypeError where it cannot have."""
        case = Case(**{key: found[key] for key in ("height_px", "width_px", "channels", "core")})
        if not (0 < case.height_px <= LARGEST_PX and 0 < case.width_px <= LARGEST_PX and case.channels in (3, 4)):
            raise ValueError(f"no image {case}")
        shape = case.height_px, case.width_px
        mask, undecided = (_text_to_bits(found[key], shape) for key in ("mask", "undecided"))
        sampled = _text_to_floats(found["sampled"], (len(some_of(mask.size, SAMPLED)),))
        return cls(case, found["image_sha256"], mask, undecided, sampled)


@dataclass(frozen=True)
class Reference:
    """What the networks gave, and where.

    Args:
        kit_version: of the kit that exported.
        torch_version: that ran the networks.
        cpu: that ran them.
        threads: that torch used.
        votes: float32 (M, H, W), each network's on the first image.
        expected: one an image.
    """

    kit_version: str
    torch_version: str
    cpu: str
    threads: int
    votes: NDArray[np.float32]
    expected: tuple[Expected, ...]

    def to_json(self) -> str:
        """Returns the reference as JSON text."""
        head = {key: getattr(self, key) for key in HEAD}
        votes = {"members": len(self.votes), "votes": _floats_to_text(self.votes)}
        return json.dumps(head | votes | {"images": [one.to_dict() for one in self.expected]}) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "Reference":
        """Returns the reference in JSON text.

        Args:
            text: the JSON.
            source: where the text was found, for the error.

        Raises:
            WeightsError: it is damaged.
        """
        try:
            found = json.loads(text)
            expected = tuple(Expected.from_dict(one) for one in found["images"])
            first = expected[0].case
            votes = _text_to_floats(found["votes"], (found["members"], first.height_px, first.width_px))
            head = {key: found[key] for key in HEAD}
        except (ValueError, KeyError, TypeError, IndexError, zlib.error) as cause:
            raise WeightsError(
                f"{REFERENCE} in {source} is damaged: {type(cause).__name__} {cause}", "export or fetch it again"
            ) from cause
        return cls(**head, votes=votes, expected=expected)


def make_reference(members: Sequence[nn.Module], views: str, pad_multiple: int, cases: Sequence[Case]) -> Reference:
    """Returns what networks give on drawn images.

    Args:
        members: networks in eval mode on the CPU.
        views: `none`, `flips` or `d4`.
        pad_multiple: px.
        cases: the images; the first, a small one, runs twice: its votes are kept by network.
    """
    expected = []
    for case in track(cases, "networks on drawn images"):
        image = case.image()
        asked = (members[:1], image, "none") if case.core else (members, image, views)
        expected.append(Expected.of(case, image, eager_probability(*asked, pad_multiple)))
    votes = eager_members(members, cases[0].image(), views, pad_multiple)
    torch_version = str(torch.__version__)
    return Reference(__version__, torch_version, _cpu(), torch.get_num_threads(), votes, tuple(expected))


def read_reference(path: Path) -> Reference | None:
    """Returns the reference inside a weights file; None in a file of an older kit.

    Raises:
        WeightsError: it is damaged.
    """
    text = read_extra(path, REFERENCE)
    return None if text is None else Reference.from_json(text, str(path))


def _cpu() -> str:
    """Returns the name of this machine's processor and what torch uses of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


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
