"""The file server, spoken to over real sockets, also by clients that mean harm."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import pytest

from emcore.errors import InputError
from emcore.volumes import serve

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    root = tmp_path / "served"
    (root / "raw" / "8_8_40").mkdir(parents=True)
    (root / "raw" / "info").write_text(json.dumps({"scales": [], "type": "image"}))
    (root / "raw" / "8_8_40" / "0-64_0-64_0-64").write_bytes(bytes(range(256)) * 4)
    (root / "raw" / "empty").write_bytes(b"")
    (root / "a b%2e.bin").write_bytes(b"odd name")
    (root / "raw" / ".zattrs").write_text("{}")
    (root / "inside").symlink_to(root / "raw" / "info")
    (root / "outside").symlink_to(tmp_path / "secret.txt")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    return root


@pytest.fixture
def port(folder):
    yield from running(serve.server_for(str(folder), "127.0.0.1", 0, public=False))


def running(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def ask(port, target, method="GET", **headers):
    """(status, headers, body) of one request, its target sent as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.putrequest(method, target, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def send(port, data, seconds=5):
    """Everything that comes back for some bytes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


CHUNK = bytes(range(256)) * 4
CHUNK_TARGET = "/raw/8_8_40/0-64_0-64_0-64"


def test_get_sends_a_file_with_its_length_and_the_headers_that_a_viewer_needs(port):
    status, headers, body = ask(port, CHUNK_TARGET, Origin="https://neuroglancer-demo.appspot.com")
    assert (status, body) == (200, CHUNK)
    assert headers["Content-Length"] == "1024"
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["X-Content-Type-Options"] == "nosniff"
    status, headers, body = ask(port, "/raw/info?cache=no")
    assert (status, json.loads(body)["type"], headers["Content-Type"]) == (200, "image", "application/json")


def test_head_sends_the_same_headers_and_no_body(port):
    for target in (CHUNK_TARGET, "/raw/info", "/nothing"):
        status, headers, body = ask(port, target, "HEAD")
        asked = ask(port, target)
        assert (status, headers["Content-Length"], body) == (asked[0], str(len(asked[2])), b"")


def test_names_are_decoded_once_and_dot_files_and_empty_files_are_served(port):
    assert ask(port, "/a%20b%252e.bin")[2] == b"odd name"
    assert ask(port, "/raw/.zattrs")[2] == b"{}"
    assert ask(port, "/raw/empty")[0::2] == (200, b"")
    assert ask(port, "/inside")[0] == 200  # a link that stays inside


@pytest.mark.parametrize("header,start,stop", [
    ("bytes=0-0", 0, 1), ("bytes=10-19", 10, 20), ("bytes=1000-", 1000, 1024), ("bytes=-24", 1000, 1024),
    ("bytes=0-", 0, 1024), ("bytes=-5000", 0, 1024), ("bytes=1020-99999999999", 1020, 1024)])
def test_a_byte_range_gets_its_bytes(port, header, start, stop):
    status, headers, body = ask(port, CHUNK_TARGET, Range=header)
    assert (status, body) == (206, CHUNK[start:stop])
    assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/1024"
    assert headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize("header", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_beyond_the_file_is_refused_with_the_size(port, header):
    status, headers, _ = ask(port, CHUNK_TARGET, Range=header)
    assert (status, headers["Content-Range"]) == (416, "bytes */1024")


@pytest.mark.parametrize("header", ["bytes=5-2", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes=\xb2-5",
                                    "bytes=" + "9" * 5000 + "-"])
def test_a_malformed_or_multiple_range_gets_the_whole_file(port, header):
    assert ask(port, CHUNK_TARGET, Range=header)[0::2] == (200, CHUNK)


def test_a_range_on_a_condition_gets_the_whole_file(port):
    assert ask(port, CHUNK_TARGET, Range="bytes=0-3", If_Range='"tag"')[0::2] == (200, CHUNK)


ESCAPES = ["/../secret.txt", "/raw/../../secret.txt", "/%2e%2e/secret.txt", "/%2E%2E%2Fsecret.txt", "/..%2fsecret.txt",
           "/%252e%252e/secret.txt", "/%252e%252e%252fsecret.txt", "/raw/..%5c..%5csecret.txt", "/..\\secret.txt",
           "/outside", "/up/secret.txt", "/up/served/raw/info", "/loop", "/raw/./info", "/raw//info", "//etc/passwd",
           "/etc/passwd", "/%2fetc/passwd", "//%2fetc/passwd", "/raw/info%00", "/raw/info%00.json", "/%ff%fe",
           "/raw/info/", "/raw/info/x", "/%c0%ae%c0%ae/secret.txt", "etc/passwd", "*", "http://127.0.0.1/raw/info", "file:///etc/passwd",
           "/" + "a" * 5000, "/" + "a/" * 3000, "/pipe", "/", "/raw", "/raw/", "/.", "/..", "?", "/?", "/~root/.bashrc"]


@pytest.mark.parametrize("target", ESCAPES, ids=range(len(ESCAPES)))
def test_nothing_but_regular_files_below_the_folder_is_ever_sent(port, target):
    for method in (b"GET", b"HEAD"):
        answer = send(port, method + b" " + target.encode("latin-1") + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 404 "), answer[:100]
        assert b"secret" not in answer
        assert b"root:" not in answer
        assert target.encode("latin-1")[1:] not in answer.partition(b"\r\n\r\n")[2] or len(target) < 3


def test_an_absolute_path_of_a_file_inside_is_no_way_in_either(port, folder):
    assert ask(port, f"/{folder}/raw/info")[0] == 404
    assert ask(port, f"{folder}/raw/info")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "get", "X"])
def test_every_other_method_is_refused(port, folder, method):
    before = sorted(folder.rglob("*"))
    status, headers, _ = ask(port, "/raw/info", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert sorted(folder.rglob("*")) == before


def test_a_preflight_is_answered(port):
    status, headers, body = ask(port, CHUNK_TARGET, "OPTIONS", Origin="https://viewer.example",
                                Access_Control_Request_Method="GET", Access_Control_Request_Headers="range",
                                Access_Control_Request_Private_Network="true")
    assert (status, body) == (204, b"")
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert "GET" in headers["Access-Control-Allow-Methods"]
    assert headers["Access-Control-Allow-Headers"] == "Range"
    assert headers["Access-Control-Allow-Private-Network"] == "true"


@pytest.mark.parametrize("host,status", [
    ("localhost", 200), ("localhost:9000", 200), ("127.0.0.1:1", 200), ("[::1]:80", 200), ("LOCALHOST", 200),
    ("evil.example", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("evil.example:8000", 403),
    ("", 403), ("localhost@evil.example", 403), ("10.0.0.1", 403), ("localhost:80:80", 403)])
def test_a_foreign_host_name_is_refused_against_dns_rebinding(port, host, status):
    for method in ("GET", "HEAD", "OPTIONS"):
        found = ask(port, "/raw/info", method, Host=host)[0]
        assert found == (204 if (method, status) == ("OPTIONS", 200) else status)


@pytest.mark.parametrize("request_bytes", [
    b"GET /raw/info HTTP/1.1\r\n\r\n", b"GET /raw/info HTTP/1.0\r\n\r\n", b"GET /raw/info\r\n\r\n",
    b"GET /raw/info HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    b"GET /raw/info HTTP/1.1\r\nHost: localhost\r\nContent-Length: 28\r\n\r\nGET /raw/.zattrs HTTP/1.1\r\n\r\n",
    b"GET /raw/info HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /raw/info HTTP/9.9\r\nHost: localhost\r\n\r\n", b"GET /raw/info FTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /raw /info HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", b"\r\n\r\n",
    b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /raw/info HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70000 + b"\r\n\r\n",
    b"GET /raw/info HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n"], ids=range(14))
def test_a_request_that_is_none_gets_no_file_and_the_server_lives_on(port, request_bytes):
    try:
        answer = send(port, request_bytes)
    except ConnectionError:  # the server closed with bytes of ours unread
        answer = b""
    assert b"scales" not in answer
    assert not re.match(rb"HTTP/1.[01] 2", answer)
    assert ask(port, "/raw/info")[0] == 200


def test_one_connection_carries_many_requests(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    for _ in range(5):
        connection.request("GET", CHUNK_TARGET)
        assert connection.getresponse().read() == CHUNK
        connection.request("HEAD", CHUNK_TARGET)
        assert connection.getresponse().read() == b""
    connection.close()


def test_a_client_that_drips_its_request_is_cut_off(port, monkeypatch):
    monkeypatch.setattr(serve, "SECONDS_FOR_A_REQUEST", 0.5)
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as slow:
        try:
            for byte in b"GET /raw/info HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200:
                slow.sendall(bytes([byte]))
                time.sleep(0.02)
            assert slow.recv(10) == b""
        except ConnectionError:
            pass
    assert time.monotonic() - start < 4


def test_a_client_that_does_not_take_its_file_is_cut_off(port, folder, monkeypatch):
    monkeypatch.setattr(serve, "SECONDS_FOR_A_REQUEST", 0.3)
    monkeypatch.setattr(serve, "SLOWEST_BYTES_PER_SECOND", 100_000_000)
    (folder / "big").write_bytes(bytes(30_000_000))
    with socket.create_connection(("127.0.0.1", port), timeout=5) as slow:
        slow.sendall(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(1.2)
        received = 0
        try:
            while piece := slow.recv(1 << 20):
                received += len(piece)
        except ConnectionError:
            pass
    assert received < 30_000_000
    assert ask(port, "/big", "HEAD")[0] == 200


def test_connections_beyond_the_limit_are_closed_and_places_come_back(folder, monkeypatch):
    monkeypatch.setattr(serve, "MOST_CONNECTIONS", 3)
    with_server = running(serve.server_for(str(folder), "127.0.0.1", 0, public=False))
    port = next(with_server)
    idle = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(3)]
    time.sleep(0.2)
    with contextlib.suppress(ConnectionError):
        assert send(port, b"GET /raw/info HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
    for connection in idle:
        connection.close()
    time.sleep(0.2)
    assert ask(port, "/raw/info")[0] == 200
    next(with_server, None)


def test_a_large_file_arrives_whole_for_several_clients_at_once(port, folder):
    data = os.urandom(5_000_000)
    (folder / "big").write_bytes(data)
    bodies = []
    threads = [threading.Thread(target=lambda: bodies.append(ask(port, "/big")[2])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [body == data for body in bodies] == [True] * 6


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_address_that_others_can_reach_needs_an_explicit_flag(folder, host):
    with pytest.raises(InputError, match=r"to other machines; add --public"):
        serve.server_for(str(folder), host, 0, public=False)


def test_a_public_server_answers_to_any_host_name(folder):
    with_server = running(serve.server_for(str(folder), "0.0.0.0", 0, public=True))
    port = next(with_server)
    assert ask(port, "/raw/info", Host="node17.cluster.example:80")[0] == 200
    assert ask(port, "/../secret.txt")[0] == 404
    next(with_server, None)


def test_precomputed_and_zarr_folders_are_found_at_any_depth_but_not_through_links(tmp_path):
    (tmp_path / "a" / "raw").mkdir(parents=True)
    (tmp_path / "a" / "raw" / "info").write_text('{"scales": [], "type": "image"}')
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "info").write_text('{"scales": [], "type": "segmentation"}')
    (tmp_path / "c.zarr" / "volume").mkdir(parents=True)
    (tmp_path / "c.zarr" / "zarr.json").write_text('{"node_type": "group"}')
    (tmp_path / "c.zarr" / "volume" / "zarr.json").write_text('{"node_type": "array"}')
    (tmp_path / "ome").mkdir()
    (tmp_path / "ome" / ".zattrs").write_text('{"multiscales": []}')
    (tmp_path / "ome5").mkdir()
    (tmp_path / "ome5" / "zarr.json").write_text('{"node_type": "group", "attributes": {"ome": {"multiscales": []}}}')
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / ".zarray").write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "info").write_text("[" * 10000)
    (tmp_path / "link").symlink_to(tmp_path / "labels")
    assert serve.find_volumes(tmp_path) == [
        ("a/raw", "precomputed", "image"), ("c.zarr/volume", "zarr", "auto"), ("labels", "precomputed", "segmentation"),
        ("old", "zarr", "auto"), ("ome", "zarr", "auto"), ("ome5", "zarr", "auto")]
    assert serve.find_volumes(tmp_path / "labels") == [(".", "precomputed", "segmentation")]


def test_the_link_holds_the_layers_as_json():
    link = serve.viewer_link("http://127.0.0.1:8000", [("a b/raw", "precomputed", "image"), (".", "zarr", "auto")])
    address, _, state = link.partition("/#!")
    assert address == serve.VIEWER
    assert re.fullmatch(r"[A-Za-z0-9%_.~-]+", state)
    assert json.loads(unquote(state))["layers"] == [
        {"type": "image", "name": "a b/raw", "source": "precomputed://http://127.0.0.1:8000/a%20b/raw"},
        {"type": "auto", "name": "volume", "source": "zarr://http://127.0.0.1:8000"}]


def test_the_command_prints_its_address_and_the_link_and_ends_with_the_interrupt(folder):
    # a suite that runs in the background has interrupts ignored, and so would the server
    process = subprocess.Popen([sys.executable, "-m", "emcore", "serve", folder, "--port", "0"], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    first, link = process.stdout.readline(), process.stdout.readline()
    found = re.fullmatch(rf"serving {folder} at http://127\.0\.0\.1:(\d+) until Ctrl-C\n", first)
    assert found, first
    assert f"precomputed://http://127.0.0.1:{found[1]}/raw" in unquote(link)
    assert ask(int(found[1]), "/raw/info")[0] == 200
    process.send_signal(2)
    assert process.wait(timeout=10) == 0
    assert process.stderr.read() == ""


@pytest.mark.parametrize("arguments,text", [
    (["nowhere"], "nowhere is not a folder"), ([".", "--host", "0.0.0.0"], "add --public"),
    ([".", "--port", "70000"], "0 to 65535"), ([".", "--host", "no.such.host.invalid"], "cannot be resolved")])
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, text):
    done = subprocess.run([sys.executable, "-m", "emcore", "serve", *arguments], cwd=ROOT, capture_output=True,
                          text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_taken_port_is_one_sentence(port, folder):
    with pytest.raises(InputError, match=rf"cannot listen on 127.0.0.1 port {port} .* 0 for any free one"):
        serve.server_for(str(folder), "127.0.0.1", port, public=False)
