"""Blocks that know nothing of each other: stitched, scored at their seams, and the command from a checkpoint."""

import csv
import json

import h5py
import numpy as np
import pytest

from emcore import config, metrics, segment
from emcore.prediction import predict
from emcore.settings import Settings
from emcore.systems.dbmim import blockwise
from emcore.volumes import open_volume
from tests.scripts import ROOT, run_python
from tests.test_dbmim_sweep import NEAREST, stored
from tests.test_pipeline import TEST, blocks
from tests.test_predict import Neighbours, Same
from tests.test_train import CONFIG


class Thrice(Same):
    """The input as three affinity channels."""

    def forward(self, x):
        return super().forward(x).expand(-1, 3, -1, -1, -1)


def settings_of(chunk, window=(4, 6, 6), normalise="none", **evaluate):
    return config.from_table(Settings, {
        "name": "run", "data": {"normalise": normalise, "patch": list(window)},
        "target": [{"kind": "affinity", "offsets": NEAREST}],
        "infer": {"activation": [{"channels": ":", "kind": "none"}], "blend": "constant"},
        "decode": {"kind": "affinities", "low": 0.1, "high": 0.95, "threshold": 0.4},
        "evaluate": {"blockwise": {"chunk": chunk, "seam": [1, 2, 3]}, **evaluate}})


def test_blocks_of_a_net_that_looks_at_single_voxels_make_the_whole():
    image = np.random.default_rng(0).random((7, 13, 11)).astype(np.float32)
    settings = settings_of([3, 5, 4])
    for halo in ((0, 0, 0), (1, 2, 0), (9, 9, 9)):
        out, count, seconds = blockwise.predict_blocks(Thrice(), open_volume(image), settings, halo)
        assert count == 3 * 3 * 3
        assert seconds > 0
        np.testing.assert_allclose(out[0], image, atol=1e-6)


def test_each_block_is_normalised_by_itself_with_its_halo():
    image = np.random.default_rng(1).random((6, 8, 12)).astype(np.float32)
    out, _, _ = blockwise.predict_blocks(Thrice(), open_volume(image), settings_of([6, 8, 4], normalise="range"),
                                         (0, 0, 2))
    for low, high in ((0, 4), (4, 8), (8, 12)):
        block = image[:, :, max(0, low - 2):high + 2]
        wanted = (image[:, :, low:high] - block.min()) / (block.max() - block.min())
        np.testing.assert_allclose(out[0][:, :, low:high], wanted, atol=1e-5)


def test_a_halo_hides_what_a_net_cannot_see_beyond_a_block():
    image = np.random.default_rng(2).random((6, 12, 12)).astype(np.float32)
    settings = settings_of([6, 6, 6], window=(6, 12, 12))
    net = Neighbours(NEAREST)
    whole = predict(net, image, window=(6, 12, 12), infer=settings.infer, data=settings.data, offsets=NEAREST)
    with_halo, _, _ = blockwise.predict_blocks(net, open_volume(image), settings, (0, 6, 6))
    np.testing.assert_allclose(with_halo, whole, atol=1e-6)
    without, _, _ = blockwise.predict_blocks(net, open_volume(image), settings, (0, 0, 0))
    seams = blockwise.seam_mask(image.shape, (6, 6, 6), (0, 1, 1))
    assert (np.abs(without - whole)[:, seams] > 0.01).any()


@pytest.mark.parametrize("chunk, width", [((3, 5, 4), (1, 2, 3)), ((2, 20, 1), (0, 3, 1)), ((9, 9, 9), (1, 1, 1))])
def test_seams_are_the_voxels_near_a_plane_between_blocks(chunk, width):
    shape = (7, 13, 11)
    wanted = np.zeros(shape, bool)
    for voxel in np.ndindex(shape):
        for axis in range(3):
            for plane in range(chunk[axis], shape[axis], chunk[axis]):
                wanted[voxel] |= plane - width[axis] <= voxel[axis] < plane + width[axis]
    assert np.array_equal(blockwise.seam_mask(shape, chunk, width), wanted)


