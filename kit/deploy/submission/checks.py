"""The ten checks of a submission: names, form, sizes, share of building, and the difference from an earlier one."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from kit.data.masks import Counts, count, pool
from kit.data.sources.chips import Chip
from kit.deploy.submission.inspect_masks import FORM, Contents, ImageSizes, InspectedMask, Sizes, read_contents
from kit.errors import SubmissionError

LISTED = 10  # faults in one error message
DIFFERING = 10  # chips listed that differ most from an earlier submission
FAR = 3.0  # ratio of the share of building to that of training, or its inverse, from which there is a warning


@dataclass(frozen=True)
class SubmissionCheck:
    """The result of one check."""

    name: str  # of the check
    result: str  # what it says, in words
    faults: tuple[str, ...] = ()  # what is wrong
    warning: str = ""  # what may be wrong; empty for nothing

    @property
    def mark(self) -> str:
        """`ok`, `warning` or `wrong`."""
        return "wrong" if self.faults else "warning" if self.warning else "ok"

    def cells(self) -> tuple[str, str, str]:
        """Returns a table row, see COLUMNS."""
        if not self.faults:
            return self.name, self.mark, "; ".join(filter(None, (self.result, self.warning)))
        more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
        return self.name, self.mark, self.faults[0] + more


@dataclass(frozen=True)
class MaskDifference:
    """How a chip's mask differs from the mask in an earlier submission."""

    chip: str  # its id
    jaccard: float  # index of building between both, 0..1; 1 where neither has any
    equal: float  # share of equal pixels, 0..1

    def cells(self) -> tuple[str, float, str]:
        """Returns a table row, see DIFFERENCE_COLUMNS."""
        return self.chip, self.jaccard, f"{self.equal:.2%}"


COLUMNS = ("check", "mark", "result")
DIFFERENCE_COLUMNS = ("chip", "jaccard", "equal")


@dataclass(frozen=True)
class Summary:
    """A submission in numbers."""

    path: Path  # the archive or folder
    chips: int  # how many masks it has
    building_fraction: float  # of all pixels, 0..1
    empty: int  # chips without a building pixel


