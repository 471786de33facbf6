"""Published weights over a local server: whole, in parts, and not as they should be."""

import csv
import hashlib
import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from archives import with_line
from deploy_fakes import export_tiny

from kit.deploy.weights import fetch as fetching
from kit.deploy.weights.fetch import fetch, find_weights
from kit.deploy.weights.load import load_weights, newest_weights
from kit.errors import KitError, WeightsError
from kit.pipeline.export import Exported
from kit.system.files import locked, sha256_of

Cli = Callable[..., tuple[int, str, str]]


class Server(ThreadingHTTPServer):
    """Serves one file, in the way that a test asks for.

    Attributes:
        content: of the file at any path that ends in .pt.
        breaks_at: the connection ends after so many bytes of an answer.
        ranges: whether it answers a part of the file with a part.
        shift: bytes that a part begins too late.
        status: of every answer, instead of the file.
        length: whether it tells how long the file is.
        asked: path and Range of every request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.breaks_at, self.ranges, self.shift, self.status, self.length = b"", None, True, 0, 0, True
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, byte_range = self.server, self.headers.get("Range")
        server.asked.append((self.path, byte_range))
        content, whole = server.content, len(server.content)
        if server.status or not self.path.split("?")[0].endswith(".pt"):
            self.send_error(server.status or 404)
            return
        if byte_range and server.ranges:
            first = int(byte_range.removeprefix("bytes=").removesuffix("-")) + server.shift
            if first >= whole:
                self.send_error(416)
                return
            content = content[first:]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
        else:
            self.send_response(200)
        if server.length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: server.breaks_at])


@pytest.fixture
def server(tiny_weights: Exported) -> Iterator[Server]:
    """Serves the tiny weights."""
    with Server() as server:
        server.content = tiny_weights.path.read_bytes()
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def left(folder: Path) -> list[Path]:
    """Parts that a fetch has left."""
    return sorted(folder.glob(".*.part"))


def test_fetched_weights_are_as_exported_ones(server: Server, tiny_weights: Exported, tmp_path: Path):
    export_tiny(tmp_path, "mine", "none", (1,))
    path = fetch(f"{server.url}/some/where/best.pt?token=a/b", sha256(server.content).upper(), tmp_path)
    assert path == tmp_path / "best.pt"
    assert path.read_bytes() == server.content
    assert json.loads(path.with_suffix(".json").read_text()) == json.loads(
        tiny_weights.path.with_suffix(".json").read_text()
    )
    assert [row["name"] for row in rows(tmp_path)] == ["mine", "best"]
    expected = rows(tiny_weights.path.parent)[0]
    assert rows(tmp_path)[1] == expected | {"name": "best"}
    assert newest_weights(tmp_path) == path
    assert load_weights(path).card == tiny_weights.card
    assert left(tmp_path) == []


def test_what_is_here_is_used_without_the_network(server: Server, tmp_path: Path):
    url, sum_ = f"{server.url}/best.pt", sha256(server.content)
    first = fetch(url, sum_, tmp_path)
    export_tiny(tmp_path, "mine", "none", (1,))
    before = first.stat().st_mtime_ns
    server.asked.clear()
    assert fetch(url, sum_, tmp_path) == first
    assert server.asked == []
    assert first.stat().st_mtime_ns == before
    assert [row["name"] for row in rows(tmp_path)] == ["best", "mine"]  # it was listed already
    first.with_suffix(".json").unlink()
    (tmp_path / "index.csv").unlink()
    fetch(url, sum_, tmp_path)
    assert [row["name"] for row in rows(tmp_path)] == ["best"]
    assert first.with_suffix(".json").is_file()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_break_is_gone_on_with(server: Server, tmp_path: Path, ranges: bool):
    url, sum_, server.ranges, server.breaks_at = f"{server.url}/best.pt", sha256(server.content), ranges, 5000
    with pytest.raises(WeightsError, match=f"ended after 5,000 of {len(server.content):,} bytes") as error:
        fetch(url, sum_, tmp_path)
    assert "rerun to resume" in error.value.hint
    (part,) = left(tmp_path)
    assert part.read_bytes() == server.content[:5000]
    assert not (tmp_path / "index.csv").exists()
    server.breaks_at = None
    assert fetch(url, sum_, tmp_path).read_bytes() == server.content
    assert [byte_range for _, byte_range in server.asked] == [None, "bytes=5000-"]
    assert left(tmp_path) == []


def test_a_break_that_no_length_tells(server: Server, tmp_path: Path):
    server.length, server.breaks_at = False, 5000
    with pytest.raises(WeightsError, match=f"has sha256 {sha256(server.content[:5000])}, expected"):
        fetch(f"{server.url}/best.pt", sha256(server.content), tmp_path)
    server.breaks_at = None
    assert fetch(f"{server.url}/best.pt", sha256(server.content), tmp_path).read_bytes() == server.content


def test_a_part_that_is_whole_needs_a_name_only(server: Server, tmp_path: Path):
    url, sum_, server.breaks_at = f"{server.url}/best.pt", sha256(server.content), 5000
    with pytest.raises(WeightsError):
        fetch(url, sum_, tmp_path)
    left(tmp_path)[0].write_bytes(server.content)
    assert fetch(url, sum_, tmp_path).read_bytes() == server.content
    assert server.asked[-1] == ("/best.pt", f"bytes={len(server.content)}-")


@pytest.mark.parametrize("size", [100, 10**7])
def test_a_part_of_something_else_is_begun_anew(server: Server, tmp_path: Path, size: int):
    """As when the address held another file at first."""
    url, sum_, server.breaks_at = f"{server.url}/best.pt", sha256(server.content), 5000
    with pytest.raises(WeightsError):
        fetch(url, sum_, tmp_path)
    left(tmp_path)[0].write_bytes(b"\1" * size)
    server.breaks_at = None
    assert fetch(url, sum_, tmp_path).read_bytes() == server.content
    assert [byte_range for _, byte_range in server.asked] == [None, f"bytes={size}-", None]


def test_another_sum(server: Server, tmp_path: Path):
    expected, found = "0" * 64, sha256(server.content)
    with pytest.raises(WeightsError, match=f"has sha256 {found}, expected {expected}") as error:
        fetch(f"{server.url}/best.pt", expected, tmp_path)
    assert "do not use it" in error.value.hint
    assert len(server.asked) == 1
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_a_file_of_that_name_is_never_replaced(server: Server, tmp_path: Path):
    (tmp_path / "best.pt").write_bytes(b"mine")
    with pytest.raises(WeightsError, match=f"there already, with sha256 {sha256(b'mine')}, expected") as error:
        fetch(f"{server.url}/best.pt", sha256(server.content), tmp_path)
    assert "move it away" in error.value.hint
    assert (tmp_path / "best.pt").read_bytes() == b"mine"
    assert server.asked == []


def test_a_part_from_elsewhere_in_the_file(server: Server, tmp_path: Path):
    url, sum_, server.breaks_at = f"{server.url}/best.pt", sha256(server.content), 5000
    with pytest.raises(WeightsError):
        fetch(url, sum_, tmp_path)
    server.shift = 7
    with pytest.raises(WeightsError, match=r"asked for bytes from 5000, the server sends 'bytes 5007-") as error:
        fetch(url, sum_, tmp_path)
    assert left(tmp_path)[0].name in error.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not weights", r"http.*best\.pt is not a weights file"), (None, r"http.*best\.pt is refused.*torch\.from_file")],
)
def test_the_right_sum_of_something_else(
    server: Server, tiny_weights: Exported, tmp_path: Path, content: bytes | None, message: str
):
    if content is None:
        line = 'y = torch.from_file("/etc/hostname", False, 4)'
        content = with_line(tiny_weights.path, tmp_path / "evil", line).read_bytes()
    server.content, folder = content, tmp_path / "weights"
    with pytest.raises(WeightsError, match=message) as error:
        fetch(f"{server.url}/best.pt", sha256(content), folder)
    assert ".part" not in error.value.message
    assert [path.name for path in folder.iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize(("status", "hint"), [(404, "check the address"), (403, "login"), (503, "later")])
def test_refused_by_the_server(server: Server, tmp_path: Path, status: int, hint: str):
    server.status = status
    with pytest.raises(WeightsError, match=rf"http.*best\.pt: the server answers {status} ") as error:
        fetch(f"{server.url}/best.pt", "0" * 64, tmp_path)
    assert hint in error.value.hint


def test_no_network(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(WeightsError, match=r"127\.0\.0\.1:\d+ cannot be reached: .*refused") as error:
            fetch(f"http://{host}/best.pt", "0" * 64, tmp_path)
    assert "connection" in error.value.hint


def test_a_server_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetching, "TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(WeightsError, match=r"cannot be reached: .*timed out"):
            fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/best.pt", "0" * 64, tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk(server: Server, tmp_path: Path):
    sum_ = sha256(server.content)
    (tmp_path / f".best.pt.{sum_[:12]}.part").symlink_to("/dev/full")
    with pytest.raises(WeightsError, match=r"cannot write .*\.part: No space left") as error:
        fetch(f"{server.url}/best.pt", sum_, tmp_path)
    assert "free some space" in error.value.hint


class Endless(Handler):
    """Sends bytes without telling how many, one every `pause` seconds, until the other side hangs up."""

    pause = 0.0

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b" " * (1 if self.pause else 2**16))
                time.sleep(self.pause)
        except OSError:
            self.close_connection = True


@pytest.mark.parametrize(
    ("pause", "message"), [(0.0, "has more than 1,000,000 bytes"), (0.02, "the server sends too slowly")]
)
def test_a_server_that_never_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: float, message: str):
    monkeypatch.setattr(fetching, "LIMIT_BYTES", 10**6)
    monkeypatch.setattr(fetching, "STALL_S", 0.3)
    monkeypatch.setattr(Endless, "pause", pause)
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as endless:
        endless.daemon_threads = True
        Thread(target=endless.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(WeightsError, match=message):
            fetch(f"http://127.0.0.1:{endless.server_port}/best.pt", "0" * 64, tmp_path)
        endless.shutdown()
    assert not (tmp_path / "best.pt").exists()
    parts = list(tmp_path.glob("*.part"))
    assert len(parts) == (pause > 0), "only one that may be resumed stays on the disk"


def test_a_length_beyond_the_limit_is_refused_before_it_is_read(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetching, "LIMIT_BYTES", 1000)
    with pytest.raises(WeightsError, match="has more than 1,000 bytes: too large for weights"):
        fetch(f"{server.url}/best.pt", sha256(server.content), tmp_path)
    assert left(tmp_path) == []


def test_files_of_others_beside_the_name_are_kept(server: Server, tmp_path: Path):
    (tmp_path / "best.json").write_text("mine")
    with pytest.raises(KitError, match=r"best\.json exists and was not written by kit"):
        fetch(f"{server.url}/best.pt", sha256(server.content), tmp_path)
    assert (tmp_path / "best.json").read_text() == "mine"
    assert server.asked == []


def test_two_at_once(server: Server, tmp_path: Path):
    with locked(tmp_path / "best.pt"), pytest.raises(KitError, match="another process"):
        fetch(f"{server.url}/best.pt", sha256(server.content), tmp_path)
    assert server.asked == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://host.org/", "ends in no name for a file"),
        ("https://host.org", "ends in no name for a file"),
        ("https://host.org/?name=best.pt", "ends in no name for a file"),
        ("https://host.org/.pt", "ends in no name for a file"),
        ("https://host.org/..", "ends in no name for a file"),
        ("https://host.org/.hidden.pt", "ends in no name for a file"),
        ("https://host.org/a%0Ab.pt", "ends in no name for a file"),
        ("https://host.org/a%5C..%5Cb.pt", "ends in no name for a file"),
        ("file:///etc/passwd", "cannot be fetched, expected http:// or https://"),
        ("ftp://host.org/best.pt", "cannot be fetched"),
        ("s3://bucket/best.pt", "cannot be fetched"),
        ("http:///best.pt", "cannot be fetched"),
    ],
)
def test_addresses_without_a_file(tmp_path: Path, url: str, message: str):
    with pytest.raises(WeightsError, match=message) as error:
        fetch(url, "0" * 64, tmp_path)
    assert "--weights FILE" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_names_stay_in_the_folder(server: Server, tmp_path: Path):
    path = fetch(f"{server.url}/a%2F..%2F..%2Fbest.pt", sha256(server.content), tmp_path / "weights")
    assert path == tmp_path / "weights/best.pt"


@pytest.mark.parametrize("sum_", ["0" * 63, "0" * 65, "g" * 64, "sha256:" + "0" * 64])
def test_what_is_no_sum(tmp_path: Path, sum_: str):
    for given in ("https://host.org/best.pt", str(tmp_path / "best.pt"), ""):
        with pytest.raises(WeightsError, match="is not a SHA-256, expected 64 hex digits"):
            find_weights(given, sum_, tmp_path)


def test_an_address_without_a_sum(tmp_path: Path):
    with pytest.raises(WeightsError, match="comes without a checksum, and no download is loaded unchecked") as error:
        find_weights("https://host.org/best.pt", "", tmp_path)
    assert "--sha256" in error.value.hint


def test_files_and_the_newest_can_be_held_against_a_sum(tiny_weights: Exported, tmp_path: Path):
    path, folder = tiny_weights.path, tiny_weights.path.parent
    for given in (str(path), ""):
        assert find_weights(given, "", folder) == find_weights(given, sha256_of(path), folder) == path
        with pytest.raises(WeightsError, match=rf"tiny\.pt has sha256 {sha256_of(path)}, expected 0000"):
            find_weights(given, "0" * 64, folder)
    assert find_weights(str(tmp_path / "none.pt"), "0" * 64, folder) == tmp_path / "none.pt"  # loading it tells


def test_weights_are_named_by_their_path_or_by_their_name_in_the_folder(tmp_path: Path):
    other = tmp_path / "frozen.torchscript"
    other.touch()
    for given, path in (
        ("tiny", tmp_path / "tiny.pt"), ("tiny.v2", tmp_path / "tiny.v2.pt"), ("tiny.pt", Path("tiny.pt")),
        ("a/tiny.v2", Path("a/tiny.v2.pt")), (str(other), other),
    ):  # fmt: skip
        assert find_weights(given, "", tmp_path) == path


def test_submit_fetches(server: Server, chips: Path, tmp_path: Path, cli: Cli):
    options = ("--weights", f"{server.url}/best.pt", "--sha256", sha256(server.content), "--root", tmp_path)
    code, out, err = cli("submit", chips, *options)
    assert code == 0, err
    assert out.splitlines()[-1] == str(tmp_path / "submissions/best-chips.tgz")
    assert "fetch best.pt, MB 1/1" in err
    code, out, err = cli("submit", chips, "--name", "again", "--root", tmp_path)  # the newest now
    assert code == 0, err
    masks = [(tmp_path / f"submissions/{name}/a.tif").read_bytes() for name in ("best-chips", "again")]
    assert masks[0] == masks[1]


def test_submit_takes_no_unchecked_download(server: Server, chips: Path, tmp_path: Path, cli: Cli):
    code, _, err = cli("submit", chips, "--weights", f"{server.url}/best.pt", "--root", tmp_path)
    assert code == 1
    assert "without a checksum" in err
    assert "--sha256" in err.splitlines()[-1]
    assert server.asked == []
    assert not (tmp_path / "weights").exists()


def test_submit_checks_a_file(tiny_weights: Exported, chips: Path, tmp_path: Path, cli: Cli):
    shutil.copy(tiny_weights.path, tmp_path / "w.pt")
    code, _, err = cli("submit", chips, "--weights", tmp_path / "w.pt", "--sha256", "0" * 64, "--root", tmp_path)
    assert code == 1
    assert "expected 000" in err
    assert not (tmp_path / "submissions").exists()
