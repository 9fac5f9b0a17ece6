"""The page of a run: what stands in it, how much of a large volume, and that nothing of a run can inject a script."""

import base64
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest

from emcore import config, metrics
from emcore.errors import InputError
from emcore.report import figures, grids, main, mistakes, page
from emcore.results import files_of
from emcore.settings import Settings
from emcore.volumes import create_volume, open_volume

TRUTH = np.kron(np.arange(1, 17).reshape(4, 2, 2), np.ones((2, 16, 16), int)).astype(np.uint64)  # (8, 32, 32)


def store(reference, values, attributes=None, offset=(0, 0, 0)):
    with create_volume(reference, values.shape, values.dtype, (30, 8, 8), offset, attributes) as out:
        out[...] = values


@pytest.fixture
def make_run(tmp_path):
    """A run folder with one test volume, as train.py, infer.py and evaluate.py leave it."""

    def make(name="B", labels=TRUTH, truth=TRUTH, truth_offset=(0, 0, 0)):
        folder, results = tmp_path / "outputs" / "run", tmp_path / "outputs" / "run" / "results_step=40"
        results.mkdir(parents=True)
        random = np.random.default_rng(0)
        store(f"{tmp_path}/B.h5:raw", random.integers(0, 256, labels.shape, np.uint8))
        store(f"{tmp_path}/B.h5:labels", truth, offset=truth_offset)
        store(f"{results}/{name}_prediction.h5:main", random.random((3, *labels.shape), np.float32),
              {"offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]})
        store(f"{results}/{name}_labels.h5:labels", labels)
        table = {"name": "run", "outputs": str(tmp_path / "outputs"),
                 "data": {"folder": str(tmp_path),
                          "test": [{"image": "B.h5:raw", "label": "B.h5:labels", "name": name}]}}
        settings = config.from_table(Settings, table)
        (folder / "config.toml").write_text(config.to_toml(settings))
        (folder / "log.csv").write_text("step,lr,loss/train,loss/val\n10,0.1,0.9,\n20,0.1,0.7,0.8\n30,nan,inf,0.6\n")
        (folder / "environment.json").write_text(json.dumps({"torch": "2.13", "command": ["train.py", "<b>"]}))
        found = {name: {"scores": [{"score": "voi_split", "value": 0.25, "convention": "cremi"},
                                   {"score": "rand_error", "value": None, "convention": "cremi"}],
                        "notes": ["label 0 covers nothing"],
                        "curve": {"threshold": [0.0, 0.5, 0.9], "voi_split": [3.0, 1.0, 0.2],
                                  "voi_merge": [0.0, 0.1, 2.0], "rand_error": [0.9, 0.2, 0.7], "chosen": 0.5,
                                  "best": {"voi": {"threshold": 0.55, "value": 1.05, "merges": 7}}}}}
        (results / "scores.json").write_text(json.dumps(found))
        return folder, results, settings, found

    return make


def views_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def unpacked(layer, shape):
    values = np.frombuffer(zlib.decompress(base64.b64decode(layer["data"])), f"<u{layer['bits'] // 8}").reshape(shape)
    return np.cumsum(values, axis=2, dtype=values.dtype)


def test_the_page_holds_every_layer_voxel_for_voxel_where_the_volume_is_small(make_run):
    folder, results, settings, found = make_run(labels=np.where(TRUTH < 9, TRUTH + 100, 0).astype(np.uint64))
    assert page.write_report(folder, results, settings, found) == folder / "report.html"
    view, = views_of((folder / "report.html").read_text())
    layers = {layer["name"]: layer for layer in view["layers"]}
    assert list(layers) == ["raw", "prediction 0, edge (-1, 0, 0)", "prediction 1, edge (0, -1, 0)",
                            "prediction 2, edge (0, 0, -1)", "truth", "labels"]
    assert view["shape"] == [8, 32, 32]
    raw = open_volume(settings.data.folder + "/B.h5:raw")
    np.testing.assert_array_equal(unpacked(layers["raw"], view["shape"]), raw)
    for name, expected in (("truth", TRUTH), ("labels", open_volume(f"{results}/B_labels.h5")[...])):
        ids = np.array([int(label) for label in layers[name]["ids"]], np.uint64)
        np.testing.assert_array_equal(ids[unpacked(layers[name], view["shape"])], expected)
    stored = open_volume(f"{results}/B_prediction.h5")[1]
    shown = unpacked(layers["prediction 1, edge (0, -1, 0)"], view["shape"]) / 255
    np.testing.assert_allclose(shown, stored, atol=0.5 / 255 + 1e-6)


def test_scores_curves_config_and_environment_stand_in_the_page_without_a_script(make_run):
    folder, results, settings, found = make_run()
    html = page.write_report(folder, results, settings, found).read_text()
    for text in ("results of step 40", "voi_split", "0.25", "undefined", "cremi", "label 0 covers nothing",
                 "chosen: 0.5", "best voi: 1.05 at 0.55", "loss/val", "learning rate", "[[data.test]]",
                 "train.py &lt;b&gt;",
                 "no split and no merge"):
        assert text in html, text
    assert not re.search(r'(?:src|href)="(?!#)|url\(|@import|https?:', html.split('id="data"')[0])
    assert not list(folder.glob(".report*"))


def test_a_hostile_volume_name_is_text_everywhere(make_run):
    name = "</script><script>alert(1)<img src=x onerror=alert(2)>'\"<!--data-->"
    folder, results, settings, found = make_run(name="B")
    settings = replace(settings)
    for named in (settings, settings.data.test[0]):
        object.__setattr__(named, "name", name)  # such names are refused, so this is a second wall
    html = page.write_report(folder, results, settings, {name: found["B"]}).read_text()
    assert html.count("<script") == 2
    assert "<img" not in html
    assert views_of(html)[0]["name"] == name
    assert "script-src 'sha256-" in html  # and a script that came through all the same would not run
    assert "unsafe" not in html


def test_errors_are_listed_by_the_voxels_outside_of_the_largest_piece(make_run):
    labels = TRUTH.copy()
    labels[labels == 2] = 1  # merged: 512 voxels each
    labels[2:4, :16, :5] = 77  # split off object 5: 2 x 16 x 5
    folder, results, settings, found = make_run(labels=labels)
    view, = views_of(page.write_report(folder, results, settings, found).read_text())
    merge, split = view["mistakes"]["merge"], view["mistakes"]["split"]
    assert [(error["id"], error["voxels"], error["misplaced"], error["pieces"]) for error in merge] == [
        (1, 1024, 512, [[1, 512], [2, 512]])]
    assert [(error["id"], error["misplaced"], error["pieces"]) for error in split] == [(5, 160, [[5, 352], [77, 160]])]
    assert labels[tuple(split[0]["point"])] == 77
    assert TRUTH[tuple(merge[0]["point"])] == 2
    numbers = {layer["name"]: layer["ids"] for layer in view["layers"] if "ids" in layer}
    assert [numbers["labels"][place] for place in split[0]["labels"]] == ["5", "77"]
    assert numbers["labels"][view["main_of_truth"][numbers["truth"].index("5")]] == "5"
    assert numbers["truth"][view["main_of_labels"][numbers["labels"].index("77")]] == "5"


def test_a_truth_smaller_than_the_image_is_laid_where_its_offset_says(make_run):
    folder, results, settings, found = make_run(truth=TRUTH[2:6, 8:24, 4:].copy(), truth_offset=(60, 64, 32))
    view, = views_of(page.write_report(folder, results, settings, found).read_text())
    assert (view["start"], view["shape"], "raw is" in repr(view)) == ([2, 8, 4], [4, 16, 28], False)
    layers = {layer["name"]: layer for layer in view["layers"]}
    np.testing.assert_array_equal(unpacked(layers["truth"], view["shape"]), unpacked(layers["labels"], view["shape"]))
    assert view["mistakes"] == {"split": [], "merge": []}


def test_the_finest_axes_are_thinned_out_first_and_what_is_too_large_is_cut_from_the_middle():
    assert grids.choose_grid([(0, 8), (0, 32), (0, 32)], (30, 8, 8), 10_000) == ((0, 0, 0), (1, 1, 1), (8, 32, 32))
    grid = grids.choose_grid([(0, 100), (0, 1024), (0, 1024)], (30, 6, 6), 3_000_000)
    assert grid.step[1:] == (4, 4)
    assert np.prod(grid.shape) <= 3_000_000
    huge = grids.choose_grid([(0, 10**5)] * 3, (8, 8, 8), 3_000_000)
    assert huge.step == (4, 4, 4)
    assert 2_000_000 < np.prod(huge.shape) <= 3_000_000
    assert [a + 2 * n for a, n in zip(huge.start, huge.shape)] == [50_000] * 3  # the middle of both


def test_sampling_agrees_with_slicing_the_whole_array(monkeypatch):
    monkeypatch.setattr(grids, "BLOCK_BYTES", 700)
    random = np.random.default_rng(1)
    for _ in range(100):
        volume = random.integers(0, 250, random.integers(1, 12, 3)).astype(np.uint8)
        grid = grids.Grid(*(tuple(random.integers(*span, 3).tolist()) for span in ((0, 4), (1, 4), (1, 6))))
        shift = random.integers(-3, 4, 3)
        for average in (False, True):
            got = grids.sample(open_volume(volume), None, shift, grid, average)
            expected = np.zeros(grid.shape, got.dtype)
            for point in np.ndindex(grid.shape):
                first = np.array(grid.start) + np.array(grid.step) * point - shift
                if (first < 0).any() or (first + grid.step > volume.shape).any():
                    continue
                z, y, x = first
                section = volume[z + grid.step[0] // 2]
                cell = section[y:y + grid.step[1], x:x + grid.step[2]]
                expected[point] = cell.mean() if average else cell[grid.step[1] // 2, grid.step[2] // 2]
            np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_large_volume_makes_a_page_of_bounded_size(make_run, monkeypatch):
    monkeypatch.setattr(page, "POINTS", 40_000)
    monkeypatch.setattr(page, "PICTURE_BYTES", 60_000)
    big = np.kron(TRUTH, np.ones((4, 4, 4), int)).astype(np.uint32)  # half a million voxels
    _, results, settings, _ = make_run(labels=big, truth=big)
    view, = page.make_views(settings, files_of(settings, results))
    assert sum(len(layer["data"]) for layer in view["layers"]) <= 60_000
    assert np.prod(view["shape"]) > 5000


def test_listed_errors_and_partners_agree_with_a_plain_loop():
    random = np.random.default_rng(2)
    for _ in range(200):
        truth, labels = (random.integers(0, random.integers(1, 6), 30) for _ in range(2))
        table = metrics.contingency(truth, labels, (0,), (0,))
        found = mistakes.find(table)
        kept = (truth > 0) & (labels > 0)
        for kind, ours, theirs in (("split", truth, labels), ("merge", labels, truth)):
            expected = {}
            for label in set(ours[kept].tolist()):
                counts = np.bincount(theirs[kept & (ours == label)])
                if counts.sum() > counts.max():
                    expected[label] = int(counts.sum() - counts.max())
            assert {error["id"]: error["misplaced"] for error in found[kind]} == expected
            amounts = [error["misplaced"] for error in found[kind]]
            assert amounts == sorted(amounts, reverse=True)
        wanted = random.permutation(np.arange(9))[:4]
        partner = mistakes.best_partner(table.truth[table.kept], table.labels[table.kept], table.n, wanted)
        assert partner == {t: int(np.bincount(labels[kept & (truth == t)]).argmax())
                           for t in set(truth[kept].tolist()) & set(wanted.tolist())}


def test_what_is_missed_and_invented_agrees_with_a_plain_loop():
    random = np.random.default_rng(3)
    for _ in range(200):
        truth, labels = (random.integers(0, random.integers(2, 9), 30) for _ in range(2))
        found = mistakes.missed_and_invented(metrics.contingency(truth, labels, (0, 1), (0,)), (0,))  # 1: unknown
        missed = {t: int((truth == t).sum()) for t in set(truth.tolist()) - {0, 1} if not labels[truth == t].any()}
        invented = {n: int((labels == n).sum()) for n in set(labels.tolist()) - {0} if not truth[labels == n].any()}
        assert {error["id"]: error["voxels"] for error in found["missed"]} == missed
        assert {error["id"]: error["voxels"] for error in found["invented"]} == invented
        for errors in found.values():
            assert [error["voxels"] for error in errors] == sorted((error["voxels"] for error in errors), reverse=True)


def test_a_mask_as_truth_is_compared_piece_by_piece(make_run):
    truth, labels = np.zeros((8, 32, 32), np.uint64), np.zeros((8, 32, 32), np.uint64)
    truth[1:3, 2:6, 2:6] = truth[4:6, 20:25, 20:25] = 255  # two pieces, of which only the second is found
    labels[4:6, 21:25, 20:25] = 3
    labels[6:8, 2:4, 28:31] = 9  # where there is nothing
    _, results, settings, _ = make_run(labels=labels, truth=truth)
    settings = replace(settings, evaluate=replace(settings.evaluate, scores=("instances",), pieces=26))
    view, = page.make_views(settings, files_of(settings, results))
    assert view["mistakes"]["split"] == view["mistakes"]["merge"] == []
    (missed,), (invented,) = view["mistakes"]["missed"], view["mistakes"]["invented"]
    assert (missed["voxels"], invented["id"], invented["voxels"]) == (32, 9, 12)
    assert truth[tuple(missed["point"])] == 255
    assert labels[tuple(invented["point"])] == 9
    tables = page.mistake_tables(0, view, False)
    for text in ("truth objects that no segment touches", "where the truth has nothing", 'data-kind="missed"'):
        assert text in tables
    # the same volume without that setting is one object, of which nothing is missed
    view, = page.make_views(replace(settings, evaluate=replace(settings.evaluate, pieces=0)),
                            files_of(settings, results))
    assert view["mistakes"]["missed"] == []


def test_the_report_command_reads_everything_back_from_the_run_folder(make_run, capsys):
    folder, results, settings, found = make_run()
    expected = page.write_report(folder, results, settings, found).read_text()
    (folder / "report.html").unlink()
    assert main([str(folder)]) == 0
    assert (folder / "report.html").read_text() == expected
    assert str(folder / "report.html") in capsys.readouterr().out


def test_a_run_without_results_shows_its_training_and_an_empty_one_is_one_sentence(make_run, tmp_path):
    folder, results, _, _ = make_run()
    results.rename(tmp_path / "elsewhere")
    main([str(folder)])
    html = (folder / "report.html").read_text()
    assert "training only" in html
    assert "loss/train" in html
    (folder / "log.csv").write_text("step,lr\n")
    with pytest.raises(InputError, match=r"nothing to show yet.*run train\.py or infer\.py first"):
        main([str(folder)])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"it has no config\.toml; train\.py makes one"):
        main([str(empty)])


def test_what_cannot_be_opened_is_a_note_and_not_the_end(make_run, tmp_path):
    folder, results, settings, found = make_run()
    (tmp_path / "B.h5").unlink()
    (results / "B_labels.h5").write_bytes(b"no HDF5")
    html = page.write_report(folder, results, settings, found).read_text()
    assert [layer["kind"] for layer in views_of(html)[0]["layers"]] == ["prediction"] * 3
    assert "raw is not shown: there is no file" in html
    assert "labels is not shown" in html


def test_curves_leave_out_what_is_not_finite_and_turn_logarithmic_over_a_wide_span():
    assert figures.plot({"a": [(1, float("nan"))]}, "step", "nothing") == ""
    svg = figures.plot({"a<b": [(0, 1e-4), (1, float("inf")), (2, 1.0)], "b": [(0, 0.5)]}, "step", "loss")
    assert "loss (logarithmic)" in svg
    assert "a&lt;b" in svg
    assert "inf" not in svg
    assert "nan" not in figures.plot({"a": [(5, 2.0)]}, "step", "one point")
    assert figures.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_letters_of_marks_never_meet_and_their_texts_stand_in_the_legend():
    random = np.random.default_rng(0)
    for _ in range(50):
        places = random.uniform(0, 60, 8).tolist()
        rows = figures.rows_of(places)
        for row in set(rows):
            same = sorted(place for place, other in zip(places, rows) if other == row)
            assert (np.diff(same) >= figures.LETTER).all()
    marks = [(0.5, "chosen: 0.5"), (0.501, "best <voi>")]
    svg = figures.plot({"a": [(0, 1.0), (1, 2.0)]}, "threshold", "scores", marks)
    texts = re.findall(r'<text x="([\d.]+)" y="(\d+)" text-anchor="middle">([AB])</text>', svg)
    assert [letter for *_, letter in texts] == ["A", "B"]
    assert texts[0][1] != texts[1][1]
    assert "<b>A</b> chosen: 0.5" in svg
    assert "<b>B</b> best &lt;voi&gt;" in svg
    assert figures.rows_of([]) == []
