"""The weights of a working root, as `kit weights` lists them: index, files and cards compared."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kit.deploy.weights.store import IndexRow, read_beside, read_index
from kit.errors import KitError, WeightsError
from kit.system.files import cache_folder, file_version, read_json, sha256_of, write_json

COLUMNS = ("weights", "state", "recipe", "members", "views", "score", "gsd_m", "parity", "formats", "created", "sha256")
FORMATS = ("pt", "pt2", "onnx", "gis.onnx")
CHECKSUMS = "weights.json"  # in the user's cache
SHOWN_SHA256 = 8  # digits


@dataclass(frozen=True)
class Listed:
    """Weights as `kit weights` shows them: by their row in the index, or by their card where they have none."""

    name: str  # of the weights
    newest: bool = False  # whether `kit submit` takes them by default
    state: Literal["", "missing", "changed", "unlisted", "unreadable"] = ""  # of the files; empty when all is well
    recipe: str | None = None  # the recipe; of several, their names joined by `+`
    members: int | None = None  # how many networks
    views: str | None = None  # `none`, `flips` or `d4`
    score: float | None = None  # pooled Jaccard out of fold, 0..1
    gsd_m: float | None = None  # metres per pixel of the training tiles
    created: str | None = None  # UTC, ISO 8601
    file_sha256: str | None = None  # of `NAME.pt` as it should be, in hex
    parity_max_abs: float | None = None  # the largest difference in probability from the trained networks, by the card
    parity_equal_masks: float | None = None  # the share of pixels with the same mask, 0..1, by the card
    formats: tuple[str, ...] = ()  # suffixes of the files that are there
    problem: str | None = None  # what is wrong with them, in a sentence

    def cells(self) -> tuple[object, ...]:
        """Returns a table row, see COLUMNS; what is not known is blank."""
        state = ", ".join(word for word in ("newest" * self.newest, self.state) if word)
        gsd = None if self.gsd_m is None else f"{self.gsd_m:g}"
        parity = None if self.parity_max_abs is None else f"{self.parity_max_abs:.0e}"
        sha256, day = (self.file_sha256 or "")[:SHOWN_SHA256], (self.created or "").partition("T")[0]
        row = (
            self.name, state, self.recipe, self.members, self.views, self.score, gsd, parity, " ".join(self.formats),
            day, sha256,
        )  # fmt: skip
        return tuple("" if cell is None else cell for cell in row)


def list_weights(weights_dir: Path) -> list[Listed]:
    """Returns the weights in the order of the index, then those that it does not list, by name.

    A file that has changed since the last call is read whole, for its checksum.

    Raises:
        WeightsError: the index is unreadable.
    """
    rows = read_index(weights_dir)
    names = {row.name for row in rows}
    others = [path for path in sorted(weights_dir.glob("*.pt")) if path.stem not in names and path.name[0] != "."]
    listed = [path for row in rows if (path := weights_dir / f"{row.name}.pt").is_file()]
    checksums = _checksums([*listed, *others])
    return [
        *(_listed(weights_dir, row, row is rows[-1], checksums) for row in rows),
        *(_unlisted(path, checksums[path]) for path in others),
    ]


def _checksums(paths: Iterable[Path]) -> dict[Path, str]:
    """Returns the SHA-256 of files; from the cache where size and time are those of an earlier call."""
    store = cache_folder() / CHECKSUMS
    try:
        known = read_json(store, dict[str, tuple[str, str]])
    except KitError:
        known = {}
    checksums, fresh = {}, {}
    for path in paths:
        key, version = str(path.resolve()), file_version(path)
        if known.get(key, ("", ""))[0] != version:
            fresh[key] = version, sha256_of(path)
        checksums[path] = (fresh.get(key) or known[key])[1]
    if fresh:
        kept = {key: value for key, value in known.items() if Path(key).is_file()}
        with suppress(KitError):  # a cache that cannot be written
            write_json(store, kept | fresh)
    return checksums


def _listed(weights_dir: Path, row: IndexRow, newest: bool, checksums: dict[Path, str]) -> Listed:
    """Returns the line of weights in the index, with what is wrong with the file."""
    path = weights_dir / f"{row.name}.pt"
    line = Listed(
        row.name, newest, recipe=row.recipe, members=row.members, views=row.views, score=row.score, gsd_m=row.gsd_m,
        created=row.created, file_sha256=row.file_sha256, formats=_formats(path),
    )  # fmt: skip
    if path not in checksums:
        return replace(line, state="missing", problem=f"{path} is listed, but missing: export or fetch it again")
    if (checksum := checksums[path]) != row.file_sha256:
        return replace(
            line,
            state="changed",
            problem=f"{path} has sha256 {checksum[:SHOWN_SHA256]}..., but is listed with "
            f"{row.file_sha256[:SHOWN_SHA256]}...: not the same export",
        )
    return _with_card(line, path)


def _unlisted(path: Path, checksum: str) -> Listed:
    """Returns the line of weights that the index does not have."""
    line = _with_card(Listed(path.stem, state="unlisted", file_sha256=checksum, formats=_formats(path)), path)
    return replace(line, problem=line.problem or f"{path} is not listed; to use it: kit submit --weights {path}")


def _with_card(line: Listed, path: Path) -> Listed:
    """Returns the line with what only the card has; without a card beside the weights, the line itself."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return line
    try:
        card, expected = read_beside(beside)
    except WeightsError as cause:
        return replace(line, state="unreadable", problem=cause.message)
    if expected != line.file_sha256:
        return replace(line, state="changed", problem=f"{beside} is the card of another file than {path.name}")
    return replace(
        line, recipe=card.recipe, members=len(card.members), views=card.views, score=card.score, gsd_m=card.gsd_m,
        created=card.created, parity_max_abs=card.parity_max_abs, parity_equal_masks=card.parity_equal_masks,
    )  # fmt: skip


def _formats(path: Path) -> tuple[str, ...]:
    return tuple(suffix for suffix in FORMATS if path.with_suffix(f".{suffix}").is_file())
