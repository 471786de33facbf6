import os
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from factories import MERCATOR, UTM, write_footprints, write_scene
from rasterio.transform import Affine
from rasterio.windows import Window
from web import Web

import kit.data.sources.remote
from kit.data.footprints import read_footprints
from kit.data.sources.remote import (
    announce,
    fingerprint,
    gdal_path,
    host_of,
    is_remote,
    local_path,
    read_bytes,
    resolve,
    suffix_of,
    web_address,
)
from kit.data.sources.signing import signed
from kit.errors import KitError

PATHS = {
    "http://host/a b.tif": "/vsicurl/http://host/a%20b.tif",
    "https://host/a.tif?key=1": "/vsicurl/https://host/a.tif?key=1",
    "HTTPS://host/a.tif": "/vsicurl/HTTPS://host/a.tif",
    "s3://bucket/key/a.tif": "/vsis3/bucket/key/a.tif",
    "gs://bucket/a.tif": "/vsigs/bucket/a.tif",
    "az://container/a.tif": "/vsiaz/container/a.tif",
    "/vsizip/a.zip/a.shp": "/vsizip/a.zip/a.shp",
}


@pytest.mark.parametrize("href", PATHS)
def test_addresses_become_paths_of_gdal(href: str):
    assert is_remote(href)
    assert gdal_path(href) == PATHS[href]


def test_files_stay_files(tmp_path: Path):
    for href in ("a.tif", "/data/a.tif", "./a b.tif", "C:/a.tif", "/data/vsi/a.tif"):
        assert not is_remote(href)
        assert gdal_path(href) == str(Path(href))
    assert gdal_path("file:///data/a%20b.tif") == "/data/a b.tif"
    assert not is_remote("file:///data/a.tif")
    assert local_path("file:///data/a.tif") == Path("/data/a.tif")


def test_suffix_is_that_of_the_path():
    assert suffix_of("https://host/a.TIF?name=b.json") == ".tif"
    assert suffix_of("s3://bucket/what?.geojson") == ".geojson"
    assert suffix_of("/data/a") == ""
    assert suffix_of("/vsicurl/https://host/a.tif?key=b.json") == ".tif"


def write_raster(path: Path, side_px: int = 1024) -> np.ndarray:
    """Writes noise, which does not compress, in blocks of 256 px."""
    pixels = np.random.default_rng(0).integers(0, 255, (3, side_px, side_px), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", width=side_px, height=side_px, count=3, dtype="uint8", crs=UTM, tiled=True,
        transform=Affine(1, 0, 0, 0, -1, 0), blockxsize=256, blockysize=256, compress="deflate",
    ) as target:  # fmt: skip
        target.write(pixels)
    return pixels


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_a_window_is_read_without_the_rest_of_the_file(web: Web, scheme: str):
    (web.folder / "bucket").mkdir()
    pixels = write_raster(web.folder / "bucket" / "big.tif")
    href = f"{web.url}/bucket/big.tif" if scheme == "http" else "s3://bucket/big.tif"
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), rasterio.open(gdal_path(href)) as source:
        found = source.read(window=Window(300, 300, 100, 100))
    np.testing.assert_array_equal(found, pixels[:, 300:400, 300:400])
    answers = [(status, sent) for _, path, status, sent in web.asked if path.endswith("big.tif")]
    assert 206 in {status for status, _ in answers}
    assert sum(sent for _, sent in answers) < 0.25 * (web.folder / "bucket" / "big.tif").stat().st_size


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_footprints_are_read_from_the_web(web: Web, scheme: str):
    polygons = write_scene(web.folder / "bucket" / "a.tif")
    write_footprints(web.folder / "bucket" / "a.geojson", polygons)
    href = f"{web.url}/bucket/a.geojson" if scheme == "http" else "s3://bucket/a.geojson"
    assert len(read_footprints((href,), MERCATOR).polygons) == len(polygons)


