"""The page of neurons in 3-d in a real browser: what it draws stands the right way round, and all of it can be used."""

import base64
import json
import re
import time

import numpy as np
import pytest

from emcore.png import colour_labels
from emcore.report import scene, viewer
from emcore.segment.wiring import Partners
from emcore.volumes import create_volume
from tests.test_report_browser import CHROMIUM, CONTRAST, Browser

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")]
SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # WebGL where there is no graphics card
UNIT = 10.0  # nm of a voxel along each axis
THREE_ARMS, BEHIND, BIG = 3, 57, 2**50 + 1
# the picture on the canvas, row by row from above, four bytes a pixel
PICTURE = """(() => {
  draw();
  const copy = document.createElement("canvas"), context = copy.getContext("2d");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  context.drawImage(canvas, 0, 0);
  const values = context.getImageData(0, 0, copy.width, copy.height).data, parts = [];
  for (let i = 0; i < values.length; i += 8192) parts.push(String.fromCharCode(...values.subarray(i, i + 8192)));
  return btoa(parts.join(""));
})()"""


def arms():
    """From one corner three arms, of 40 voxels along x, 24 along y and 12 along z; a plate behind it; a lone cube."""
    labels = np.zeros((30, 40, 60), np.uint64)
    labels[2:6, 4:8, 6:46], labels[2:6, 4:28, 6:10], labels[2:14, 4:8, 6:10] = (THREE_ARMS,) * 3
    labels[18:22, 4:28, 6:46] = BEHIND
    labels[2:6, 32:38, 50:56] = BIG
    return labels


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    place = tmp_path_factory.mktemp("scene")
    with create_volume(f"{place}/a.h5:labels", arms().shape, "uint64", (UNIT,) * 3) as out:
        out[...] = arms()
    viewer.main([f"{place}/a.h5:labels", "--workers", "1", str(place / "out")])
    return place / "out" / "view.html"


@pytest.fixture(scope="module")
def wired(page, tmp_path_factory):
    """The same with synapses: one before everything, from the arms to a neuron that is not listed, and one more."""
    sites = np.array([[[5.0, 330, 100], [5.0, 330, 300]], [[35.0, 50, 270], [35.0, 100, 270]]])
    ids = np.array([THREE_ARMS, BEHIND], np.uint64), np.array([999, THREE_ARMS], np.uint64)
    table = Partners(np.array([8, 9], np.uint64), sites.mean(1), np.array([70, 60]), *ids, np.array([True, False]),
                     np.array([0.75, 0.5]), np.zeros(2), sites[:, 0], sites[:, 1])
    rows = [np.array(column) for column in ([4, 5], [1, 0], [0, 0], [0, 1], [1, 1])]
    out = tmp_path_factory.mktemp("wired") / "page.html"
    box = np.array([[0, 0, 0], np.array(arms().shape) * UNIT])
    scene.write_scene(out, page.parent / "labels.precomputed" / "mesh",
                      scene.Neurons(np.array([THREE_ARMS, BEHIND], np.uint64), *rows), table, (UNIT,) * 3, box, "<b>&")
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"), *SOFTWARE)
    yield browser
    browser.close()


def drawn(browser):
    """The picture (height, width, 4) that the canvas shows."""
    width, height = browser.run("[canvas.width, canvas.height]")
    return np.frombuffer(base64.b64decode(browser.run(PICTURE)), np.uint8).reshape(height, width, 4)


def only(browser, *labels):
    """Shows these neurons, without the box of the volume, at the size that fits all."""
    wanted = json.dumps([str(label) for label in labels])
    browser.run(f"neurons.forEach((neuron, place) => show(place, {wanted}.includes(neuron.id)))")
    browser.run("find('box').checked = false; find('synapses').checked = false")


