"""Paths and addresses of inputs: what GDAL opens for one, how small files are read, and when a file has changed.

Source:
    The addresses and the variables `AWS_*` are those of GDAL's virtual file systems: https://gdal.org/user/virtual_file_systems.html
"""

import os
import re
import time
from collections.abc import Iterable
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from posixpath import normpath
from urllib.error import HTTPError
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit
from urllib.request import Request, urlopen

from kit import __version__
from kit.console import say
from kit.data.sources.signing import signed
from kit.errors import KitError
from kit.system.files import file_version, read_limited

GDAL_PREFIXES = {
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
}
FILE_ADDRESS = re.compile(r"file:(?://(?:localhost)?)?(/.*)", re.IGNORECASE | re.DOTALL)
# an archive is the text up to the first name with such a suffix, or what stands in braces
ARCHIVE = re.compile(
    r"/vsi(?:zip|tar|gzip|7z|rar)/(?:\{(.+?)\}|(.+?\.(?:zip|kmz|shz|tar|tgz|gz|7z|rar)))(?:/|$)", re.IGNORECASE
)
MOST_BYTES = 64 << 20  # of a catalogue file or a table; one that lists 500,000 items has about 50 MB
TIMEOUT_S = 30.0  # without a byte from the server
LONGEST_S = 300.0  # for a whole file of at most `MOST_BYTES`
CHUNK_BYTES = 1 << 16
# GDAL itself sets no limits: do not list the folder around a file, wait briefly, try again
GDAL_WEB = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_TIMEOUT": "120",
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "1",
}
NO_HEAD = (403, 405, 501)  # answers to HEAD of plain servers, and of addresses that are signed for reading
NO = ("NO", "FALSE", "OFF", "0")  # as GDAL reads them

_announced: set[str] = set()  # hosts that `announce` has named


def is_remote(href: str) -> bool:
    """Returns whether an href is not a plain file: an address of a known kind, or a path of GDAL's `/vsi` systems."""
    return href.startswith("/vsi") or _scheme(href) in GDAL_PREFIXES


def local_path(href: str) -> Path:
    """Returns the file of an href that is not remote: a path as it is, or the path of a `file:` address."""
    return Path(file_name(href))


def file_name(href: str) -> str:
    """Returns `local_path` as text."""
    match = FILE_ADDRESS.fullmatch(href)
    return os.fsdecode(unquote_to_bytes(match[1])) if match else href


def suffix_of(href: str) -> str:
    """Returns the suffix of an href in lower case, with its dot; an address's query does not count."""
    is_web = _scheme(href.removeprefix("/vsicurl/")) in ("http", "https")
    return PurePosixPath(urlsplit(href).path if is_web else href).suffix.lower()


def gdal_path(href: str) -> str:
    """Returns what rasterio and pyogrio open: a path as it is, `/vsicurl/`, `/vsis3/` and the like for addresses."""
    scheme = _scheme(href)
    if scheme in ("http", "https"):
        return f"/vsicurl/{web_address(href)}"
    if scheme in GDAL_PREFIXES:
        return GDAL_PREFIXES[scheme] + href.split("://", 1)[1]
    return href if href.startswith("/vsi") else str(local_path(href))


def resolve(href: str, base: str) -> str:
    """Returns an href as a path or address of its own.

    Args:
        href: absolute, or relative to the folder of `base`. Where a local file of this name is missing, `%20` and the
            like are decoded: catalogues write addresses, people write paths.
        base: path or address of the file that holds the href.
    """
    if is_remote(href) or FILE_ADDRESS.fullmatch(href):
        return href
    if not is_remote(base):
        folder, _ = os.path.split(file_name(base))
        path = os.path.join(folder, href)  # noqa: PTH118  # pathlib takes longer than reading an item
        decoded = os.path.join(folder, os.fsdecode(unquote_to_bytes(href))) if "%" in href else path  # noqa: PTH118
        return decoded if decoded != path and not Path(path).exists() and Path(decoded).exists() else path
    if _scheme(base) in ("http", "https"):
        return urljoin(base, href)
    scheme, found, rest = base.rpartition("://")
    return scheme + found + normpath(str(PurePosixPath(rest).parent / href))


def read_bytes(href: str, most_bytes: int = MOST_BYTES) -> bytes:
    """Returns the content of a small file, local or remote.

    Raises:
        KitError: it is missing, too large or no regular file; or its server refuses, cannot be reached or never ends.
    """
    if is_remote(href):
        return _ask(href, "GET", most_bytes=most_bytes)[0]
    return read_limited(local_path(href), most_bytes, hint="is the path right?")


def fingerprint(href: str) -> str:
    """Returns a text that changes when an input changes: size and time of a file, else its server's tags.

    What lies in an archive changes with the archive.

    Raises:
        KitError: it is missing or no regular file, or its server gives neither tag, time nor length.
    """
    if archive := ARCHIVE.match(href):
        return fingerprint(archive[1] or archive[2])
    if not is_remote(href):
        path = local_path(href)
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise KitError(f"{path} is not a regular file", "is the path right?")
        return file_version(path)
    _, headers = _ask(href, "HEAD")
    tags = [headers.get("ETag"), headers.get("Last-Modified"), headers.get("Content-Range", headers["Content-Length"])]
    if not any(tags):
        raise KitError(f"{href}: its server gives neither ETag, Last-Modified nor Content-Length", "copy it to a disk")
    return " ".join(text for text in tags if text)


