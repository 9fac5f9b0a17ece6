"""python -m emcore serve: the files of one folder over HTTP, for Neuroglancer in the browser of this machine.

GET, HEAD and byte ranges of regular files below the folder, and nothing else. Any page open in the browser may read
what is served (that is what lets the viewer in), so serve folders that you would show, and stop when done.
"""

import argparse
import contextlib
import ipaddress
import json
import os
import re
import socket
import socketserver
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

from emcore.errors import InputError
from emcore.volumes.formats import UNFINISHED

VIEWER = "https://neuroglancer-demo.appspot.com"
PORT = 8000
SERVED_AT = f"http://127.0.0.1:{PORT}"  # The addresses in a view lead here, unless it is served elsewhere.
VIEW = "view.json"  # the state of the viewer that belongs to a folder
SECONDS_FOR_A_REQUEST = 20.0
SLOWEST_BYTES_PER_SECOND = 10_000
MOST_CONNECTIONS = 64
MOST_FOLDERS_SEARCHED = 2000
MOST_JSON_BYTES = 1 << 20
CONTENT_TYPES = {"info": "application/json", ".json": "application/json", ".png": "image/png"}
ON_EVERY_ANSWER = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Accept-Ranges, Content-Length, Content-Range",
    "X-Content-Type-Options": "nosniff",
}
ON_A_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": "Range",
    "Access-Control-Allow-Private-Network": "true",  # a public page asks before it reads from this machine
    "Access-Control-Max-Age": "86400",
}


class FolderHandler(BaseHTTPRequestHandler):
    """Answers the requests of one connection to a FolderServer."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "emcore", ""
    disable_nagle_algorithm = True  # or a small chunk waits until its headers are acknowledged
    timeout = SECONDS_FOR_A_REQUEST

    def handle_one_request(self) -> None:
        # The timeout of a socket starts anew with each byte; a request that drips in is cut off as a whole.
        with deadline(self.connection, SECONDS_FOR_A_REQUEST) as self.request_timer:
            super().handle_one_request()

    def do_OPTIONS(self) -> None:
        if self._acceptable():
            self._head(204, ON_A_PREFLIGHT)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if not self._acceptable():
            return
        file = open_below(self.server.root, self.path)
        if file is None:
            self.send_error(404, "no such file")
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            # Answers carry no validator, so a range on a condition gets the whole file.
            part = byte_range(self.headers.get("Range", ""), size) if "If-Range" not in self.headers else None
            start, stop = part or (0, size)
            if part and start >= stop:
                self.send_error(416, "no such range", {"Content-Range": f"bytes */{size}"})
                return
            name = Path(self.path.partition("?")[0])
            kind = CONTENT_TYPES.get(name.suffix or name.name, "application/octet-stream")
            self._head(206 if part else 200, {
                "Content-Type": kind, "Content-Length": str(stop - start), "Accept-Ranges": "bytes",
                "Cache-Control": "no-cache", **({"Content-Range": f"bytes {start}-{stop - 1}/{size}"} if part else {})})
            if self.command == "GET" and stop > start:
                self._send(file, start, stop - start)

    def _acceptable(self) -> bool:
        """Whether to answer the request; sends the refusal otherwise."""
        self.request_timer.cancel()
        hosts = self.headers.get_all("Host", [])
        if "Transfer-Encoding" in self.headers or self.headers.get("Content-Length", "0") != "0":
            self.send_error(400, "a request must not have a body")
        elif len(hosts) != 1:
            self.send_error(400, "a request needs one Host header")
        elif self.server.loopback and not is_loopback_name(hosts[0]):
            # A page whose own name was made to resolve to this machine (DNS rebinding) would get past CORS.
            self.send_error(403, "this server answers to localhost only")
        else:
            return True
        return False

    def _send(self, file: BinaryIO, start: int, count: int) -> None:
        with deadline(self.connection, SECONDS_FOR_A_REQUEST + count / SLOWEST_BYTES_PER_SECOND):
            sent = self.connection.sendfile(file, start, count)
        if sent != count:  # the file shrank meanwhile and the promised length is wrong
            self.close_connection = True

    def _head(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, **ON_EVERY_ANSWER}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str = "", explain: dict[str, str] | str | None = None) -> None:
        """Sends a refusal in plain text, which repeats nothing of the request, and ends the connection."""
        headers = explain if isinstance(explain, dict) else {}
        if code == 501:  # what the base class says to a method without a do_METHOD
            code, message, headers = 405, "only GET, HEAD and OPTIONS", {"Allow": "GET, HEAD, OPTIONS"}
        body = f"{int(code)} {message if self.command else 'not a request'}\n".encode("ascii", "replace")
        self.close_connection = True
        self._head(code, {"Content-Type": "text/plain", "Content-Length": str(len(body)), "Connection": "close",
                          **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        """Says nothing: a view asks for thousands of chunks."""


class FolderServer(socketserver.ThreadingTCPServer):
    """Serves the folder `root`, one thread a connection and MOST_CONNECTIONS at a time."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, root: Path, family: socket.AddressFamily, address: tuple):
        self.root, self.address_family = root.resolve(), family
        self.loopback = ipaddress.ip_address(address[0]).is_loopback
        self.places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, FolderHandler)

    def process_request(self, request, client_address) -> None:
        if self.places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that went away is no error
            super().handle_error(request, client_address)


@contextlib.contextmanager
def deadline(connection: socket.socket, seconds: float) -> Iterator[threading.Timer]:
    """A context that cuts the connection when it lasts longer than `seconds`."""
    def cut():
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield timer
    finally:
        timer.cancel()


