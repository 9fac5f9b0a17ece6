"""Downloads against a server of our own: whole, resumed after a break, checked, refused in one sentence."""

import hashlib
import http.server
import io
import threading
import zipfile
from dataclasses import replace
from typing import ClassVar

import h5py
import numpy as np
import pytest

from emcore.errors import InputError, run_command
from emcore.systems.dbmim import prepare
from emcore.volumes import download
from emcore.volumes.download import SOURCES, Download, check_address, fetch, main, unpack

CONTENT = bytes(range(256)) * 9000


class Handler(http.server.BaseHTTPRequestHandler):
    """Files by name; a request may be cut off, ranges may be refused."""

    files: ClassVar[dict] = {}
    cuts: ClassVar[list] = []  # bytes after which the next answers break off
    ranges = True
    lengths = True  # whether a length is told
    moved: ClassVar[dict] = {}
    seen: ClassVar[list] = []

    def do_GET(self):
        Handler.seen.append(self.headers.get("Range"))
        if self.path in Handler.moved:
            self.send_response(302)
            self.send_header("Location", Handler.moved[self.path])
            self.end_headers()
            return
        content = Handler.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = 0
        if Handler.ranges and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if self.headers.get("If-Range") not in (None, self.tag(content)):
                start = 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if Handler.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", self.tag(content))
        self.end_headers()
        cut = Handler.cuts.pop(0) if Handler.cuts else None
        if self.command == "GET":
            self.wfile.write(content[start:] if cut is None else content[start:start + cut])

    do_HEAD = do_GET

    @staticmethod
    def tag(content):
        return f'"{hashlib.md5(content).hexdigest()}"'

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def server(monkeypatch):
    Handler.files, Handler.cuts, Handler.ranges, Handler.seen = {"/a.bin": CONTENT}, [], True, []
    Handler.lengths, Handler.moved = True, {}
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_a_file_arrives_whole_under_its_final_name_and_its_checksum_is_kept(server, tmp_path, capsys):
    source = Download(f"{server}/a.bin", "x", "")
    path = fetch(source, tmp_path / "x")
    assert path.read_bytes() == CONTENT
    assert hashlib.sha256(CONTENT).hexdigest() in capsys.readouterr().err
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.bin", "a.bin.source.json"]
    requests = len(Handler.seen)
    assert fetch(source, tmp_path / "x") == path
    assert len(Handler.seen) == requests  # nothing is fetched twice
    path.write_bytes(b"altered")
    with pytest.raises(InputError, match="is there, but its sha256 is not"):
        fetch(source, tmp_path / "x")


def test_breaks_are_survived_within_a_run(server, tmp_path):
    Handler.cuts = [1000, 70_000, 0, 5]
    assert fetch(Download(f"{server}/a.bin", "", ""), tmp_path).read_bytes() == CONTENT
    assert Handler.seen == [None, "bytes=1000-", "bytes=71000-", "bytes=71000-", "bytes=71005-"]


def test_the_next_run_goes_on_where_the_last_one_was_stopped(server, tmp_path):
    Handler.cuts = [1000, *[0] * 20]
    with pytest.raises(InputError, match=r"cannot be reached \(the connection broke off\); 1000 bytes are kept in .*"
                                         r"a\.bin\.part, the same command goes on"):
        fetch(Download(f"{server}/a.bin", "", ""), tmp_path)
    assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:1000]
    Handler.cuts, Handler.seen = [], []
    assert fetch(Download(f"{server}/a.bin", "", ""), tmp_path).read_bytes() == CONTENT
    assert Handler.seen == ["bytes=1000-"]


