"""A web server of this machine for tests: the files of a folder, and everything that goes wrong on the way to them."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, name = self.server, unquote(self.path.partition("?")[0])
        with server.lock:
            server.requests.append(self.path)
            number = len(server.requests)
        trouble = server.trouble if number > server.after and (number % server.every == 0) else ""
        time.sleep(server.delay)
        if trouble == "drop":
            self.close_connection = True
            return
        if trouble.isdigit():
            self.answer(int(trouble), b"")
            return
        name = re.sub("^/storage/v1/b/([^/]+)/o/", r"/\1/", name)  # as buckets of Google are asked
        path = server.root / name.lstrip("/")
        if not path.is_file():
            self.answer(404, b"")
            return
        data, changed, code = path.read_bytes(), path.stat().st_mtime_ns, 200
        headers = {"ETag": f'"{changed}"', "x-goog-generation": str(changed)}
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            low = int(first) if first else max(0, len(data) - int(last))
            high = min(len(data), int(last) + 1) if first and last else len(data)
            if low >= len(data):
                self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {low}-{high - 1}/{len(data)}"
            data, code = data[low:high], 206
        self.answer(code, data, headers, cut=trouble == "truncate")

    def answer(self, code: int, data: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[:len(data) // 2] if cut else data)
        self.close_connection |= cut


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # a reader opens many connections at once


@contextmanager
def served(root: Path, trouble: str = "", after: int = 0, every: int = 1, delay: float = 0.0) -> Iterator:
    """A server whose `address` names the folder; trouble: drop, truncate, or a number of a refusal such as 500.

    It comes with every request beyond `after` whose number is a multiple of `every`; delay: seconds before each answer.
    """
    server = Server(("127.0.0.1", 0), Handler)
    server.root, server.lock, server.requests = root, threading.Lock(), []
    server.trouble, server.after, server.every, server.delay = trouble, after, every, delay
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