def open_below(root: Path, target: str) -> BinaryIO | None:
    """The regular file that a request's target names below the resolved folder `root`, or None for all others."""
    try:
        parts = unquote(target.partition("?")[0], errors="strict").split("/")  # once: a second time would undo %252e
    except UnicodeDecodeError:
        return None
    if parts[0] or any(part in ("", ".", "..") or re.search(r"[\\\0]", part) for part in parts[1:]):
        return None
    path = root
    try:
        for part in parts[1:]:
            path = (path / part).resolve(strict=True)
            if not path.is_relative_to(root):  # a link that leads outside, even if the next part leads back in
                return None
        file = open(path, "rb", opener=open_without_waiting)  # noqa: SIM115 (the caller closes it)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
        return None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        return None
    return file


def open_without_waiting(path: str, flags: int) -> int:
    """A descriptor that is no link, obtained without waiting for the writer of a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """[start, stop) of a Range header; None where it is absent, malformed or of several parts: send the whole."""
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header.strip())
    if not match or match[0].endswith("=-"):
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size


def is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine by localhost or a loopback address; any port, for tunnels."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]*)?", host.strip())
    name = (match[1] or match[2]).lower() if match else ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def resolve_host(host: str, port: int) -> tuple[socket.AddressFamily, tuple]:
    """The address family and the socket address of a host name."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host} cannot be resolved ({error}); 127.0.0.1 always works") from error
    return family, address


def find_volumes(root: Path) -> list[tuple[str, str, str]]:
    """(path below root, Neuroglancer driver, layer type) of each precomputed and zarr volume; searches some levels."""
    found, waiting = [], [root]
    for folder in waiting:  # grows while it is read: breadth first
        if folder.name.endswith(UNFINISHED):
            continue
        kind = volume_kind(folder)
        if kind:
            found.append((folder.relative_to(root).as_posix(), *kind))
            if (folder / "labels").is_dir():  # those of an OME-Zarr image
                waiting.append(folder / "labels")
        elif len(folder.relative_to(root).parts) < 4:
            with contextlib.suppress(OSError):
                inner = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
                waiting += [folder / name for name in inner[:max(0, MOST_FOLDERS_SEARCHED - len(waiting))]]
    return sorted(found)


def volume_kind(folder: Path) -> tuple[str, str] | None:
    """(Neuroglancer driver, layer type) of a folder that is a volume, else None."""
    info = read_json(folder / "info")
    if isinstance(info.get("scales"), list):
        return "precomputed", "segmentation" if info.get("type") == "segmentation" else "image"
    node, attributes = read_json(folder / "zarr.json"), read_json(folder / ".zattrs")
    if node.get("node_type") == "array" or (folder / ".zarray").is_file():
        return "zarr", "auto"
    inner = node.get("attributes")
    inner = inner.get("ome") if isinstance(inner, dict) else None
    for about in (attributes, inner):
        if isinstance(about, dict) and "multiscales" in about:
            return "zarr", "segmentation" if "image-label" in about else "auto"
    return None


def read_json(path: Path) -> dict:
    """The JSON object in a small file, or {} where there is none."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(MOST_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def viewer_link(url: str, volumes: Sequence[tuple[str, str, str]]) -> str:
    """The address that opens the volumes, served at url, as layers of one view."""
    layers = [{"type": kind, "name": "volume" if path == "." else path,
               "source": f"{driver}://{url}" + ("" if path == "." else f"/{quote(path)}")}
              for path, driver, kind in volumes]
    return link_to({"layers": layers})


def link_to(state: dict) -> str:
    """The address that opens a state of the viewer."""
    return f"{VIEWER}/#!{quote(json.dumps(state, separators=(',', ':')), safe='')}"


def link_of_view(url: str, root: Path) -> str | None:
    """The address that opens the view in a folder, served at url; None where python -m emcore view has not made one."""
    state = read_json(root / VIEW)
    return link_to(json.loads(json.dumps(state).replace(SERVED_AT, url))) if state else None


def server_for(folder: str, host: str, port: int, public: bool) -> FolderServer:
    """A server bound to host and port, not yet answering."""
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder; serve needs the folder that holds the volumes")
    if not 0 <= port <= 65535:
        raise InputError(f"--port must be 0 to 65535; got {port}")
    family, address = resolve_host(host, port)
    if not ipaddress.ip_address(address[0]).is_loopback and not public:
        raise InputError(f"--host {host} would show {folder} to other machines; add --public if that is what you want, "
                         "or tunnel: ssh -L PORT:localhost:PORT")
    try:
        return FolderServer(Path(folder), family, address)
    except OSError as error:
        raise InputError(f"cannot listen on {host} port {port} ({error.strerror}); "
                         "try another --port, or 0 for any free one") from error


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m emcore serve", description="Serve a folder of volumes for Neuroglancer and print the links.",
        epilog="On a cluster node: ssh -L 8000:localhost:8000 NODE, and open the link on your own machine.")
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, default=PORT, help="0 takes any free one (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--public", action="store_true", help="allow a --host that other machines can reach")
    settings = parser.parse_args(arguments)
    with server_for(settings.folder, settings.host, settings.port, settings.public) as server:
        name = server.server_address[0]
        name = socket.gethostname() if ipaddress.ip_address(name).is_unspecified else name
        url = f"http://{f'[{name}]' if ':' in name else name}:{server.server_address[1]}"
        print(f"serving {server.root} at {url} until Ctrl-C")
        volumes = find_volumes(server.root)
        for volume in volumes:
            print(f"{volume[0]}: {viewer_link(url, [volume])}")
        if len(volumes) > 1:
            print(f"all {len(volumes)} in one view: {viewer_link(url, volumes)}")
        if view := link_of_view(url, server.root):
            print(f"the view of {VIEW}: {view}")
        if not volumes:
            print("no precomputed or zarr volume in it; make one with: python -m emcore convert A.h5 B.precomputed")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