def parts(picture):
    """Whether the middle of each of 8 x 8 parts of the box of what is drawn is covered, and that box in pixels."""
    covered = picture[..., 3] > 0
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    box = covered[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    at = [((np.arange(8) + 0.5) * length / 8).astype(int) for length in box.shape]
    return box[np.ix_(*at)], box.shape


def is_colour(pixels, label):
    """Which pixels have the colour of a label, lighter or darker."""
    wanted = colour_labels(np.array([label], np.uint64))[0].astype(float)
    found = pixels[..., :3].astype(float)
    return found @ wanted > 0.95 * np.linalg.norm(wanted) * np.maximum(1, np.linalg.norm(found, axis=-1))


@pytest.mark.parametrize("key,rows,columns", [("z", 24, 40), ("y", 12, 40), ("x", 12, 24)])
def test_an_object_of_three_arms_is_neither_mirrored_nor_upside_down(browser, page, key, rows, columns):
    """Axes run like in sections: x goes right, y down; across y and x, z goes down. The corner is at the upper left."""
    browser.open(page, width=500)
    only(browser, THREE_ARMS)
    browser.press(key)
    found, (height, width) = parts(drawn(browser))
    assert height / width == pytest.approx(rows / columns, rel=0.05)
    assert found[0].all()  # the arm that goes right
    assert found[:, 0].all()  # the arm that goes down
    assert not found[3:, 3:].any()


def test_what_lies_at_a_smaller_z_hides_what_lies_behind_it(browser, page):
    browser.open(page, width=500)
    only(browser, THREE_ARMS, BEHIND)
    browser.press("z")
    picture = drawn(browser)
    covered = np.argwhere(picture[..., 3] > 0)
    (top, left), (bottom, right) = covered.min(0), covered.max(0)
    assert is_colour(picture[top + (bottom - top) // 24, (left + right) // 2], THREE_ARMS)
    assert is_colour(picture[(top + bottom) // 2, (left + right) // 2], BEHIND)
    browser.run("turnBy(150 * Math.PI, 0); fit()")  # from the other side all of it is the plate
    picture = drawn(browser)
    covered = np.argwhere(picture[..., 3] > 0)
    (top, left), (bottom, right) = covered.min(0), covered.max(0)
    assert is_colour(picture[top + (bottom - top) // 24 + 2, (left + right) // 2], BEHIND)


def test_the_bar_is_as_long_as_it_says(browser, page):
    browser.open(page, width=500)
    only(browser, THREE_ARMS)
    browser.press("z", "+", "-", "-")
    _, (_, width) = parts(drawn(browser))
    pixels, text = browser.run("[find('bar').getBoundingClientRect().width, find('length').textContent]")
    length, unit = re.fullmatch(r"([\d.]+) (nm|µm)", text).groups()
    nm = float(length) * (1000 if unit == "µm" else 1)
    assert 30 <= pixels <= 161
    assert width / (pixels / nm) == pytest.approx(40 * UNIT, rel=0.04)


def test_it_loads_nothing_and_a_click_picks_what_it_hits(browser, page):
    browser.open(page, width=500)
    asked = [event["params"]["request"]["url"] for event in browser.events
             if event["method"] == "Network.requestWillBeSent"]
    assert asked == [page.as_uri()]
    assert [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"] == []
    browser.press("z")
    picture = drawn(browser)
    for label in (THREE_ARMS, BEHIND, BIG):
        seen = np.argwhere(is_colour(picture, label)).tolist()
        y, x = seen[len(seen) // 2]
        click(browser, x, y)
        voxels = int((arms() == label).sum())
        assert browser.run("find('readout').textContent").startswith(f"Neuron {label} · {voxels:,} voxels, ")
        assert browser.run("document.querySelector('tr[aria-selected=true]').textContent").startswith(str(label))
    click(browser, 3, picture.shape[0] - 3)
    assert browser.run("find('readout').textContent") == ""


def click(browser, x, y):
    left, top = browser.run("(() => { const box = canvas.getBoundingClientRect(); return [box.left, box.top]; })()")
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=left + x + 0.5, y=top + y + 0.5, button="left",
                     clickCount=1)
    browser.settle()


def test_the_mouse_turns_moves_and_zooms(browser, page):
    browser.open(page, width=500)
    browser.press("z")
    left, top = browser.run("(() => { const box = canvas.getBoundingClientRect(); return [box.left, box.top]; })()")
    before = browser.run("[...view.turn]")

    def drag(button, buttons):
        for kind, x in (("mousePressed", 200), ("mouseMoved", 260), ("mouseReleased", 260)):
            browser.call("Input.dispatchMouseEvent", type=kind, x=left + x, y=top + 200, button=button,
                         buttons=buttons, clickCount=1)

    drag("left", 1)
    after = browser.run("[...view.turn]")
    assert after != before
    near = np.array(after).reshape(3, 3) @ (0, 0, -1)  # what was nearest has followed the mouse to the right
    assert near[0] > 0.3
    middle, zoom = browser.run("[[...view.middle], view.zoom]")
    drag("right", 2)
    moved = np.array(after).reshape(3, 3) @ (np.array(browser.run("[...view.middle]")) - middle)
    assert moved == pytest.approx((-60 / zoom, 0, 0), abs=1e-6)
    browser.call("Input.dispatchMouseEvent", type="mouseWheel", x=left + 100, y=top + 100, deltaX=0, deltaY=-250)
    browser.settle()
    assert browser.run("view.zoom") == pytest.approx(zoom * np.exp(0.5))


def test_keys_choose_hide_and_show(browser, wired):
    browser.open(wired, width=500)
    shown = "neurons.filter((neuron) => neuron.shown).map((neuron) => neuron.id).join()"
    browser.press("n")
    assert browser.run("find('readout').textContent") == (
        "Neuron 3 · 4 voxels, 0.00000400 µm³ · 1 outgoing and 0 incoming synapses · 1 partners")
    browser.press("h")
    assert browser.run(shown) == str(BEHIND)
    browser.press("p", "o")
    assert browser.run(shown) == str(BEHIND)
    browser.press("a", "Escape", "s", "b")
    assert browser.run(shown) == f"{THREE_ARMS},{BEHIND}"
    assert browser.run("[view.chosen, find('synapses').checked, find('box').checked]") == [None, False, False]
    assert browser.run("find('list').innerText").split()[:7] == ["show", "neuron", "µm³", "out", "in", "either",
                                                                "partners"]
    browser.run("canvas.focus()")
    before = browser.run("[[...view.turn], [...view.middle]]")
    browser.press("ArrowLeft", "ArrowUp")
    assert browser.run("[...view.turn]") != before[0]
    reached = set()
    for _ in range(30):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.add(browser.run("document.activeElement.id || document.activeElement.type"))
    assert {"view", "all", "none", "reset", "synapses", "box", "checkbox", "submit"} <= reached


def test_synapses_are_drawn_where_they_are_and_picked(browser, wired):
    browser.open(wired, width=500)
    only(browser)
    browser.press("z")
    assert not (drawn(browser)[..., 3] > 0).any()
    only(browser, THREE_ARMS, BEHIND)
    browser.run("find('synapses').checked = true")
    picture = drawn(browser)
    middle, zoom = browser.run("[view.middle, view.zoom]")
    page_middle = np.array([600, 400, 300]) / 2
    for place, colour in ((100, (255, 185, 26)), (300, (255, 255, 255))):  # the two ends of the first synapse, x
        x, y = ((np.array([place + 5, 335]) - page_middle[:2] - middle[:2]) * zoom
                + np.array(picture.shape[1::-1]) / 2).round().astype(int)
        found = picture[y, x].astype(float)
        assert (np.array(colour) * found[:3].max() / 255 - found[:3]).max() < 30, (place, found)
        click(browser, int(x), int(y))
        assert browser.run("find('readout').textContent") == (
            "Synapse 8 · 3 to 999 · 70 voxels · confidence 0.75 · at z 10, y 335, x 205 nm")


def test_a_browser_without_webgl_says_so_and_lists_the_neurons(browser, page):
    script = browser.call("Page.addScriptToEvaluateOnNewDocument",
                          source="HTMLCanvasElement.prototype.getContext = () => null")["identifier"]
    try:
        browser.open(page, width=500)
        assert browser.run("find('missing').hidden") is False
        assert browser.run("find('missing').textContent").startswith("This browser offers no WebGL 2, so the neurons")
        assert browser.run("document.querySelectorAll('#list tbody tr').length") == 3
        assert [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"] == []
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_and_a_narrow_screen_holds_the_page(browser, wired, dark):
    browser.open(wired, width=420, dark=dark)
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run(CONTRAST) >= 4.5
    assert browser.run("document.querySelector('header p').textContent") == "<b>&"


def test_a_damaged_page_says_that_it_cannot_be_drawn(browser, page, tmp_path):
    text, broken = page.read_text(), tmp_path / "broken.html"
    start = text.index('"data": "') + len('"data": "')
    broken.write_text(text[:start] + "AAAA" + text[start + 4:])
    browser.call("Page.navigate", url=broken.as_uri())
    until = time.monotonic() + 60
    while browser.run("document.getElementById('missing')?.hidden ?? true") and time.monotonic() < until:
        time.sleep(0.05)
    assert browser.run("document.getElementById('missing').textContent").startswith("The neurons cannot be drawn (")