@pytest.mark.parametrize("scheme", ["file", "http", "s3", "/vsicurl/", "/vsis3/"])
def test_bytes_and_fingerprints_of_every_place(web: Web, scheme: str):
    file = web.folder / "bucket" / "a b.json"
    file.parent.mkdir()
    file.write_bytes(b"{}")
    href = {
        "file": file.as_uri(),
        "http": f"{web.url}/bucket/a b.json",
        "s3": "s3://bucket/a b.json",
        "/vsicurl/": f"/vsicurl/{web.url}/bucket/a b.json",
        "/vsis3/": "/vsis3/bucket/a b.json",
    }[scheme]
    assert read_bytes(href) == b"{}"
    before = fingerprint(href)
    assert fingerprint(href) == before
    os.utime(file, ns=(0, 10**18))
    touched = fingerprint(href)
    file.write_bytes(b"[1]")
    os.utime(file, ns=(0, 10**18))
    assert len({before, touched, fingerprint(href)}) == 3


def test_a_fingerprint_fetches_no_content(web: Web):
    write_raster(web.folder / "big.tif")
    fingerprint(f"{web.url}/big.tif")
    web.order(refuse={"HEAD /big.tif": 403})  # as addresses do that are signed for reading
    assert fingerprint(f"{web.url}/big.tif")
    assert sum(sent for *_, sent in web.asked) <= 1


def test_a_server_that_tells_nothing_cannot_be_watched(web: Web):
    (web.folder / "a.json").write_bytes(b"{}")
    web.order(silent=True)
    with pytest.raises(KitError, match="gives neither ETag, Last-Modified nor Content-Length"):
        fingerprint(f"{web.url}/a.json")


@pytest.mark.parametrize("ask", [read_bytes, fingerprint])
def test_what_is_missing_is_named(web: Web, tmp_path: Path, ask):
    with pytest.raises(KitError, match=r"nowhere\.json cannot be read: No such file"):
        ask(str(tmp_path / "nowhere.json"))
    with pytest.raises(KitError, match=r"http.*/nowhere\.json: the server answers 404") as caught:
        ask(f"{web.url}/nowhere.json")
    assert caught.value.hint == "check the address"


@pytest.mark.parametrize("ask", [read_bytes, fingerprint])
def test_a_host_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, ask):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(KitError, match=r"http://127\.0\.0\.1:1/a\.json: 127\.0\.0\.1:1 cannot be reached: .*refused"):
        ask("http://127.0.0.1:1/a.json")


def test_a_host_that_hangs_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kit.data.sources.remote, "TIMEOUT_S", 0.1)
    web.order(hang_s=0.4)
    with pytest.raises(KitError, match=r"cannot be reached: .*timed out"):
        read_bytes(f"{web.url}/a.json")


@pytest.mark.parametrize(
    ("href", "code", "hint"),
    [
        ("s3://bucket/a.json", 403, "AWS_ACCESS_KEY_ID.*AWS_NO_SIGN_REQUEST"),
        ("s3://bucket/a.json", 301, "AWS_REGION"),
        ("URL/bucket/a.json", 403, "without a login"),
        ("URL/bucket/a.json", 503, "try again later"),
    ],
)
def test_refusals_tell_the_remedy(web: Web, href: str, code: int, hint: str):
    web.order(refuse={"/bucket/a.json": code})
    with pytest.raises(KitError, match=f"a.json: the server answers {code}") as caught:
        read_bytes(href.replace("URL", web.url))
    assert re.search(hint, caught.value.hint)