def test_a_part_that_is_already_whole_is_taken(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    assert fetch(Download(f"{server}/a.bin", "", ""), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_part_of_another_version_or_a_server_without_ranges_begins_anew(server, tmp_path, ranges):
    Handler.cuts, Handler.ranges = [1000, *[0] * 20], ranges
    with pytest.raises(InputError, match="cannot be reached"):
        fetch(Download(f"{server}/a.bin", "", ""), tmp_path)
    Handler.cuts, Handler.files = [], {"/a.bin": CONTENT[::-1]}
    assert fetch(Download(f"{server}/a.bin", "", ""), tmp_path).read_bytes() == CONTENT[::-1]


def test_a_wrong_checksum_leaves_nothing_under_the_final_name(server, tmp_path):
    with pytest.raises(InputError, match=f"sha256 is {hashlib.sha256(CONTENT).hexdigest()}, not {'0' * 64}"):
        fetch(Download(f"{server}/a.bin", "", "", sha256="0" * 64), tmp_path)
    assert not list(tmp_path.glob("a.bin")) + list(tmp_path.glob("*.part"))
    right = Download(f"{server}/a.bin", "", "", sha256=hashlib.sha256(CONTENT).hexdigest())
    assert fetch(right, tmp_path).read_bytes() == CONTENT


def test_only_https_addresses_are_asked_unless_the_bytes_are_known_or_come_from_this_machine(server, tmp_path):
    for sources in SOURCES.values():
        for source in sources:
            check_address(source.address, source.sha256)
            assert source.address.startswith("https://") or source.sha256
    check_address("http://example.org/a.bin", "0" * 64)
    for address in ("http://example.org/a.bin", "http://127.0.0.1.example.org/a.bin", "ftp://localhost/a.bin",
                    "file:///etc/passwd", "http://[::1/a.bin", "//example.org/a.bin"):
        with pytest.raises(InputError, match=r"\A[^\n]+ is not https[^\n]*\Z"):
            fetch(Download(address, "", ""), tmp_path)
    Handler.moved = {"/a.bin": "http://example.org/a.bin", "/b.bin": "ftp://localhost/a", "/c.bin": f"{server}/d.bin"}
    Handler.files = {"/d.bin": CONTENT}
    for name in ("a.bin", "b.bin"):
        with pytest.raises(InputError, match=r"is not https|cannot be reached|answers 302"):
            fetch(Download(f"{server}/{name}", "", ""), tmp_path)
    assert fetch(Download(f"{server}/c.bin", "", ""), tmp_path).read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.bin", "c.bin.source.json"]


@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_that_is_larger_than_it_can_be_is_not_taken(server, tmp_path, monkeypatch, lengths):
    Handler.lengths = lengths
    monkeypatch.setattr(download, "CHUNK", 1000)
    with pytest.raises(InputError, match=r"2304000 bytes; a\.bin has at most 5000|gives more than 5000 bytes"):
        fetch(Download(f"{server}/a.bin", "", "", size=5000), tmp_path)
    assert not (tmp_path / "a.bin").exists()
    monkeypatch.setattr(download, "LARGEST", 5000)
    with pytest.raises(InputError, match="5000"):
        fetch(Download(f"{server}/a.bin", "", ""), tmp_path / "other")


def test_the_checksum_of_the_first_download_holds_ever_after(server, tmp_path):
    source = Download(f"{server}/a.bin", "", "")
    path = fetch(source, tmp_path)
    path.unlink()
    Handler.files = {"/a.bin": CONTENT[::-1]}
    with pytest.raises(InputError, match=r"to take it all the same delete .*a\.bin\.source\.json"):
        fetch(source, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin.source.json"]
    record = tmp_path / "a.bin.source.json"
    for text in ("", "[" * 9000, "[]", '{"sha256": 3}', '{"sha256": "x"}'):
        record.write_text(text)
        with pytest.raises(InputError, match=r"\A[^\n]+does not say the sha256 of the first download any more"):
            fetch(source, tmp_path)
    record.unlink()
    path.write_bytes(b"put there by hand")
    assert fetch(source, tmp_path) == path
    path.write_bytes(b"altered afterwards")
    with pytest.raises(InputError, match="is there, but its sha256 is not"):
        fetch(source, tmp_path)


@pytest.mark.parametrize("name", ["a.bin", "a.bin.part", "a.bin.part.tag", "a.bin.source.json"])
@pytest.mark.parametrize("plant", ["symlink_to", "hardlink_to"])
def test_a_link_planted_beside_a_download_is_not_written_through(server, tmp_path, name, plant):
    kept, folder = tmp_path / "kept", tmp_path / "in"
    kept.write_bytes(b"kept")
    folder.mkdir()
    getattr(folder / name, plant)(kept)
    with pytest.raises(InputError, match=f"{name} is a link, or no file at all"):
        fetch(Download(f"{server}/a.bin", "", ""), folder)
    assert kept.read_bytes() == b"kept"


def test_what_is_not_there_and_no_network_end_in_one_sentence_and_exit_code_2(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SOURCES, "gone", (Download(f"{server}/gone.zip", "", ""),))
    monkeypatch.setitem(SOURCES, "away", (Download("http://127.0.0.1:9/a.zip", "", ""),))
    for name, sentence in (("gone", "answers 404"), ("away", "cannot be reached"), ("fullem", "to accounts only"),
                           ("nothing", "there is no data set 'nothing'; there are cremi, ")):
        assert run_command(main, [name, "--folder", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert sentence in error


def archive(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        for name, content in files.items():
            target.writestr(name, content)
    return out.getvalue()


def test_archives_are_unpacked_beside_themselves(server, tmp_path, monkeypatch, capsys):
    Handler.files = {"/d.zip": archive({"im_A.h5": b"abc", "sub/syn_A.h5": b"de"})}
    monkeypatch.setitem(SOURCES, "d", (Download(f"{server}/d.zip", "datasets/d", "things"),))
    assert main(["d", "--folder", str(tmp_path)]) == 0
    folder = tmp_path / "datasets" / "d"
    assert capsys.readouterr().out.split() == [str(folder / "im_A.h5"), str(folder / "sub" / "syn_A.h5")]
    assert (folder / "sub" / "syn_A.h5").read_bytes() == b"de"
    assert main(["--sizes"]) == 0
    assert f"{server}/d.zip  (0 MiB) -> datasets/d" in capsys.readouterr().out


def test_hostile_or_broken_archives_are_refused(tmp_path):
    path = tmp_path / "in" / "d.zip"
    path.parent.mkdir()
    path.write_bytes(archive({"../evil": b"x"}))
    with pytest.raises(InputError, match="leads out of its folder"):
        unpack(path)
    assert not (tmp_path / "evil").exists()
    path.write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match="no whole zip archive"):
        unpack(path)
    path.write_bytes(archive({"a": b"x"}))
    free = download.shutil.disk_usage(tmp_path)
    small = type(free)(free.total, free.used, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda _: small)
        with pytest.raises(InputError, match="unpacks to more than is free"):
            unpack(path)


def test_isbi2012_is_fetched_and_prepared_where_the_recipes_look_for_it(server, tmp_path, monkeypatch, capsys):
    tifffile = pytest.importorskip("tifffile", reason="TIFF needs tifffile")
    stacks = {name: np.random.default_rng(number).integers(0, 256, (3, 8, 9), np.uint8)
              for number, name in enumerate(("train-volume.tif", "test-volume.tif"))}
    for name, stack in stacks.items():
        tifffile.imwrite(tmp_path / name, stack, photometric="minisblack")
        Handler.files[f"/{name}"] = (tmp_path / name).read_bytes()
    assert [source.file for source in SOURCES["isbi2012"]] == list(stacks)
    assert all(source.address.startswith("https://") and not source.sha256 for source in SOURCES["isbi2012"])
    here = tuple(replace(source, address=f"{server}/{source.file}") for source in SOURCES["isbi2012"])
    monkeypatch.setitem(SOURCES, "isbi2012", here)
    monkeypatch.chdir(tmp_path)
    assert main(["isbi2012"]) == 0
    assert "none was published; it is kept beside the file" in capsys.readouterr().err
    assert prepare.main(["isbi2012", "downloads/isbi2012"]) == 0  # the list and the tutorial say so
    for name, stack in stacks.items():
        with h5py.File(tmp_path / "data" / "public_em" / f"isbi2012_{name.split('-')[0]}_raw.h5") as file:
            assert np.array_equal(file["raw"], stack)


def test_the_list_names_every_data_set_with_its_place(monkeypatch, capsys):
    monkeypatch.setattr(download, "remote_size", lambda _: 0)
    assert main([]) == 0
    told = capsys.readouterr().out
    for sources in SOURCES.values():
        for source in sources:
            assert source.address in told
            assert source.folder in told
    assert "isbi2012" in told
