"""The page of doubts in a real browser: opened from disk, answered with keys alone, its answers kept and saved."""

import csv
import json
import re
import time

import numpy as np
import pytest

from emcore.decode.labels import decode
from emcore.errors import run_command
from emcore.report import doubts as command
from emcore.settings.decode import AffinityDecode
from emcore.volumes import create_volume, open_volume
from tests.test_report_browser import CHROMIUM, CONTRAST, Browser

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(page that asks once, lines of doubts.csv, image) of a random volume, of other sizes along every axis.

    Beside the page stands "again.html", which asks about each yes again.
    """
    place = tmp_path_factory.mktemp("asked")
    affs = np.random.default_rng(2).random((3, 10, 40, 72), np.float32)
    raw = np.random.default_rng(3).integers(0, 256, affs.shape[1:]).astype(np.uint8)
    offsets = {"offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]}
    for name, values, more in (("a_prediction.h5:main", affs, offsets), ("a.h5:raw", raw, None)):
        with create_volume(f"{place}/{name}", values.shape, values.dtype, (30, 10, 10), attributes=more) as out:
            out[...] = values
    decode(open_volume(place / "a_prediction.h5"), AffinityDecode(threshold=0.3, low=0.2, high=0.95),
           place / "a_labels.h5")
    for name, more in (("out", []), ("once", ["--once"])):
        assert run_command(command.main, [str(place), str(place / name), "--image", f"{place}/a.h5:raw", "--most", "12",
                                          *more]) == 0
    (place / "out" / "doubts.html").rename(place / "out" / "again.html")
    (place / "once" / "doubts.html").rename(place / "out" / "doubts.html")
    with open(place / "out" / "doubts.csv", newline="") as file:
        return place / "out" / "doubts.html", list(csv.DictReader(file)), raw


def text(browser, name):
    return browser.run(f"document.getElementById('{name}').textContent")


def press(browser, *keys):
    """Each key in turn, when the picture of the one before is there."""
    for key in keys:
        browser.press(key)
        until = time.monotonic() + 20
        while not browser.run("state.shown !== null && find('question').textContent.startsWith("
                              "doubts[state.at].rank + '.')") and time.monotonic() < until:
            time.sleep(0.02)


def saved(browser, folder):
    """The rows of edits.csv that the page saves."""
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.press("e")
    until = time.monotonic() + 20
    while not (folder / "edits.csv").exists() and time.monotonic() < until:
        time.sleep(0.05)
    with open(folder / "edits.csv", newline="") as file:
        return list(csv.DictReader(file))


def fresh(browser, page, **how):
    browser.open(page, **how)
    browser.run("localStorage.clear()")
    browser.open(page, **how)


def test_answers_are_given_by_keys_kept_and_saved_as_edits(browser, asked, tmp_path):
    page, rows, _ = asked
    fresh(browser, page)
    assert text(browser, "progress").startswith("0 yes, 0 no, 0 skipped, 12 open")
    wanted = "One object here" if rows[0]["edit"] == "split" else "Two objects here"
    assert text(browser, "question").startswith(f"1. {wanted}")
    press(browser, "a", "r", "s", "a", "b", "b", "r", "n")  # the third is no longer skipped
    assert text(browser, "progress").startswith("2 yes, 2 no, 0 skipped, 8 open")
    assert text(browser, "question").startswith("5. ")
    browser.open(page)
    assert text(browser, "progress").startswith("2 yes, 2 no, 0 skipped, 8 open")
    assert text(browser, "question").startswith("5. ")  # the first that is open
    edits = saved(browser, tmp_path)
    names = ["edit", "z", "y", "x", "to_z", "to_y", "to_x"]
    assert [list(edit) for edit in edits] == [names, names]
    assert edits == [{name: row[name] for name in names} for row in (rows[0], rows[3])]
    assert not [event for event in browser.events if event.get("method") in ("Runtime.exceptionThrown",
                                                                             "Log.entryAdded")]


def test_a_doubt_names_an_earlier_one_that_is_like_it(browser, asked):
    fresh(browser, asked[0])
    browser.run("doubts.forEach((doubt) => { doubt.like = doubt.rank === 2 ? 1 : ''; })")
    press(browser, "a")
    assert text(browser, "question").startswith("2. ")
    assert "nearly the same question asdoubt 1" in text(browser, "facts")
    press(browser, "a")
    assert "nearly the same question" not in text(browser, "facts")


def test_a_yes_counts_when_it_was_given_again_and_a_no_ends_it(browser, asked, tmp_path):
    page, rows, _ = asked
    fresh(browser, page.with_name("again.html"))
    browser.run("doubts.splice(3); doubts.forEach((doubt) => { doubt.asked = 2; })")
    press(browser, "a", "a", "r")  # Then comes what waits for another yes.
    assert text(browser, "question").startswith("1. ")
    assert text(browser, "question").endswith("(asked again, 2 of 2)")
    assert text(browser, "progress").startswith("0 yes, 1 no, 0 skipped, 2 to ask again, 0 open")
    assert not browser.run("[...document.querySelectorAll('button.chosen')].length")
    press(browser, "a")
    assert text(browser, "question").startswith("2. ")
    assert text(browser, "progress").startswith("1 yes, 1 no, 0 skipped, 1 to ask again, 0 open")
    press(browser, "r")
    assert text(browser, "progress").startswith("1 yes, 2 no, 0 skipped, 0 open")
    edits = saved(browser, tmp_path)
    assert [edit["edit"] for edit in edits] == [rows[0]["edit"]]
    press(browser, "b", "b", "a")  # Whoever goes back and says the same takes nothing away,
    assert text(browser, "progress").startswith("1 yes, 2 no, 0 skipped, 0 open")
    press(browser, "b", "r", "b", "a")  # and whoever said something else in between has said it once.
    assert text(browser, "progress").startswith("0 yes, 2 no, 0 skipped, 1 to ask again, 0 open")
    browser.open(page.with_name("again.html"))
    assert text(browser, "progress").startswith("0 yes, 2 no, 0 skipped, 1 to ask again, 9 open")
    press(browser, "w")
    assert text(browser, "question").endswith("again, 2 of " + str(browser.run("doubts[0].asked")) + ")")


@pytest.mark.parametrize("given", ["a", "0"])
def test_a_confirmed_answer_stays_when_it_is_given_again(browser, asked, given):
    fresh(browser, asked[0].with_name("again.html"))
    browser.run("doubts.splice(2); doubts.forEach((doubt) => { doubt.asked = 2; })")
    press(browser, given, "r", given)
    assert browser.run("state.answers") == {"1": 2 * given, "2": "r"}
    press(browser, "b", given)
    assert browser.run("state.answers") == {"1": 2 * given, "2": "r"}
    press(browser, "b", "s")
    assert browser.run("state.answers") == {"1": "s", "2": "r"}


def test_only_what_is_seen_is_answered_and_a_held_key_answers_nothing(browser, asked):
    fresh(browser, asked[0])
    browser.run("boxes.set(1, new Promise((done) => { window.unpack = () => done(boxes.get(0)); }))")
    browser.press("a", "a", "r")  # The box of the second doubt is not there yet.
    assert browser.run("state.answers") == {"1": "a"}
    browser.run("unpack()")
    browser.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', repeat: true}))")
    assert browser.run("state.answers") == {"1": "a"}
    press(browser, "r")
    assert browser.run("state.answers") == {"1": "a", "2": "r"}


def test_what_is_no_neuron_is_dropped_by_keys(browser, asked, tmp_path):
    page, rows, _ = asked
    fresh(browser, page)
    browser.run("doubts.splice(6); doubts.forEach((doubt, at) => { doubt.edit = at < 3 ? 'split' : 'join'; })")
    press(browser, "1", "2", "0", "1", "2", "0")
    assert text(browser, "progress").startswith("0 yes, 0 no, 0 skipped, 6 dropped, 0 open")

    def drop(row, side):
        return {"edit": "drop", **{axis: row[side + axis] for axis in "zyx"}, "to_z": "", "to_y": "", "to_x": ""}

    names = ("z", "y", "x", "to_z", "to_y", "to_x")
    held = [{"edit": "split", **{name: row[name] for name in names}} for row in rows[:2]]
    assert saved(browser, tmp_path) == [
        held[0], drop(rows[0], ""), held[1], drop(rows[1], "to_"), drop(rows[2], ""),
        drop(rows[3], ""), drop(rows[4], "to_"), drop(rows[5], ""), drop(rows[5], "to_")]


def test_the_planes_show_the_image_and_the_sides(browser, asked):
    page, rows, raw = asked
    fresh(browser, page)
    doubt = json.loads(browser.run("JSON.stringify({...doubts[0], raw: 0, sides: 0, point: state.point})"))
    box = tuple(slice(start, start + length) for start, length in zip(doubt["start"], doubt["shape"]))
    shown = np.array(browser.run("[...state.shown[0]]")).reshape(doubt["shape"])
    wanted = raw[box].astype(np.float64)
    assert np.corrcoef(shown.ravel(), wanted.ravel())[0, 1] > 0.999
    assert doubt["shape"] == [10, 40, 64]
    sides = np.array(browser.run("[...state.shown[1]]")).reshape(doubt["shape"])
    for side, before in ((1, ""), (2, "to_")):
        voxel = [int(rows[0][before + axis]) - start for axis, start in zip("zyx", doubt["start"])]
        assert sides[tuple(voxel)] == side
    middle = [round(float(rows[0][f"at_{axis}_nm"]) / size) for axis, size in zip("zyx", (30, 10, 10))]
    assert [start + at for start, at in zip(doubt["start"], doubt["point"])] == middle
    browser.press("x", ".", ".", "z", ",")
    moved = browser.run("state.point")
    assert moved[1] == doubt["point"][1]
    assert moved[2] == min(63, doubt["point"][2] + 2)
    assert moved[0] == max(0, doubt["point"][0] - 1)
    browser.press("h")
    assert browser.run("state.point") == doubt["point"]
    pixels = """[...document.querySelectorAll('canvas')].map((canvas) => { const view = placed(+canvas.dataset.axis);
        const at = (axis, start, size) => start + (state.point[axis] + 0.5) * size;
        return [...canvas.getContext('2d').getImageData(at(view.columns, view.left, view.columnWidth),
            at(view.rows, view.top, view.rowHeight), 1, 1).data]; })"""
    grey = int(shown[tuple(doubt["point"])])
    colours = browser.run(pixels)
    assert colours[:3] == [[grey, grey, grey, 255]] * 3
    tint = {0: None, 1: (255, 146, 43), 2: (51, 154, 240)}[int(sides[tuple(doubt["point"])])]
    expected = [grey if tint is None else grey * 0.65 + colour * 0.35 for colour in tint or (0, 0, 0)]
    assert np.abs(np.array(colours[3:])[:, :3] - expected).max() <= 1.5


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_and_nothing_runs_over_a_narrow_screen(browser, asked, dark):
    fresh(browser, asked[0], width=420, dark=dark)
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run(CONTRAST) >= 4.5


def test_nothing_is_loaded_from_elsewhere(browser, asked):
    browser.open(asked[0])
    loaded = [event["params"]["request"]["url"] for event in browser.events
              if event.get("method") == "Network.requestWillBeSent"]
    assert all(re.match(r"(file|data|blob):", url) for url in loaded)