S3_ADDRESSES = [
    ("s3://data/a/b.json", {}, "https://data.s3.amazonaws.com/a/b.json"),
    ("s3://data/a b.json", {"AWS_REGION": "eu-west-1"}, "https://data.s3.eu-west-1.amazonaws.com/a%20b.json"),
    ("s3://data/a.json", {"AWS_DEFAULT_REGION": "eu-west-1"}, "https://data.s3.eu-west-1.amazonaws.com/a.json"),
    ("s3://my.data/a.json", {}, "https://s3.amazonaws.com/my.data/a.json"),
    ("s3://data/a.json", {"AWS_VIRTUAL_HOSTING": "FALSE"}, "https://s3.amazonaws.com/data/a.json"),
    ("s3://data/a.json", {"AWS_S3_ENDPOINT": "store:9000", "AWS_HTTPS": "NO"}, "http://data.store:9000/a.json"),
    ("s3://data/a.json", {"AWS_S3_ENDPOINT": "http://store:9000/"}, "http://data.store:9000/a.json"),
    ("/vsis3/data/a.json", {}, "https://data.s3.amazonaws.com/a.json"),
    ("/vsicurl/https://host/a.json", {}, "https://host/a.json"),
    ("gs://data/a b.json", {}, "https://storage.googleapis.com/data/a%20b.json"),
    ("az://data/a.json", {"AZURE_STORAGE_ACCOUNT": "me"}, "https://me.blob.core.windows.net/data/a.json"),
    ("https://host/a%20b.json?x=1&y=a/b", {}, "https://host/a%20b.json?x=1&y=a/b"),
]


@pytest.mark.parametrize(("href", "variables", "address"), S3_ADDRESSES)
def test_addresses_follow_the_variables_of_gdal(
    monkeypatch: pytest.MonkeyPatch, href: str, variables: dict[str, str], address: str
):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_S3_ENDPOINT", "AWS_HTTPS", "AWS_VIRTUAL_HOSTING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert web_address(href) == address


@pytest.mark.parametrize("href", ["az://data/a.json", "/vsizip/a.zip/a.shp"])
def test_what_has_no_address_is_named(monkeypatch: pytest.MonkeyPatch, href: str):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT", raising=False)
    with pytest.raises(KitError, match=f"{href} has no address on the web"):
        read_bytes(href)


@pytest.mark.parametrize("form", ["/vsizip/{}/in/a.shp", "/vsizip/{{{}}}/in/a.shp", "/vsizip/{}"])
def test_what_lies_in_an_archive_changes_with_it(web: Web, form: str):
    (web.folder / "a b.zip").write_bytes(b"PK")
    for place in (str(web.folder / "a b.zip"), f"/vsicurl/{web.url}/a b.zip"):
        assert fingerprint(form.format(place)) == fingerprint(place)
    assert host_of(form.format(f"/vsicurl/{web.url}/a b.zip")) == web.host


@pytest.mark.parametrize(
    ("href", "path"),
    [
        ("file:///data/a%20b.tif", "/data/a b.tif"),
        ("file://localhost/data/a.tif", "/data/a.tif"),
        ("file:/data/a.tif", "/data/a.tif"),
        ("FILE:///data/a#1?.tif", "/data/a#1?.tif"),
        ("file:///data/%E6%9D%B1.tif", "/data/東.tif"),
        ("100%20.tif", "100%20.tif"),  # no address: as it stands
    ],
)
def test_file_addresses_in_every_form(href: str, path: str):
    assert not is_remote(href)
    assert local_path(href) == Path(path)


@pytest.mark.parametrize(
    ("href", "base", "expected"),
    [
        ("a.tif", "http://host/c/catalog.json?key=1", "http://host/c/a.tif"),
        ("../a.tif", "s3://bucket/c/d/catalog.json", "s3://bucket/c/a.tif"),
        ("./x/a.tif", "/vsis3/bucket/catalog.json", "/vsis3/bucket/x/a.tif"),
        ("a.tif", "file:///data/c/catalog.json", "/data/c/a.tif"),
        ("/data/a.tif", "/other/catalog.json", "/data/a.tif"),
        ("https://host/a.tif", "/data/catalog.json", "https://host/a.tif"),
    ],
)
def test_hrefs_are_resolved_beside_their_file(href: str, base: str, expected: str):
    assert resolve(href, base) == expected


