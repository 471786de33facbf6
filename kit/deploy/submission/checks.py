"""A submission looked over, check by check: names, form, sizes, buildings, and how it differs from an earlier one."""

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.data.masks import Counts, count, pool
from kit.data.rasters import image_size
from kit.data.sources.chips import Chip
from kit.deploy.mosaics.mosaic import RESOLUTIONS
from kit.deploy.submission.archive import Member, members
from kit.deploy.submission.mask_tiff import opened_mask
from kit.deploy.submission.rle import TABLE, decode, read_rle
from kit.errors import RasterError, SubmissionError

LISTED = 10  # faults shown in one error
DIFFERING = 10  # chips listed that differ most from an earlier submission
FAR = 3.0  # times the share of building in training, or its part, that is worth a word
LARGEST_PX = 2**28  # of a mask, 16,384 x 16,384 px: a file of a few bytes may claim any size
OWN = ("submission.csv", TABLE, RESOLUTIONS)  # what kit writes beside the masks into a folder; hidden files aside
FORM = {  # of each mask: check, and what is said where nothing is wrong
    "readable": "{n} masks", "bands": "one each", "type": "uint8", "values": "0 and 1", "sizes": "",
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: of it.
        said: what was found.
        faults: what is wrong.
        warning: what may be wrong; empty when nothing is.
    """

    name: str
    said: str
    faults: tuple[str, ...] = ()
    warning: str = ""

    @property
    def mark(self) -> str:
        """`ok`, `warning` or `wrong`."""
        return "wrong" if self.faults else "warning" if self.warning else "ok"

    def cells(self) -> tuple[str, str, str]:
        """Returns a table row, see COLUMNS."""
        if not self.faults:
            return self.name, self.mark, "; ".join(filter(None, (self.said, self.warning)))
        more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
        return self.name, self.mark, self.faults[0] + more


@dataclass(frozen=True)
class Difference:
    """How a chip's mask differs from that of an earlier submission.

    Args:
        chip: its id.
        jaccard: of building in both, 0..1; 1 where neither has any.
        equal: the share of equal pixels, 0..1.
    """

    chip: str
    jaccard: float
    equal: float

    def cells(self) -> tuple[str, float, str]:
        """Returns a table row, see DIFFERENCE_COLUMNS."""
        return self.chip, self.jaccard, f"{self.equal:.2%}"


COLUMNS = ("check", "mark", "found")
DIFFERENCE_COLUMNS = ("chip", "jaccard", "equal")


@dataclass(frozen=True)
class Summary:
    """A submission that was checked.

    Args:
        path: the archive or folder.
        chips: how many.
        building_fraction: of all pixels, 0..1.
        empty: chips without a building pixel.
    """

    path: Path
    chips: int
    building_fraction: float
    empty: int


@dataclass(frozen=True)
class Checked:
    """What was found about a submission.

    Args:
        summary: of the masks that can be read.
        checks: what was looked at.
        differing: the chips that differ most from the earlier submission, the worst first.
    """

    summary: Summary
    checks: tuple[Check, ...]
    differing: tuple[Difference, ...] = ()

    def faults(self) -> list[str]:
        """Returns what is wrong."""
        return [fault for check in self.checks for fault in check.faults]

    def to_json(self) -> str:
        """Returns all of it as JSON text."""
        found = {
            "submission": str(self.summary.path), "chips": self.summary.chips, "valid": not self.faults(),
            "building_fraction": self.summary.building_fraction, "empty": self.summary.empty,
            "checks": [{"mark": check.mark, **asdict(check)} for check in self.checks],
            "differing": [asdict(one) for one in self.differing],
        }  # fmt: skip
        return json.dumps(found, indent=1)

    def require(self) -> Summary:
        """Returns the summary where nothing is wrong.

        Raises:
            SubmissionError: lists what is.
        """
        if faults := self.faults():
            more = [f"and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
            raise SubmissionError(
                f"{self.summary.path} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n  "
                + "\n  ".join(faults[:LISTED] + more),
                "write it again: kit submit",
            )
        return self.summary


@dataclass(frozen=True)
class Mask:
    """One mask as it was found.

    Args:
        name: of the chip, for faults that of the file.
        faults: what is wrong, by check, see FORM.
        size: height and width, px; (0, 0) where unreadable.
        building_px: where nothing is wrong.
        packed: the mask for a later comparison, see `_packed`.
    """

    name: str
    faults: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    building_px: int = 0
    packed: bytes = b""


@dataclass(frozen=True)
class Contents:
    """What lies in a submission.

    Args:
        path: of it.
        names: of the chips that have masks, as often as they stand there.
        strays: what should not lie there, in words.
        masks: of the chips in question.
        suffix: of the masks' names.
        form: the checks that apply to such masks.
    """

    path: Path
    names: tuple[str, ...]
    strays: tuple[str, ...]
    masks: tuple[Mask, ...]
    suffix: str = ".tif"
    form: tuple[str, ...] = ("flat", *FORM)

    def sound(self) -> dict[str, Mask]:
        """Returns the masks in which nothing is wrong, by chip."""
        return {mask.name: mask for mask in self.masks if not mask.faults}


def check_submission(path: Path, chips: Sequence[Chip]) -> Summary:
    """Returns a summary of a submission in which nothing is wrong; it may be of chips without a building.

    Args:
        path: a folder, an archive or a table of run lengths.
        chips: the test set.

    Raises:
        SubmissionError: lists what is wrong, see `check`.
        RasterError: a chip of the test set is missing or broken.
    """
    found = check(path, chips)
    return replace(found, checks=tuple(check for check in found.checks if check.name != "empty")).require()


def check(
    path: Path,
    chips: Sequence[Chip] | None = None,
    earlier: Path | None = None,
    share: tuple[float, str] | None = None,
) -> Checked:
    """Returns what was found about a submission: chips missing, doubled or unknown, strays, masks of a wrong form.

    Args:
        path: a folder, an archive, or a table of run lengths, which needs the test set.
        chips: the test set; without it names and sizes are held against each other.
        earlier: another submission for the same chips, to compare with.
        share: of building in training, 0..1, and where it was counted.

    Raises:
        SubmissionError: one of the submissions is missing, no archive, or made to harm.
        RasterError: a chip of the test set is missing or broken.
    """
    images = None if chips is None else {chip.id: chip.path for chip in chips}
    found = _contents(path, images, earlier is not None)
    sound = found.sound()
    building, pixels = (sum(values) for values in zip(*map(_pixels, sound.values()), strict=True)) if sound else (0, 0)
    summary = Summary(path, len(sound), building / max(pixels, 1), sum(not mask.building_px for mask in sound.values()))
    form = [_check_form(name, found, images) for name in found.form]
    checks = [_check_names(found, images), *form, _check_share(summary, share), _check_empty(summary)]
    if earlier is None:
        return Checked(summary, tuple(checks))
    agreed, differing = _check_earlier(found, _contents(earlier, images, True))
    return Checked(summary, (*checks, agreed), differing)


def _pixels(mask: Mask) -> tuple[int, int]:
    return mask.building_px, mask.size[0] * mask.size[1]


def _contents(path: Path, images: Mapping[str, Path] | None, keep: bool) -> Contents:
    """Returns what lies in a folder, an archive or a table of run lengths.

    Args:
        path: of it.
        images: of the test set, by chip.
        keep: keeps the masks, packed.
    """
    if path.suffix.lower() == ".csv" and not path.is_dir():
        return _table(path, images, keep)
    names: list[str] = []
    strays: list[str] = []
    masks: list[Mask] = []
    for member in members(path):
        if path.is_dir() and not member.folder and (member.name.startswith(".") or member.name in OWN):
            continue  # of a submission that is under way
        if stray := _stray(member):
            strays.append(stray)
            continue
        name = member.name.removesuffix(".tif")
        names.append(name)
        if images is None or name in images:
            size = image_size(images[name]) if images else None
            masks.append(_read_mask(member.read(), name, size, keep))
    return Contents(path, tuple(names), tuple(strays), tuple(masks))


def _table(path: Path, images: Mapping[str, Path] | None, keep: bool) -> Contents:
    """Returns the masks of a table of run lengths, see `_contents`."""
    if images is None:
        raise SubmissionError(f"{path} tells no sizes: run lengths need a test set", "give it with --test")
    names: list[str] = []
    masks: list[Mask] = []
    for name, runs in read_rle(path):
        names.append(name)
        if name not in images:
            continue
        size = image_size(images[name])
        try:
            mask = decode(runs, size)
        except SubmissionError as cause:
            masks.append(Mask(name, {"readable": f"{name} has {cause.message}"}, size))
            continue
        masks.append(Mask(name, {}, size, int(mask.sum()), _packed(mask) if keep else b""))
    return Contents(path, tuple(names), (), tuple(masks), "", ("readable",))


def _stray(member: Member) -> str:
    """Returns why something should not lie in a submission; empty for a mask."""
    name = PurePosixPath(member.name.replace("\\", "/"))
    if member.folder:
        return f"{member.name.rstrip('/')} is a folder"
    if name.name != member.name:
        return f"{member.name} lies in a folder"
    if member.link:
        return f"{member.name} is a link"
    if name.name.startswith(".") or name.suffix != ".tif":
        return f"{member.name} is no <chip>.tif"
    return ""


def _read_mask(data: bytes, name: str, expected: tuple[int, int] | None, keep: bool) -> Mask:
    """Returns what a mask's file holds.

    Args:
        data: the file.
        name: of the chip.
        expected: height and width, px; None for any.
        keep: keeps it, packed.
    """
    file = f"{name}.tif"
    faults: dict[str, str] = {}
    try:
        with opened_mask(data, file) as dataset:
            size = height, width = int(dataset.height), int(dataset.width)
            dtype = sorted(set(dataset.dtypes))
            if dataset.count != 1:
                faults["bands"] = f"{file} has {dataset.count} bands, expected 1"
            if dtype != ["uint8"]:
                faults["type"] = f"{file} is {', '.join(dtype)}, expected uint8"
            if expected and size != expected:
                faults["sizes"] = f"{file} is {width} x {height} px, its chip {expected[1]} x {expected[0]}"
            elif height * width > LARGEST_PX:
                faults["sizes"] = f"{file} claims {width} x {height} px: more than a mask needs"
            if faults:
                return Mask(name, faults, size)
            band: NDArray[Any] = dataset.read(1)
    except RasterError as cause:
        return Mask(name, {"readable": cause.message})
    if band.max() > 1:
        return Mask(name, {"values": f"{file} holds the value {band.max()}, expected 0 and 1"}, size)
    return Mask(name, {}, size, int(band.sum()), _packed(band) if keep else b"")


def _packed(mask: NDArray[np.uint8]) -> bytes:
    """Returns a mask (H, W) of 0 and 1 in some KiB: thousands are held for a comparison."""
    return zlib.compress(np.packbits(mask).tobytes(), 1)


def _unpacked(mask: Mask) -> NDArray[np.bool_]:
    """Returns what was packed, (H, W)."""
    bits = np.frombuffer(zlib.decompress(mask.packed), np.uint8)
    return np.unpackbits(bits, count=mask.size[0] * mask.size[1]).reshape(mask.size).astype(bool)


def _check_names(found: Contents, images: Mapping[str, Path] | None) -> Check:
    counts, end = Counter(found.names), found.suffix
    twice = [f"{name}{end} stands there {times} times" for name, times in counts.items() if times > 1]
    if images is None:
        none = [] if counts else [f"{found.path.name} holds no mask"]
        return Check("names", f"{len(counts)}, each once; no test set to compare with", (*none, *twice))
    missing = [f"{name}{end} is missing" for name in images if name not in counts]
    unknown = [f"{name}{end} is not <chip>{end} of the test set" for name in counts if name not in images]
    return Check("names", f"{len(counts)} chips, each once", (*missing, *twice, *unknown))


def _check_form(name: str, found: Contents, images: Mapping[str, Path] | None) -> Check:
    """Returns the check for strays, or one of the checks of FORM over all masks."""
    if name == "flat":
        return Check(name, "files alone", found.strays)
    faults = tuple(mask.faults[name] for mask in found.masks if name in mask.faults)
    if name != "sizes":
        return Check(name, FORM[name].format(n=len(found.masks)), faults)
    sizes = Counter(mask.size for mask in found.masks if mask.size != (0, 0))
    told = ", ".join(f"{n} of {width} x {height} px" for (height, width), n in sizes.most_common(3))
    more = f", and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
    return Check(name, f"{told}{more}{', as their chips' if images and told else ''}", faults)


def _check_share(summary: Summary, share: tuple[float, str] | None) -> Check:
    """Compares the share of building with that of the training data."""
    said = f"{summary.building_fraction:.1%} of the pixels"
    if share is None:
        return Check("buildings", f"{said}; no training data here to compare with")
    expected, source = share
    said += f"; {expected:.1%} in training ({source})"
    if summary.chips and not expected / FAR <= summary.building_fraction <= expected * FAR:
        side = "less than a third of" if summary.building_fraction < expected else f"more than {FAR:.0f} times"
        return Check("buildings", said, warning=f"{side} the share in training")
    return Check("buildings", said)


def _check_empty(summary: Summary) -> Check:
    said = f"{summary.empty} of {summary.chips} without a building"
    all_empty = summary.chips > 0 and summary.empty == summary.chips
    return Check("empty", said, ("every mask is empty",) if all_empty else ())


def _check_earlier(found: Contents, earlier: Contents) -> tuple[Check, tuple[Difference, ...]]:
    """Compares two submissions on the chips that both have."""
    new, old = found.sound(), earlier.sound()
    common = sorted(new.keys() & old.keys())
    same = [name for name in common if new[name].size == old[name].size]
    apart = []
    if len(same) < len(common):
        apart.append(f"{len(common) - len(same)} chips have other sizes there")
    for only, where in ((new.keys() - old.keys(), "here"), (old.keys() - new.keys(), "there")):
        if only:
            apart.append(f"{len(only)} chips only {where}, first {min(only)}")
    if not same:
        return Check("earlier", f"nothing in common with {earlier.path.name}", warning="; ".join(apart)), ()
    rows = list(_differences(new, old, same))
    counts, pixels = pool(c for _, c, _ in rows), sum(px for *_, px in rows)
    said = (
        f"Jaccard {counts.jaccard:.4f}, {1 - (counts.fp + counts.fn) / pixels:.2%} of the pixels equal, "
        f"{len(same)} chips in {earlier.path.name}"
    )
    differing = [Difference(name, c.jaccard, 1 - (c.fp + c.fn) / px) for name, c, px in rows if c.fp + c.fn]
    differing.sort(key=lambda one: (one.equal, one.chip))
    return Check("earlier", said, warning="; ".join(apart)), tuple(differing[:DIFFERING])


def _differences(
    new: Mapping[str, Mask], old: Mapping[str, Mask], names: Iterable[str]
) -> Iterator[tuple[str, Counts, int]]:
    """Yields chip, how its mask compares with the earlier one, and its pixels."""
    for name in names:
        mask = _unpacked(new[name])
        yield name, count(mask, _unpacked(old[name]).astype(np.uint8)), mask.size
