"""Inputs that may lie elsewhere: the path that GDAL takes, small files read, and what tells that one has changed.

Source:
    The addresses and the variables `AWS_*` are those of GDAL's virtual file systems: https://gdal.org/user/virtual_file_systems.html
"""

import os
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

from kit import __version__
from kit.data.sources.signing import signed
from kit.errors import KitError
from kit.system.files import file_version

GDAL_PREFIXES = {
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
}
TIMEOUT_S = 30.0
# for GDAL, which has no limits of its own: no listing of the folder around a file, short waits, tried again
GDAL_WEB = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_TIMEOUT": "120",
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "1",
}
NO_HEAD = (403, 405, 501)  # addresses signed for reading, and plain servers, answer so to HEAD
NO = ("NO", "FALSE", "OFF", "0")  # as GDAL reads them


def is_remote(href: str) -> bool:
    """Returns whether an href is not a plain file: an address of a known kind, or a path of GDAL's `/vsi` systems."""
    return href.startswith("/vsi") or _scheme(href) in GDAL_PREFIXES


def local_path(href: str) -> Path:
    """Returns the file of an href that is not remote: a path, or `file://` with one."""
    return Path(unquote(urlsplit(href).path) if _scheme(href) == "file" else href)


def suffix_of(href: str) -> str:
    """Returns the suffix of an href in lower case, with its dot; what follows `?` in an address is no part of it."""
    path = urlsplit(href).path if _scheme(href) in ("http", "https") else href
    return Path(path).suffix.lower()


def gdal_path(href: str) -> str:
    """Returns what rasterio and pyogrio open: a path as it is, `/vsicurl/`, `/vsis3/` and the like for addresses."""
    scheme = _scheme(href)
    if scheme in ("http", "https"):
        return f"/vsicurl/{web_address(href)}"
    if scheme in GDAL_PREFIXES:
        return GDAL_PREFIXES[scheme] + href.split("://", 1)[1]
    return href if href.startswith("/vsi") else str(local_path(href))


def read_bytes(href: str) -> bytes:
    """Returns the content of a small file, local or remote.

    Raises:
        KitError: it is missing, may not be read, or its host cannot be reached.
    """
    if not is_remote(href):
        try:
            return local_path(href).read_bytes()
        except OSError as cause:
            raise KitError(f"{href} cannot be read: {cause.strerror}", "is the path right?") from cause
    content, _ = _ask(href, "GET")
    return content


def fingerprint(href: str) -> str:
    """Returns a text that changes when an input changes: of a file, size and time; else what its server tells of it.

    Raises:
        KitError: it is missing, or its server tells neither tag, time nor length.
    """
    if not is_remote(href):
        return file_version(local_path(href))
    _, headers = _ask(href, "HEAD")
    told = [headers.get("ETag"), headers.get("Last-Modified"), headers.get("Content-Range", headers["Content-Length"])]
    if not any(told):
        raise KitError(f"{href}: its server tells neither ETag, Last-Modified nor Content-Length", "copy it to a disk")
    return " ".join(text for text in told if text)


def web_address(href: str) -> str:
    """Returns the http(s) address of a remote href.

    Raises:
        KitError: it has none, as what lies in an archive.
    """
    for scheme, prefix in GDAL_PREFIXES.items():  # GDAL's own paths, back to addresses
        if href.startswith(prefix):
            href = f"{scheme}://{href.removeprefix(prefix)}"
    scheme, _, rest = href.partition("://")
    if scheme.lower() in ("http", "https"):
        return quote(href, safe="%/:=&?~#+!$,;'@()*[]")  # a space stays none; what is quoted already stays
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
    scheme, found, _ = href.partition("://")
    return scheme.lower() if found else ""


def _ask(href: str, method: str, part: str = "") -> tuple[bytes, Message]:
    """Returns the content and the headers of a server's answer; of HEAD, or of a `part` in bytes, headers alone."""
    address = web_address(href)
    headers = {"User-Agent": f"kit/{__version__}", "Accept-Encoding": "identity"}
    if part:
        headers["Range"] = f"bytes={part}"
    if _is_s3(href):
        headers = signed(address, method, _region(), headers)
    try:
        with urlopen(Request(address, method=method, headers=headers), timeout=TIMEOUT_S) as answer:
            return (b"" if part or method == "HEAD" else answer.read()), answer.headers
    except HTTPError as cause:
        if method == "HEAD" and cause.code in NO_HEAD:
            return _ask(href, "GET", part="0-0")
        raise KitError(f"{href}: the server answers {cause.code} {cause.reason}", _remedy(href, cause.code)) from cause
    except (OSError, HTTPException, ValueError) as cause:
        host = urlsplit(address).netloc
        reason = getattr(cause, "reason", None) or cause
        raise KitError(f"{href}: {host} cannot be reached: {reason}", "check the address and the connection") from cause


def _remedy(href: str, code: int) -> str:
    if code == 404:
        return "check the address"
    if code in (401, 403) and _is_s3(href):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; of a public bucket AWS_NO_SIGN_REQUEST=YES"
    if code in (301, 307, 400) and _is_s3(href):
        return "set AWS_REGION to the bucket's region"
    return "may it be read without a login?" if code in (401, 403) else "try again later"