@dataclass(frozen=True)
class CheckedSubmission:
    """The results of all checks."""

    summary: Summary  # of the masks without faults
    checks: tuple[SubmissionCheck, ...]  # in the order of the documentation
    # the chips that differ most from the earlier submission, the worst first
    differing: tuple[MaskDifference, ...] = ()

    def faults(self) -> list[str]:
        """Returns what is wrong."""
        return [fault for check in self.checks for fault in check.faults]

    def to_json(self) -> str:
        """Returns all results as JSON text."""
        checks = [
            {"mark": check.mark, "name": check.name, "result": check.result, "said": check.result,  # its former name
             "faults": check.faults, "warning": check.warning}
            for check in self.checks
        ]  # fmt: skip
        record = {
            "submission": str(self.summary.path), "chips": self.summary.chips, "valid": not self.faults(),
            "building_fraction": self.summary.building_fraction, "empty": self.summary.empty,
            "checks": checks, "differing": [asdict(difference) for difference in self.differing],
        }  # fmt: skip
        return json.dumps(record, indent=1)

    def require(self) -> Summary:
        """Returns the summary of a submission without faults.

        Raises:
            SubmissionError: it has some; they are listed.
        """
        if faults := self.faults():
            more = [f"and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
            raise SubmissionError(
                f"{self.summary.path} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n  "
                + "\n  ".join(faults[:LISTED] + more),
                "write it again: kit submit",
            )
        return self.summary


def check_submission(path: Path, chips: Sequence[Chip], sizes: Sizes | None = None) -> Summary:
    """Returns the summary of a submission without faults. Unlike in `check`, all its masks may be empty.

    Args:
        path: a folder, an archive or a table of run lengths.
        chips: the test set.
        sizes: see `check`.

    Raises:
        SubmissionError: lists the faults, see `check`.
        RasterError: an image of the test set is missing or broken.
    """
    checked = check(path, chips, sizes=sizes)
    return replace(checked, checks=tuple(check for check in checked.checks if check.name != "empty")).require()


def check(
    path: Path,
    chips: Sequence[Chip] | None = None,
    earlier: Path | None = None,
    share: tuple[float, str] | None = None,
    sizes: Sizes | None = None,
) -> CheckedSubmission:
    """Checks a submission.

    Args:
        path: a folder, an archive, or a table of run lengths, which needs the test set.
        chips: the test set; None to check the masks without it.
        earlier: another submission for the same chips, to compare with.
        share: of building in training, 0..1, and the data sets that it was counted in.
        sizes: height and width of the chips, px, by id; by default they are read from the images.

    Raises:
        SubmissionError: one of the submissions is missing, no archive, or dangerous.
        RasterError: an image of the test set is missing or broken.
    """
    if sizes is None and chips is not None:
        sizes = ImageSizes({chip.id: chip.path for chip in chips})
    contents = read_contents(path, sizes, keep=earlier is not None)
    sound = contents.sound().values()
    building_px, pixels = sum(mask.building_px for mask in sound), sum(mask.size[0] * mask.size[1] for mask in sound)
    summary = Summary(path, len(sound), building_px / max(pixels, 1), sum(not mask.building_px for mask in sound))
    form = [_check_form(name, contents, sizes is not None) for name in contents.form]
    checks = [_check_names(contents, sizes), *form, _check_share(summary, share), _check_empty(summary)]
    if earlier is None:
        return CheckedSubmission(summary, tuple(checks))
    agreement, differing = _check_earlier(contents, read_contents(earlier, sizes, keep=True))
    return CheckedSubmission(summary, (*checks, agreement), differing)


def _check_names(contents: Contents, chips: Collection[str] | None) -> SubmissionCheck:
    counts, end = Counter(contents.names), contents.suffix
    repeated = [f"{name}{end} occurs {times} times" for name, times in counts.items() if times > 1]
    if chips is None:
        none = [] if counts else [f"{contents.path.name} holds no mask"]
        return SubmissionCheck("names", f"{len(counts)}, each once; no test set to compare with", (*none, *repeated))
    missing = [f"{name}{end} is missing" for name in chips if name not in counts]
    unknown = [f"{name}{end} is not <chip>{end} of the test set" for name in counts if name not in chips]
    return SubmissionCheck("names", f"{len(counts)} chips, each once", (*missing, *repeated, *unknown))


def _check_form(name: str, contents: Contents, has_chips: bool) -> SubmissionCheck:
    """Returns the check for strays, or one of the checks of FORM over all masks."""
    if name == "flat":
        return SubmissionCheck(name, "files alone", contents.strays)
    faults = tuple(mask.faults[name] for mask in contents.masks if name in mask.faults)
    if name != "sizes":
        return SubmissionCheck(name, FORM[name].format(n=len(contents.masks)), faults)
    sizes = Counter(mask.size for mask in contents.masks if mask.size != (0, 0))
    listed = ", ".join(f"{n} of {width} x {height} px" for (height, width), n in sizes.most_common(3))
    more = f", and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
    return SubmissionCheck(name, f"{listed}{more}{', as their chips' if has_chips and listed else ''}", faults)


def _check_share(summary: Summary, share: tuple[float, str] | None) -> SubmissionCheck:
    """Compares the share of building with that of the training data."""
    result = f"{summary.building_fraction:.1%} of the pixels"
    if share is None:
        return SubmissionCheck("buildings", f"{result}; no training data here to compare with")
    expected, source = share
    result += f"; {expected:.1%} in training ({source})"
    if summary.chips and not expected / FAR <= summary.building_fraction <= expected * FAR:
        side = "less than a third of" if summary.building_fraction < expected else f"more than {FAR:.0f} times"
        return SubmissionCheck("buildings", result, warning=f"{side} the share in training")
    return SubmissionCheck("buildings", result)


def _check_empty(summary: Summary) -> SubmissionCheck:
    result = f"{summary.empty} of {summary.chips} without a building"
    all_empty = summary.chips > 0 and summary.empty == summary.chips
    return SubmissionCheck("empty", result, ("every mask is empty",) if all_empty else ())


def _check_earlier(contents: Contents, earlier: Contents) -> tuple[SubmissionCheck, tuple[MaskDifference, ...]]:
    """Compares two submissions on the chips that both have."""
    new, old = contents.sound(), earlier.sound()
    common = sorted(new.keys() & old.keys())
    same_size = [name for name in common if new[name].size == old[name].size]
    apart = []
    if len(same_size) < len(common):
        apart.append(f"{len(common) - len(same_size)} chips have other sizes there")
    for only, where in ((new.keys() - old.keys(), "here"), (old.keys() - new.keys(), "there")):
        if only:
            apart.append(f"{len(only)} chips only {where}, first {min(only)}")
    if not same_size:
        nothing = f"nothing in common with {earlier.path.name}"
        return SubmissionCheck("earlier", nothing, warning="; ".join(apart)), ()
    rows = list(_compare(new, old, same_size))
    counts, pixels = pool(c for _, c, _ in rows), sum(px for *_, px in rows)
    result = (
        f"Jaccard {counts.jaccard:.4f}, {1 - (counts.fp + counts.fn) / pixels:.2%} of the pixels equal, "
        f"{len(same_size)} chips in {earlier.path.name}"
    )
    differing = [MaskDifference(name, c.jaccard, 1 - (c.fp + c.fn) / px) for name, c, px in rows if c.fp + c.fn]
    differing.sort(key=lambda difference: (difference.equal, difference.chip))
    return SubmissionCheck("earlier", result, warning="; ".join(apart)), tuple(differing[:DIFFERING])


def _compare(
    new: Mapping[str, InspectedMask], old: Mapping[str, InspectedMask], names: Iterable[str]
) -> Iterator[tuple[str, Counts, int]]:
    """Yields each chip, how its two masks compare, and its pixels."""
    for name in names:
        mask = new[name].pixels()
        yield name, count(mask, old[name].pixels().astype(np.uint8)), mask.size
