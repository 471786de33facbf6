"""Downloads published weights; resumes broken downloads and requires the published checksum."""

import re
import time
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
from kit.deploy.weights.store import check_free, list_in_index, read_index, staged
from kit.errors import WeightsError
from kit.system.files import locked, sha256_of, write_bytes, write_remedy

TIMEOUT_S = 30.0  # for an answer, and between two packets
LIMIT_BYTES = 16 * 10**9  # of a file; five of the largest networks have 2.5 GB
STALL_BYTES, STALL_S = 2**16, 60.0  # a server that sends less in that time is given up
BLOCK = 2**20
MB = 10**6
SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)  # a file's name that comes from outside: no folder, not hidden
PARTIAL, NO_SUCH_RANGE = 206, 416
REMEDY = {401: "may it be read without a login?", 403: "may it be read without a login?", 404: "check the address"}
RESUME = "rerun to resume"


def find_weights(name: str, sha256: str, weights_dir: Path) -> Path:
    """Returns the weights file that a user named: the newest, a file, or one to download.

    Args:
        name: a path, a name in the folder of weights, or an address; empty for the newest.
        sha256: that the file must have, in hex; empty to accept any.
        weights_dir: the folder of weights.

    Raises:
        WeightsError: there is none, it has another checksum, or an address comes without one; see `fetch`.
    """
    if "://" in name:
        return fetch(name, sha256, weights_dir)
    expected = _checked(sha256, name) if sha256 else ""
    path = named_weights(name, weights_dir) if name else newest_weights(weights_dir)
    if expected and path.is_file() and (actual := sha256_of(path)) != expected:
        raise WeightsError(f"{path} has sha256 {actual}, expected {expected}", "is it the file that was published?")
    return path


def fetch(url: str, sha256: str, weights_dir: Path) -> Path:
    """Downloads published weights to `NAME.pt`, with card and index row; returns the file.

    An existing file is used without the network. A broken download is resumed. The file gets its name after its
    checksum and operators were checked.

    Args:
        url: http or https; its last part names the weights.
        sha256: of the file, in hex.
        weights_dir: the folder of weights.

    Raises:
        WeightsError: it is missing, incomplete, not what was published, or not kit's.
        KitError: the disk is full, or another process fetches it.
    """
    expected = _checked(sha256, url)
    name = _name_in(url)
    path = weights_dir / f"{name}.pt"
    with locked(path):
        if not path.is_file():
            check_free(weights_dir, name)
            part = path.with_name(f".{path.name}.{expected[:12]}.part")  # per checksum: parts are never mixed
            _download(url, expected, part)
            _adopt(url, part, path, expected)
        elif (actual := sha256_of(path)) != expected:
            raise WeightsError(
                f"{path} is there already, with sha256 {actual}, expected {expected}",
                "move it away, or predict with it: --weights and its path",
            )
        else:
            _complete(path, expected)
    return path


def _checked(sha256: str, name: str) -> str:
    """Returns a SHA-256 in lower case."""
    if not sha256:
        raise WeightsError(
            f"{name} comes without a checksum, and no download is loaded unchecked",
            "give --sha256 and the 64 digits that were published with it",
        )
    if not SHA256.fullmatch(checksum := sha256.strip().lower()):
        raise WeightsError(f"{sha256!r} is not a SHA-256, expected 64 hex digits", "copy it from where the weights are")
    return checksum


def _name_in(url: str) -> str:
    """Returns the name of an address's file, without .pt."""
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
    """Fills a part until it is whole and has the checksum; a part with another checksum is removed."""
    resumed = part.is_file()
    _transfer(url, part)
    actual = sha256_of(part)
    if resumed and actual != expected:  # the address may have held another file before: once more, from the start
        part.unlink()
        _transfer(url, part)
        actual = sha256_of(part)
    if actual != expected:
        part.unlink()
        raise WeightsError(
            f"{url} has sha256 {actual}, expected {expected}", "do not use it: it is not the published file"
        )


