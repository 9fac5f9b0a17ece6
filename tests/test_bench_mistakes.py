"""The pictures of the largest errors show the right place, and only the objects of the error in colour."""

import sys

import numpy as np
import pytest

from bench import mistakes
from emcore.volumes import create_volume


def test_a_seam_is_where_pieces_touch_along_any_axis_or_the_second_piece():
    first, second = np.zeros((2, 3, 4, 4), bool)
    first[0, 1, 1] = second[1, 1, 1] = second[2, 1, 1] = second[0, 3, 3] = True
    assert np.argwhere(mistakes.seam(first, second)).tolist() == [[1, 1, 1]]
    assert np.argwhere(mistakes.seam(second, first)).tolist() == [[0, 1, 1]]
    second[1, 1, 1] = False
    assert np.array_equal(mistakes.seam(first, second), second)


@pytest.mark.parametrize("at, wanted", [((0, 0), (0, 0)), ((50, 60), (40, 50)), ((99, 99), (80, 80))])
def test_a_window_is_a_square_within_the_section(at, wanted):
    shown = np.zeros((100, 100), bool)
    shown[at] = True
    assert tuple(span.start for span in mistakes.window(shown, 20)) == wanted
    assert all(span.stop - span.start == 20 for span in mistakes.window(shown, 20))
    assert mistakes.window(shown, 200) == (slice(0, 100), slice(0, 100))


def test_the_command_draws_the_largest_error_first(tmp_path, monkeypatch, capsys):
    truth = np.ones((6, 40, 40), np.uint64)
    truth[:, 20:] = 2
    labels = np.where(truth == 1, 5, 6).astype(np.uint64)
    labels[4:, :20] = 7  # a split along z of 1,600 voxels
    labels[:, 38:] = 8  # a split of 480 voxels
    attributes = {"resolution": (10, 10, 10), "offset": (0, 0, 0)}
    for path, name, values in (("a.h5", "raw", np.full(truth.shape, 100, np.uint8)), ("a.h5", "labels", truth),
                               ("tiny_labels.h5", "labels", labels)):
        with create_volume(f"{tmp_path / path}:{name}", values.shape, values.dtype, **attributes) as volume:
            volume[:] = values
    cfg = tmp_path / "tiny.toml"
    cfg.write_text('name = "tiny"\n[[data.test]]\nimage = "a.h5:raw"\nlabel = "a.h5:labels"\nname = "tiny"\n')
    drawn = {}
    monkeypatch.setattr(mistakes, "write_png", lambda path, image: drawn.update({path: image}))
    monkeypatch.setattr(sys, "argv", ["mistakes", "--cfg", str(cfg), "--results", str(tmp_path), "--out",
                                      str(tmp_path / "errors"), f"data.folder={tmp_path}"])
    mistakes.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny"
    assert "a true object in several segments: 1, 4,800 voxels in 2 pieces, 1,600 misplaced; section 4," in lines[1]
    assert "a true object in several segments: 2, 4,800 voxels in 2 pieces, 480 misplaced" in lines[2]
    picture = drawn[f"{tmp_path / 'errors'}_tiny.png"]
    side = 40 * mistakes.ZOOM
    gap = mistakes.GAP * mistakes.ZOOM
    assert picture.shape == (2 * side + gap, 3 * side + 2 * gap, 3)
    raw, whole, parted = (picture[:side, k * (side + gap):k * (side + gap) + side].astype(int) for k in range(3))
    assert (raw == raw[0, 0]).all()
    coloured = (np.abs(whole - raw).sum(2) > 0, np.abs(parted - raw).sum(2) > 0)
    assert all(found[:side // 2].all() and not found[side // 2:].any() for found in coloured)