def host_of(href: str) -> str:
    """Returns the host that an href is fetched from; empty for a local file."""
    if archive := ARCHIVE.match(href):
        return host_of(archive[1] or archive[2])
    try:
        return urlsplit(web_address(href)).netloc if is_remote(href) else ""
    except KitError:
        return ""


def announce(hrefs: Iterable[str]) -> None:
    """Says on stderr which hosts are fetched from, each host once."""
    hosts = sorted({host_of(href) for href in hrefs} - _announced - {""})
    if hosts:
        _announced.update(hosts)
        say(f"fetching from {', '.join(hosts)}")


def web_address(href: str) -> str:
    """Returns the http(s) address of a remote href.

    Raises:
        KitError: it has none, for example a file in an archive.
    """
    for scheme, prefix in GDAL_PREFIXES.items():  # GDAL's own paths, back to addresses
        if href.startswith(prefix):
            href = f"{scheme}://{href.removeprefix(prefix)}"
    scheme, _, rest = href.partition("://")
    if scheme.lower() in ("http", "https"):
        return quote(href, safe="%/:=&?~#+!$,;'@()*[]")  # quotes spaces; what is quoted already stays
    bucket, _, key = rest.partition("/")
    account = os.environ.get("AZURE_STORAGE_ACCOUNT", "")
    if scheme.lower() == "s3":
        return _s3_address(bucket, quote(key))
    if scheme.lower() == "gs":
        return f"https://storage.googleapis.com/{bucket}/{quote(key)}"
    if scheme.lower() == "az" and account:
        return f"https://{account}.blob.core.windows.net/{bucket}/{quote(key)}"
    raise KitError(f"{href} has no address on the web", "unpack archives first; az:// needs AZURE_STORAGE_ACCOUNT")


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _s3_address(bucket: str, key: str) -> str:
    """Returns where GDAL would look for an object, by the same variables."""
    standard = "s3.amazonaws.com" if _region() == "us-east-1" else f"s3.{_region()}.amazonaws.com"
    host = os.environ.get("AWS_S3_ENDPOINT") or standard
    protocol = "http" if os.environ.get("AWS_HTTPS", "YES").upper() in NO else "https"
    if "://" in host:
        protocol, host = host.rstrip("/").split("://", 1)
    # a bucket with a dot does not fit the certificates of *.s3.amazonaws.com
    in_host = os.environ.get("AWS_VIRTUAL_HOSTING", "NO" if "." in bucket else "YES").upper() not in NO
    return f"{protocol}://{bucket}.{host}/{key}" if in_host else f"{protocol}://{host}/{bucket}/{key}"


def _is_s3(href: str) -> bool:
    return _scheme(href) == "s3" or href.startswith(GDAL_PREFIXES["s3"])


def _scheme(href: str) -> str:
    scheme, separator, _ = href.partition("://")
    return scheme.lower() if separator else ""


def _check_size(href: str, size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise KitError(f"{href} is larger than {most_bytes:,} bytes, the most that is read", "is the address right?")


def _ask(href: str, method: str, part: str = "", most_bytes: int = MOST_BYTES) -> tuple[bytes, Message]:
    """Returns the content and the headers of a server's answer; of HEAD, or of a `part` in bytes, headers alone."""
    announce([href])
    address = web_address(href)
    headers = {"User-Agent": f"kit/{__version__}", "Accept-Encoding": "identity"}
    if part:
        headers["Range"] = f"bytes={part}"
    if _is_s3(href):
        headers = signed(address, method, _region(), headers)
    try:
        with urlopen(Request(address, method=method, headers=headers), timeout=TIMEOUT_S) as answer:
            return (b"" if part or method == "HEAD" else _receive(href, answer, most_bytes)), answer.headers
    except HTTPError as cause:
        if method == "HEAD" and cause.code in NO_HEAD:
            return _ask(href, "GET", part="0-0")
        raise KitError(f"{href}: the server answers {cause.code} {cause.reason}", _remedy(href, cause.code)) from cause
    except (OSError, HTTPException, ValueError) as cause:
        host = urlsplit(address).netloc
        reason = getattr(cause, "reason", None) or cause
        raise KitError(f"{href}: {host} cannot be reached: {reason}", "check the address and the connection") from cause


def _receive(href: str, answer: HTTPResponse, most_bytes: int) -> bytes:
    """Returns the whole content of an answer, within limits of size and time."""
    length = int(answer.headers.get("Content-Length") or -1)
    _check_size(href, length, most_bytes)
    content, end = bytearray(), time.monotonic() + LONGEST_S
    while chunk := answer.read1(CHUNK_BYTES):
        content += chunk
        _check_size(href, len(content), most_bytes)
        if time.monotonic() > end:
            raise KitError(f"{href} is still being sent after {LONGEST_S:g} s", "copy it to a disk")
    if len(content) < length:
        raise KitError(f"{href} ends after {len(content)} of {length} bytes", "try again")
    return bytes(content)


def _remedy(href: str, code: int) -> str:
    if code == 404:
        return "check the address"
    if code in (401, 403) and _is_s3(href):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; of a public bucket AWS_NO_SIGN_REQUEST=YES"
    if code in (301, 307, 400) and _is_s3(href):
        return "set AWS_REGION to the bucket's region"
    return "may it be read without a login?" if code in (401, 403) else "try again later"