def test_quoted_names_are_found_as_they_stand_or_decoded(tmp_path: Path):
    (tmp_path / "a b.tif").touch()
    (tmp_path / "50%25.tif").touch()
    (tmp_path / "50%.tif").touch()
    base = str(tmp_path / "catalog.json")
    assert resolve("a%20b.tif", base) == str(tmp_path / "a b.tif")
    assert resolve("50%25.tif", base) == str(tmp_path / "50%25.tif")
    assert resolve("gone%20.tif", base) == str(tmp_path / "gone%20.tif")


def special(folder: Path, kind: str) -> Path:
    """Returns what reads for ever, or not at all."""
    if kind == "device":
        return Path("/dev/zero")
    if kind == "folder":
        return folder
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("ask", [read_bytes, fingerprint])
def test_only_regular_files_are_read(tmp_path: Path, kind: str, ask):
    with pytest.raises(KitError, match=r"is not a regular file"):
        ask(str(special(tmp_path, kind)))


def test_a_path_with_a_nul_is_one_error():
    with pytest.raises(KitError, match="cannot be read"):
        read_bytes("a\0.json")


def test_large_files_are_refused_before_they_are_read(web: Web):
    with (web.folder / "big.json").open("wb") as file:
        file.truncate(2 << 20)
    for href in (str(web.folder / "big.json"), f"{web.url}/big.json"):
        with pytest.raises(KitError, match="is larger than 1,048,576 bytes"):
            read_bytes(href, 1 << 20)


def test_a_server_that_never_stops_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch):
    web.order(endless=True)
    with pytest.raises(KitError, match="is larger than 1,048,576 bytes"):
        read_bytes(f"{web.url}/a.json", 1 << 20)
    monkeypatch.setattr(kit.data.sources.remote, "LONGEST_S", 0.2)
    with pytest.raises(KitError, match=r"is still being sent after 0\.2 s"):
        read_bytes(f"{web.url}/a.json", 1 << 40)


def test_hosts_are_named_once(web: Web, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(kit.data.sources.remote, "_announced", set())
    (web.folder / "a.json").write_bytes(b"{}")
    for _ in range(2):
        read_bytes(f"{web.url}/a.json")
    announce(["a.tif", f"{web.url}/a.tif", "https://far.away/a.tif", "gs://bucket/a.tif"])
    assert capsys.readouterr().err.splitlines() == [
        f"fetching from {web.host}", "fetching from far.away, storage.googleapis.com"
    ]  # fmt: skip


KEYS = {  # of the example in Amazon's documentation, which opens nothing
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
}


def test_requests_are_signed_as_amazon_documents(monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_SESSION_TOKEN", "AWS_NO_SIGN_REQUEST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    asked = {"Range": "bytes=0-9"}
    address = "https://examplebucket.s3.amazonaws.com/test.txt"
    sent = signed(address, "GET", "us-east-1", asked, datetime(2013, 5, 24, tzinfo=UTC))
    assert sent["Authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert "x-amz-security-token" in signed(address, "GET", "us-east-1", asked)["Authorization"]


@pytest.mark.parametrize("forbidden", [True, False])
def test_without_keys_or_where_forbidden_nothing_is_signed(monkeypatch: pytest.MonkeyPatch, forbidden: bool):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value if forbidden else "")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES" if forbidden else "NO")
    assert signed("https://host/a", "GET", "us-east-1", {"A": "b"}) == {"A": "b"}


def test_a_private_bucket_is_asked_with_keys_and_a_web_server_is_not(web: Web, monkeypatch: pytest.MonkeyPatch):
    (web.folder / "bucket").mkdir()
    (web.folder / "bucket" / "a.json").write_bytes(b"{}")
    web.order(private=True)
    with pytest.raises(KitError, match="the server answers 403"):
        fingerprint("s3://bucket/a.json")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "NO")
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    assert fingerprint("s3://bucket/a.json") == fingerprint("/vsis3/bucket/a.json")
    assert read_bytes("s3://bucket/a.json") == b"{}"
    with pytest.raises(KitError, match="the server answers 403"):
        read_bytes(f"{web.url}/bucket/a.json")
