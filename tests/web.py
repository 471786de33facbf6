"""A small web server for tests: files whole or in part, with what tells that they have changed.

It is a process of its own: rasterio holds Python's lock while GDAL waits for an answer.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Web:
    """A folder that is served.

    Args:
        folder: what is served.
        host: name and port.
        notes: a folder for the server's orders and its log.
    """

    folder: Path
    host: str
    notes: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def order(
        self, refuse: dict[str, int] | None = None, silent: bool = False, hang_s: float = 0.0, private: bool = False,
        endless: bool = False,
    ) -> None:  # fmt: skip
        """Says how to answer from now on.

        Args:
            refuse: the status of paths, by their end, or by method and path: `{"HEAD /a.tif": 403}`.
            silent: tell no ETag, Last-Modified or Content-Length.
            hang_s: wait before each answer.
            private: refuse what is not signed.
            endless: never stop sending.
        """
        orders = {"refuse": refuse or {}, "silent": silent, "hang_s": hang_s, "private": private, "endless": endless}
        text = json.dumps(orders)
        (self.notes / "orders.json").write_text(text)

    @property
    def asked(self) -> list[tuple[str, str, int, int]]:
        """Method, path, status and bytes of every answer."""
        log = self.notes / "log"
        return [tuple(json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []


@contextmanager
def serve(folder: Path, notes: Path) -> Iterator[Web]:
    """Serves a folder on a free port of this machine while the block runs."""
    command = [sys.executable, "-I", "-S", __file__, str(folder), str(notes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            web = Web(folder, f"127.0.0.1:{process.stdout.readline().strip()}", notes)
            web.order()
            yield web
        finally:
            process.terminate()


class _Handler(BaseHTTPRequestHandler):
    folder: Path
    notes: Path

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        orders = json.loads((self.notes / "orders.json").read_text())
        time.sleep(orders["hang_s"])
        path = unquote(urlsplit(self.path).path)
        if orders["endless"]:
            self.send_response(200)
            with suppress(ConnectionError):
                self.end_headers()
                while True:
                    self.wfile.write(b" " * 65536)
        file = self.folder / path.lstrip("/")
        status = 200 if file.is_file() else 404
        for end, code in orders["refuse"].items():
            if f"{self.command} {path}".endswith(end):
                status = code
        if orders["private"] and not self.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256"):
            status = 403
        content = file.read_bytes() if status == 200 else b""
        headers = {"Content-Length": str(len(content))}
        if status == 200:
            stat = file.stat()
            headers |= {"ETag": f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"', "Accept-Ranges": "bytes"}
            headers["Last-Modified"] = self.date_time_string(int(stat.st_mtime))
            if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                whole = len(content)
                first, last = int(part[1]), min(int(part[2] or whole - 1), whole - 1)
                status, content = 206, content[first : last + 1]
                headers["Content-Length"] = str(len(content))
                headers["Content-Range"] = f"bytes {first}-{last}/{whole}"
        self.send_response(status)
        for name, value in ({} if orders["silent"] else headers).items():
            self.send_header(name, value)
        sent = b"" if self.command == "HEAD" else content
        with (self.notes / "log").open("a") as log:  # before the client has its answer, and looks here
            log.write(json.dumps([self.command, path, status, len(sent)]) + "\n")
        with suppress(ConnectionError):  # the client may have given up
            self.end_headers()
            self.wfile.write(sent)

    do_HEAD = do_GET  # noqa: N815


if __name__ == "__main__":
    _Handler.folder, _Handler.notes = map(Path, sys.argv[1:])
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
