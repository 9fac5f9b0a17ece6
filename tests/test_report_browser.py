"""The page of a run in a real browser: opened from disk, moved by keys, light and dark, without network or errors."""

import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import time

import numpy as np
import pytest

from emcore import config
from emcore.decode.labels import decode
from emcore.report import page
from emcore.segment import Segmentation
from emcore.settings import Settings
from emcore.settings.decode import AffinityDecode
from emcore.volumes import create_volume, open_volume

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")]
HOSTILE = "<img src=x onerror=document.hacked=1><script>document.hacked=1"


# the lowest contrast of any text with its ground, by the rule of WCAG
CONTRAST = """(() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return colour === 'rgba(0, 0, 0, 0)' && element.parentElement ? ground(element.parentElement) : colour;
  };
  const elements = document.querySelectorAll('h1, h2, p, a, td, th, caption, button, label, kbd, text, summary, li');
  return Math.min(...[...elements].map((element) => {
    const style = getComputedStyle(element), ink = element.tagName === 'text' ? style.fill : style.color;
    const [a, b] = [light(ink), light(ground(element))].sort((p, q) => q - p);
    return (a + 0.05) / (b + 0.05);
  }));
})()"""


class Browser:
    """One page of a headless Chromium, driven over its debugging pipe."""

    def __init__(self, profile, *flags):
        (read, their_write), (their_read, write) = os.pipe(), os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (their_read, their_write)]  # clear of 3 and 4
        self.process = subprocess.Popen(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
             "--remote-debugging-pipe", f"--user-data-dir={profile}", *flags, "about:blank"],
            close_fds=False,
            preexec_fn=lambda: (os.dup2(high[0], 3), os.dup2(high[1], 4)),  # where it looks
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in (their_read, their_write, *high):
            os.close(fd)
        self.read, self.write, self.buffer, self.count, self.session, self.events = read, write, b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def receive(self):
        while b"\0" not in self.buffer:
            assert select.select([self.read], [], [], 60)[0], "Chromium does not answer"
            self.buffer += os.read(self.read, 1 << 20)
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def run(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, path, width=1300, dark=False):
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=path.as_uri())
        until = time.monotonic() + 60
        while self.run("document.readyState + (document.documentElement?.dataset.ready || '')") != "completeyes":
            assert time.monotonic() < until, self.run("document.body.innerText.slice(0, 2000)")
            time.sleep(0.05)
        self.settle()

    def settle(self):
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def press(self, *keys):
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)
        self.settle()

    def close(self):
        os.close(self.write)
        os.close(self.read)
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of a run with one split (object 5, at z 2..3) and one merge (objects 1 and 2), with hostile names."""
    place = tmp_path_factory.mktemp("run")
    truth = np.kron(np.arange(1, 17).reshape(4, 2, 2), np.ones((2, 16, 20), int)).astype(np.uint64)  # (8, 32, 40)
    labels = truth.copy()
    labels[labels == 2] = 1
    labels[2:4, :16, :6] = 77
    folder, results = place / "outputs" / "run", place / "outputs" / "run" / "results_step=40"
    results.mkdir(parents=True)
    random = np.random.default_rng(0)
    for reference, values in ((place / "B.h5:raw", random.integers(90, 110, truth.shape).astype(np.uint8)),
                              (place / "B.h5:labels", truth), (results / "B_labels.h5:labels", labels),
                              (results / "B_prediction.h5:main", random.random((3, *truth.shape), np.float32))):
        with create_volume(str(reference), values.shape, values.dtype, (30, 8, 8)) as out:
            out[...] = values
    (folder / "log.csv").write_text("step,lr,loss/train\n" + "".join(f"{n},0.1,{1 / n}\n" for n in range(1, 50)))
    settings = config.from_table(Settings, {"name": HOSTILE, "data": {"folder": str(place), "test": [
        {"image": "B.h5:raw", "label": "B.h5:labels", "name": "B"}, {"image": "C.npy", "name": HOSTILE}]}})
    np.save(place / "C.npy", np.full((3, 10, 60), 77, np.uint8))
    scores = {"scores": [{"score": HOSTILE, "value": 0.5, "convention": HOSTILE}], "notes": [HOSTILE]}
    return page.write_report(folder, results, settings, {HOSTILE: scores})


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def readout(browser):
    return browser.run("document.getElementById('readout').textContent")


def section(browser):
    return browser.run("document.getElementById('section-name').textContent")


def colour(browser, kind, row, column):
    """The drawn colour in the middle of a grid point, the picture being unzoomed; the cross is open there."""
    return browser.run(f"""(() => {{
        const canvas = document.querySelector('canvas[data-kind={kind}]'), view = placed(canvas);
        const x = view.left + ({column} + 0.5) * view.columnWidth, y = view.top + ({row} + 0.5) * view.rowHeight;
        return [...canvas.getContext('2d').getImageData(x, y, 1, 1).data]; }})()""")


def test_it_opens_from_disk_without_network_errors_or_injected_script(browser, report):
    browser.open(report)
    asked = [event["params"]["request"]["url"] for event in browser.events
             if event["method"] == "Network.requestWillBeSent"]
    assert asked == [report.as_uri()]
    wrong = [event for event in browser.events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert wrong == []
    assert browser.run("document.hacked === undefined")
    assert browser.run("document.querySelector('h1').textContent") == HOSTILE
    # and a script that came through the escaping all the same would be refused by the policy of the page
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=document.hacked=1>')")
    browser.run("(() => { const s = document.createElement('div'); s.innerHTML = '<a onclick=document.hacked=1>'; "
                "document.body.append(s); s.firstChild.click(); })()")
    assert browser.run("document.hacked === undefined")


def test_keys_move_through_the_sections_and_turn_the_axis_at_the_right_aspect(browser, report):
    browser.open(report)
    assert section(browser) == "Section 5 of 8 (z = 4)"
    browser.press(".", ".")
    assert section(browser) == "Section 7 of 8 (z = 6)"
    browser.press(".", ".", ".", ",")
    assert section(browser) == "Section 7 of 8 (z = 6)"
    shape = "(() => { const c = document.querySelector('canvas[data-kind=raw]'); return c.height / c.width; })()"
    for key, name, aspect in (("z", "Section 7 of 8 (z = 6)", 32 / 40), ("y", "Section 17 of 32 (y = 16)", 240 / 320),
                              ("x", "Section 21 of 40 (x = 20)", 240 / 256)):
        browser.press(key)
        assert section(browser) == name
        assert browser.run(shape) == pytest.approx(aspect, abs=0.01)


def test_every_picture_shows_what_the_files_hold(browser, report):
    browser.open(report)
    browser.press("n")  # the only split
    assert "truth 5 · labels 77 · split" in readout(browser)
    found = re.match(r"voxel z (\d+), y (\d+), x (\d+)", readout(browser))
    z, y, x = map(int, found.groups())
    assert z in (2, 3)
    assert y < 16
    assert x < 6
    red, green, blue, _ = colour(browser, "errors", y, x)
    assert red > green + 30 > blue + 60  # orange
    assert colour(browser, "raw", y, x)[:3] == [colour(browser, "raw", y, x)[0]] * 3
    assert colour(browser, "truth", y, x) != colour(browser, "labels", y, x)
    grey = colour(browser, "labels", 20, 30)
    assert grey[0] == grey[1] == grey[2]  # only the pieces of the error are coloured ...
    browser.press("Escape")
    grey = colour(browser, "labels", 20, 30)
    assert not grey[0] == grey[1] == grey[2]  # ... until it is let go
    browser.press("n", "n")
    assert "truth 2 · labels 1 · merge" in readout(browser)
    y, x = map(int, re.search(r"y (\d+), x (\d+)", readout(browser)).groups())
    red, green, blue, _ = colour(browser, "errors", y, x)
    assert blue > green > red + 30  # blue
    browser.press("y")
    z, x = map(int, re.search(r"z (\d+), y \d+, x (\d+)", readout(browser)).groups())
    red, green, blue, _ = colour(browser, "errors", z, x)
    assert blue > green > red + 30  # the same voxel across another axis


def test_everything_is_reached_and_moved_without_a_mouse(browser, report):
    browser.open(report)
    reached = set()
    for _ in range(40):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.add(browser.run("(() => { const e = document.activeElement; "
                                "return e.dataset.kind || e.id || e.name || e.tagName; })()"))
    assert {"section", "opacity", "zoom", "axis", "layer", "channel", "raw", "errors", "split", "merge"} <= reached
    unnamed = browser.run("[...document.querySelectorAll('input, select')].filter((e) => !e.labels.length).length")
    assert unnamed == 0
    before = readout(browser)
    browser.run("document.querySelector('canvas').focus()")
    browser.press("ArrowRight", "ArrowUp")
    assert before.startswith("voxel z 4, y 16, x 20")
    assert readout(browser).startswith("voxel z 4, y 15, x 21")
    for key in "1234":
        browser.press(key)
    assert browser.run("[...document.querySelectorAll('#panels figure')].filter((f) => !f.hidden)"
                       ".map((f) => f.textContent).join()") == "errors"
    browser.press("+", "+", "c", "[")
    assert browser.run("[find('zoom').value, find('channel').value, find('opacity').value].join()") == "2,1,30"


def test_another_volume_with_other_layers_and_another_shape_is_chosen_from_the_list(browser, report):
    browser.open(report)
    assert browser.run("[...find('volume').options].map((option) => option.text)") == ["B", HOSTILE]
    browser.run("set('volume', 1)")
    until = time.monotonic() + 20
    while section(browser) != "Section 2 of 3 (z = 1)" and time.monotonic() < until:
        time.sleep(0.05)
    browser.settle()
    assert readout(browser) == "voxel z 1, y 5, x 30 · raw 77.0"
    assert colour(browser, "raw", 2, 50) == [77, 77, 77, 255]
    assert browser.run("[...document.querySelectorAll('canvas')].map((c) => c.dataset.kind).join()") == "raw"
    browser.press("n")  # an error of the first volume brings that back
    until = time.monotonic() + 20
    while "split" not in readout(browser) and time.monotonic() < until:
        time.sleep(0.05)
    assert "truth 5 · labels 77 · split" in readout(browser)
    assert browser.run("find('volume').value") == "0"


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """The page of a run with a stored merge tree, and the tree."""
    place = tmp_path_factory.mktemp("decoded")
    results = place / "outputs" / "run" / "results_step=4"
    results.mkdir(parents=True)
    affs = (np.random.default_rng(5).integers(0, 8, (3, 5, 14, 16)) / 7).astype(np.float32)
    affs[:, 0], affs[0, 1] = 0, 0  # a section without fragments
    offsets = {"offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]}
    for reference, values, attributes in ((results / "B_prediction.h5:main", affs, offsets),
                                          (place / "B.h5:raw", (affs[0] * 200).astype(np.uint8), None)):
        with create_volume(str(reference), values.shape, values.dtype, (30, 8, 8), attributes=attributes) as out:
            out[...] = values
    decoding = AffinityDecode(threshold=0.62, low=0.3, high=0.95)
    labels = decode(open_volume(results / "B_prediction.h5"), decoding, results / "B_labels.h5")
    settings = config.from_table(Settings, {"name": "run", "outputs": str(place / "outputs"), "data": {
        "folder": str(place), "test": [{"image": "B.h5:raw", "name": "B"}]}})
    return page.write_report(results.parent, results, settings, {}), Segmentation.read(labels)


def test_the_page_says_why_a_voxel_has_its_label_in_the_words_of_the_command(browser, explained):
    file, segmentation = explained
    browser.open(file)
    random, told = np.random.default_rng(0), ""
    for _ in range(60):
        one, other = (random.integers(0, segmentation.fragments.shape).tolist() for _ in range(2))
        wanted = "\n".join(segmentation.explain(one, 0.62, other).lines())
        wanted = re.sub(r", of mean affinity .*$", "", wanted, flags=re.MULTILINE)  # only the command says that
        assert browser.run(f"explained({one}, {other}).join('\\n')") == wanted
        told += wanted
    for words in ("what joined it, in order", "the way from one to the other", "they are not joined", "do not touch",
                  "between their segments are", "it belongs to no fragment"):
        assert words in told
    browser.run("document.getElementById('why').open = true")
    browser.press("m", ".")
    shown = browser.run("document.getElementById('merges').textContent")
    middle = [length // 2 for length in segmentation.fragments.shape]
    below = [middle[0] + 1, *middle[1:]]
    wanted = "\n".join(segmentation.explain(below, 0.62, middle).lines())
    assert shown == re.sub(r", of mean affinity .*$", "", wanted, flags=re.MULTILINE)


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground_and_nothing_runs_over_a_narrow_screen(browser, report, dark):
    browser.open(report, width=420, dark=dark)
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run(CONTRAST) >= 4.5
    shade = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", shade)[0]) < 60) == dark