def _transfer(url: str, part: Path) -> None:
    """Fetches what a part lacks; all of it from a server that does not support ranges."""
    start = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": f"kit/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with urlopen(Request(web_address(url), headers=headers), timeout=TIMEOUT_S) as answer:
            sent = answer.headers.get("Content-Range", "")
            partial = answer.status == PARTIAL
            if partial and not sent.startswith(f"bytes {start}-"):
                raise WeightsError(f"{url}: asked for bytes from {start}, the server sends {sent!r}", f"remove {part}")
            _append(answer, part, start if partial else 0)
    except HTTPError as cause:
        if cause.code == NO_SUCH_RANGE and start:
            return  # nothing is missing; the checksum will show whether it is right
        remedy = REMEDY.get(cause.code, "try again later")
        raise WeightsError(f"{url}: the server answers {cause.code} {cause.reason}", remedy) from cause
    except (OSError, HTTPException, ValueError) as cause:
        reason = getattr(cause, "reason", None) or cause or type(cause).__name__
        raise WeightsError(
            f"{url}: {urlsplit(url).netloc} cannot be reached: {reason}",
            f"check the address and the connection; {RESUME}",
        ) from cause


def _append(answer: HTTPResponse, part: Path, start: int) -> None:
    """Writes an answer after the first `start` bytes of a part."""
    length = answer.headers.get("Content-Length")
    done, total = start, start + int(length) if length else None
    _check_size(answer.url, total or 0)
    name = PurePosixPath(urlsplit(answer.url).path).name
    try:
        file = part.open("ab" if start else "wb", buffering=0)
    except OSError as cause:
        raise _unwritable(part, cause) from cause
    counted, since = done, time.monotonic()
    with file, meter(f"fetch {name}, MB", -(-(total or 0) // MB)) as running:
        running.skip(start // MB)
        while block := answer.read1(BLOCK):
            done += len(block)
            if done > LIMIT_BYTES:
                part.unlink()
            _check_size(answer.url, done)
            try:
                while block := block[file.write(block) :]:
                    pass
            except OSError as cause:  # of the disk: other OSErrors are the network's
                raise _unwritable(part, cause) from cause
            if done - counted >= STALL_BYTES:
                counted, since = done, time.monotonic()
            elif time.monotonic() - since > STALL_S:
                raise WeightsError(f"{answer.url}: the server sends too slowly", f"try later; {RESUME}")
            running.total = max(running.total, done // MB)
            running.advance((running.total if done == total else done // MB) - running.done)
    if total is not None and done < total:
        raise WeightsError(f"the connection ended after {done:,} of {total:,} bytes of {answer.url}", RESUME)


def _check_size(url: str, size_bytes: int) -> None:
    if size_bytes > LIMIT_BYTES:
        raise WeightsError(f"{url} has more than {LIMIT_BYTES:,} bytes: too large for weights", "check the address")


def _unwritable(part: Path, cause: OSError) -> WeightsError:
    return WeightsError(
        f"cannot write {part}: {cause.strerror}", f"{write_remedy(cause)}, or choose another --root; {RESUME}"
    )


def _adopt(url: str, part: Path, path: Path, file_sha256: str) -> None:
    """Turns a whole part into listed weights; one that is not what weights may be is removed."""
    try:
        card = read_card(part)
        check_operators(part)
    except WeightsError as cause:
        part.unlink()
        raise WeightsError(cause.message.replace(str(part), url), cause.hint) from cause
    with staged(path.parent, path.stem) as folder:
        part.replace(folder / path.name)
        (folder / f"{path.stem}.json").write_text(card.to_json(file_sha256=file_sha256))


def _complete(path: Path, file_sha256: str) -> None:
    """Writes the card beside weights that are here, and lists them, where that is missing."""
    card = read_card(path)
    content, beside = card.to_json(file_sha256=file_sha256).encode(), path.with_suffix(".json")
    if not beside.is_file() or beside.read_bytes() != content:
        write_bytes(beside, content)
    if {row.name: row.file_sha256 for row in read_index(path.parent)}.get(path.stem) != file_sha256:
        list_in_index(path.parent, path.stem, card, file_sha256)
