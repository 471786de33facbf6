"""Published weights: fetched over the web, gone on with after a break, and used only with the sum published."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from kit import __version__
from kit.console import meter
from kit.data.sources.remote import web_address
from kit.deploy.trust.allowlist import check_operators
from kit.deploy.weights.load import named_weights, newest_weights, read_card
from kit.deploy.weights.store import list_in_index, read_index
from kit.errors import WeightsError
from kit.system.files import locked, replacing, sha256_of

TIMEOUT_S = 30.0  # for an answer, and between two blocks
BLOCK = 2**20
MB = 10**6
SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)  # a file's name that comes from outside: no folder, not hidden
PARTIAL, NO_SUCH_RANGE = 206, 416
REMEDY = {401: "may it be read without a login?", 403: "may it be read without a login?", 404: "check the address"}


def find_weights(given: str, sha256: str, weights_dir: Path) -> Path:
    """Returns the weights file that is meant: the newest here, a file, or one to be fetched first.

    Args:
        given: a path, a name in the folder of weights, or an address; empty for the newest.
        sha256: that the file must have, in hex; empty for a file that is taken as it is.
        weights_dir: the folder of weights.

    Raises:
        WeightsError: there is none, it has another sum, or an address comes without one; see `fetch`.
    """
    if "://" in given:
        return fetch(given, sha256, weights_dir)
    expected = _checked(sha256, given) if sha256 else ""
    path = named_weights(given, weights_dir) if given else newest_weights(weights_dir)
    if expected and path.is_file() and (found := sha256_of(path)) != expected:
        raise WeightsError(f"{path} has sha256 {found}, expected {expected}", "is it the file that was published?")
    return path


def fetch(url: str, sha256: str, weights_dir: Path) -> Path:
    """Returns published weights as a file here, `NAME.pt`: with its card beside it, and the last row of `index.csv`.

    A file that is here already is used without the network. What a break left is gone on with. The file gets its name
    when its sum is right, and its code is what weights may hold.

    Args:
        url: http or https; its last part names the weights.
        sha256: of the file, in hex.
        weights_dir: the folder of weights.

    Raises:
        WeightsError: it is not there, not whole, not what was published, or not kit's.
        KitError: the disk is full, or another process fetches it.
    """
    expected = _checked(sha256, url)
    path = weights_dir / f"{_name_in(url)}.pt"
    with locked(path):
        if not path.is_file():
            part = path.with_name(f".{path.name}.{expected[:12]}.part")  # two sums never share a part
            _download(url, expected, part)
            _check_kits(url, part)
            part.replace(path)
        elif (found := sha256_of(path)) != expected:
            raise WeightsError(
                f"{path} is there already, with sha256 {found}, expected {expected}",
                "move it away, or predict with it: --weights and its path",
            )
        _list(path, expected)
    return path


def _checked(sha256: str, given: str) -> str:
    """Returns a SHA-256 in lower case."""
    if not sha256:
        raise WeightsError(
            f"{given} comes without a checksum: nothing that was not checked is loaded",
            "--sha256 and the 64 digits that were published with it",
        )
    if not SHA256.fullmatch(found := sha256.strip().lower()):
        raise WeightsError(f"{sha256!r} is no SHA-256, expected 64 hex digits", "copy it from where the weights are")
    return found


def _name_in(url: str) -> str:
    """Returns what an address calls its file, without .pt."""
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https") or not parts.netloc:
        raise WeightsError(f"{url} cannot be fetched, expected http:// or https://", "or a file: --weights FILE")
    name = PurePosixPath(unquote(parts.path)).name.removesuffix(".pt")
    if not NAME.fullmatch(name):
        raise WeightsError(
            f"{url} ends in no name for a file, expected .../NAME.pt", "fetch it by hand, then --weights FILE"
        )
    return name


def _download(url: str, expected: str, part: Path) -> None:
    """Fills a part until it is whole and has the sum; a part with another sum is removed."""
    begun = part.is_file()
    _transfer(url, part)
    found = sha256_of(part)
    if begun and found != expected:  # the address may have held something else when it was begun: once more, whole
        part.unlink()
        _transfer(url, part)
        found = sha256_of(part)
    if found != expected:
        part.unlink()
        raise WeightsError(
            f"{url} has sha256 {found}, expected {expected}", "it is not what was published: do not use it"
        )


def _transfer(url: str, part: Path) -> None:
    """Fetches what a part lacks; all of it from a server that knows no ranges."""
    begun = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": f"kit/{__version__}", "Accept-Encoding": "identity"}
    if begun:
        headers["Range"] = f"bytes={begun}-"
    try:
        with urlopen(Request(web_address(url), headers=headers), timeout=TIMEOUT_S) as answer:
            told = answer.headers.get("Content-Range", "")
            goes_on = answer.status == PARTIAL and told.startswith(f"bytes {begun}-")
            if answer.status == PARTIAL and not goes_on:
                raise WeightsError(f"{url}: asked for bytes from {begun}, the server sends {told!r}", f"remove {part}")
            _append(answer, part, begun if goes_on else 0)
    except HTTPError as cause:
        if cause.code == NO_SUCH_RANGE and begun:
            return  # nothing is missing; whether it is right, the sum tells
        remedy = REMEDY.get(cause.code, "try again later")
        raise WeightsError(f"{url}: the server answers {cause.code} {cause.reason}", remedy) from cause
    except (OSError, HTTPException, ValueError) as cause:
        reason = getattr(cause, "reason", None) or cause or type(cause).__name__
        raise WeightsError(
            f"{url}: {urlsplit(url).netloc} cannot be reached: {reason}",
            "check the address and the connection; the same command goes on",
        ) from cause


def _append(answer: HTTPResponse, part: Path, start: int) -> None:
    """Writes an answer behind the first `start` bytes of a part."""
    length = answer.headers.get("Content-Length")
    done, total = start, start + int(length) if length else None
    with _writing(part):
        file = part.open("ab" if start else "wb", buffering=0)  # nothing is left to be written when it is closed
    with file, meter(f"fetch {PurePosixPath(urlsplit(answer.url).path).name}, MB", -(-(total or 0) // MB)) as running:
        running.skip(start // MB)
        while block := memoryview(answer.read(BLOCK)):
            done += len(block)
            with _writing(part):
                while block:
                    block = block[file.write(block) :]
            running.total = max(running.total, done // MB)
            running.advance((running.total if done == total else done // MB) - running.done)
    if total is not None and done < total:
        raise WeightsError(
            f"the connection ended after {done:,} of {total:,} bytes of {answer.url}", "the same command goes on"
        )


@contextmanager
def _writing(part: Path) -> Iterator[None]:
    """Turns what the disk says into an error that names it: other OSErrors are the network's."""
    try:
        yield
    except OSError as cause:
        remedy = "free some space, or choose another --root; the same command goes on"
        raise WeightsError(f"cannot write {part}: {cause.strerror}", remedy) from cause


def _check_kits(url: str, part: Path) -> None:
    """Removes a part that is not what weights may be."""
    try:
        read_card(part)
        check_operators(part)
    except WeightsError as cause:
        part.unlink()
        raise WeightsError(cause.message.replace(str(part), url), cause.hint) from cause


def _list(path: Path, file_sha256: str) -> None:
    """Writes the card beside fetched weights, and lists them, unless both are there."""
    card = read_card(path)
    text, beside = card.to_json(file_sha256=file_sha256), path.with_suffix(".json")
    if not beside.is_file() or beside.read_text() != text:
        with replacing(beside) as temporary:
            temporary.write_text(text)
    listed = {row["name"]: row["file_sha256"] for row in read_index(path.parent)}
    if listed.get(path.stem) != file_sha256:
        list_in_index(path.parent, path.stem, card, file_sha256)