def test_regions_are_scored_with_the_other_voxels_of_the_truth_ignored(tmp_path):
    random = np.random.default_rng(3)
    truth = np.kron(random.integers(0, 5, (2, 3, 3)), np.ones((4, 5, 5), int)).astype(np.uint32)
    affs = random.random((3, *truth.shape)).astype(np.float32)
    settings = settings_of([4, 6, 7], border_xy=1, sweep={"thresholds": [0.2, 0.6]})
    stitched = open_volume(stored(tmp_path / "p.h5", affs, offsets=NEAREST))
    records, speed = blockwise.score_blocks(settings, "a", "halo", (1, 1, 1), stitched, open_volume(truth), (8, 2.0))
    seams = blockwise.seam_mask(truth.shape, (4, 6, 7), (1, 2, 3))
    borders = metrics.box_border_mask(truth, 1, 0)
    assert [(row["region"], row["threshold"]) for row in records] == [
        (region, threshold) for region in ("full", "seam", "nonseam") for threshold in (0.2, 0.6)]
    for row in records:
        keep = {"full": True, "seam": seams, "nonseam": ~seams}[row["region"]]
        masked = np.where(keep & ~borders, truth, 0)
        table = metrics.contingency(masked, segment.segment(affs, row["threshold"], low=0.1, high=0.95))
        assert (row["voi_split"], row["voi_merge"]) == pytest.approx(tuple(metrics.voi(table)), abs=1e-9)
        assert row["adapted_rand_error"] == pytest.approx(metrics.rand(table, "dbmim").error)
        assert row["seam_fraction"] == pytest.approx(seams.mean())
        assert tuple(row) == blockwise.COLUMNS
    assert speed["voxels_per_sec"] == truth.size / 2
    assert (speed["chunk_y"], speed["halo_x"], speed["window_z"], speed["stride_y"], speed["num_chunks"]) == (
        6, 1, 4, 3, 8)
    fragments = segment.watershed(affs, 0.1, 0.95)
    graph = segment.region_graph(fragments, affs)
    assert (speed["num_fragments"], speed["num_rag_edges"]) == (fragments.max(), len(graph.u))
    assert speed["mean_boundary_count"] == pytest.approx(graph.count.mean())
    found = blockwise.summarised(settings, records, [speed], 1)
    full = [row["voi_sum"] for row in records if row["region"] == "full"]
    assert found["best_full_by_voi_sum"]["voi_sum"] == min(full)
    assert found["best_seam_by_adapted_rand"]["region"] == "seam"
    assert blockwise.summarised(settings, records, [speed], 2)["best_full_by_voi_sum"] is None


def test_the_offsets_of_the_channels_that_are_kept_are_named():
    settings = settings_of([4, 4, 4])
    assert blockwise.written_offsets(settings, 3) == NEAREST
    table = config.to_table(settings)
    table["infer"]["select"] = [2, 0]
    assert blockwise.written_offsets(config.from_table(Settings, table), 2) == [NEAREST[2], NEAREST[0]]
    table["target"] = [{"kind": "binary"}]
    assert blockwise.written_offsets(config.from_table(Settings, table), 2) is None


@pytest.mark.slow
def test_the_command_predicts_with_and_without_halo_from_a_checkpoint(tmp_path):
    labels = blocks()
    with h5py.File(tmp_path / "vol.h5", "w") as file:
        file["labels"] = labels
        file["raw"] = ((labels.astype(int) * 37) % 200 + 20).astype(np.uint8)
    (tmp_path / "run.toml").write_text(CONFIG + TEST)

    def run(*command):
        return run_python(command, tmp_path)

    command = ("-m", "emcore", "blockwise", "--cfg", "run.toml", "evaluate.blockwise.chunk=[8, 24, 24]",
               "evaluate.blockwise.halo=[2, 4, 4]", "evaluate.blockwise.without_halo=true", "evaluate.border_xy=1")
    done = run(*command)
    assert done.returncode == 2
    assert "run train.py first" in done.stderr
    assert run(str(ROOT / "train.py"), "--cfg", "run.toml").returncode == 0
    done = run(*command)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "tiny" / "results_step=20"
    records = json.loads((folder / "blockwise_scale_records.json").read_text())
    assert {(row["variant"], row["region"]) for row in records} == {
        (variant, region) for variant in ("halo", "no_halo") for region in ("full", "seam", "nonseam")}
    with open(folder / "blockwise_throughput.csv", newline="") as file:
        speeds = list(csv.DictReader(file))
    assert [row["num_chunks"] for row in speeds] == ["8", "8"]
    assert float(speeds[0]["voxels_per_sec"]) > 0
    summary = json.loads((folder / "blockwise_scale_summary.json").read_text())
    assert {"args", "throughput_records", "per_group", "failures", "best_full_by_voi_sum", "best_full_by_adapted_rand",
            "best_seam_by_voi_sum", "best_seam_by_adapted_rand"} == set(summary)
    assert (folder / "blockwise_scale_records.csv").read_text().startswith("sample,variant,region,seam_fraction")
