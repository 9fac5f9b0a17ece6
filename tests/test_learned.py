"""[decode.learned] from end to end: a classifier learns, decodes, is recorded, and is refused where it does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emcore import config, metrics, synth
from emcore.decode import decode, recut
from emcore.decode.affinities import segmentation_of
from emcore.decode.contact_net import damaged, read_net, train_net, write_net
from emcore.decode.features import QUANTILES, feature_names, features, quantiles
from emcore.decode.learn_contacts import answers_of
from emcore.decode.learn_contacts import main as learn_contacts
from emcore.decode.learned import first_clusters, learned_segmentation, voxels_of
from emcore.decode.tune import check as check_tune
from emcore.errors import InputError, run_command
from emcore.segment import Edit, Segmentation, write_edits
from emcore.segment.affinities import Affinities
from emcore.segment.contacts import BINS, first_graph, measure_contacts, pool_contacts
from emcore.settings import Settings
from emcore.settings.decode import AffinityDecode, Learned
from emcore.volumes import create_volume, open_volume

STEPS = (1, 3, 9)
RESOLUTION = (12.0, 12.0, 12.0)
OFFSETS = [tuple(-step * (axis == other) for other in range(3)) for step in STEPS for axis in range(3)]


def tissue(seed, shape=(28, 72, 72)):
    return synth.synthesize(shape, RESOLUTION, seed=seed, neurites=25).neuron_ids.astype(np.int64)


def affinities(labels, noise=0.0, seed=0):
    """Of all offsets: 1 where two voxels have one label; noise moves logits by blotches of 4³ voxels and by voxels."""
    rng = np.random.default_rng(seed)
    affs = np.zeros((9, *labels.shape), np.float32)
    for channel, offset in enumerate(OFFSETS):
        axis, step = channel % 3, -min(offset)
        here, before = ((slice(None),) * axis + (part,) for part in (slice(step, None), slice(None, -step)))
        affs[channel][here] = (labels[here] == labels[before]) & (labels[here] != 0)
    if noise:
        coarse = rng.normal(0, noise, (9, *(length // 4 + 1 for length in labels.shape)))
        for axis in (1, 2, 3):
            coarse = coarse.repeat(4, axis)
        blotches = coarse[:, :labels.shape[0], :labels.shape[1], :labels.shape[2]]
        logits = 4 * (2 * affs - 1) + blotches + rng.normal(0, noise, affs.shape)
        affs = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return affs


def write(path, values, attributes=None, resolution=RESOLUTION):
    with create_volume(f"{path}:main", values.shape, values.dtype, resolution, (0, 0, 0), attributes) as out:
        out[...] = values
    return path


def predicted(path, affs, offsets=OFFSETS, resolution=RESOLUTION):
    return write(path, affs, {"offsets": [list(offset) for offset in offsets]}, resolution)


def answers(prediction, truth, count, seed=0):
    """Right answers about places on both sides of a contact of fragments, as many joins as splits."""
    affs = open_volume(prediction)[...]
    fragments = Segmentation(Affinities(affs[:3], OFFSETS[:3]), fragments="faces-1").fragments
    random, edits = np.random.default_rng(seed), []
    for is_one in (True, False):
        across = (fragments[:, :, 1:] != fragments[:, :, :-1]) & (truth[:, :, 1:] > 0) & (truth[:, :, :-1] > 0)
        places = np.argwhere(across & ((truth[:, :, 1:] == truth[:, :, :-1]) == is_one))
        for z, y, x in places[random.permutation(len(places))[:count // 2]].tolist():
            edits.append(Edit("join" if is_one else "split", (z, y, x), (z, y, x + 1)))
    return edits


def voi(truth, labels):
    found = metrics.voi(metrics.contingency(truth, labels))
    return found.split + found.merge


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, config file): a classifier that learned from one noisy volume, and another noisy volume."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "run.toml").write_text(
        'name = "toy"\n[decode]\nkind = "affinities"\nfragments = "faces-1"\n[decode.learned]\n'
        f'file = "{folder}/contacts.json"\nfirst_size = 0.001\n')
    for name, seed in (("train", 1), ("test", 2)):
        truth = tissue(seed)
        write(folder / f"{name}_labels.h5", truth.astype(np.uint32))
        predicted(folder / f"{name}_prediction.h5", affinities(truth, 2.0, seed))
    assert learn_contacts(["--cfg", str(folder / "run.toml"), "--from", str(folder / "train_prediction.h5"),
                           f"{folder}/train_labels.h5:main"]) == 0
    return folder


def settings_of(folder, *overrides):
    return config.load(Settings, folder / "run.toml", list(overrides))


def test_it_decodes_another_volume_better_than_the_mean_does(trained):
    truth, prediction = tissue(2), open_volume(trained / "test_prediction.h5")
    settings = settings_of(trained).decode
    labels = learned_segmentation(prediction, settings).labels(settings.threshold)
    affs = Affinities(prediction[:3], OFFSETS[:3])
    plain = Segmentation(affs, fragments="faces-1")
    best = min(voi(truth, plain.labels(threshold)) for threshold in np.arange(0.05, 1, 0.05))
    assert voi(truth, labels) < best


def test_decisions_teach_it_where_there_are_no_labels(trained, tmp_path, capsys):
    """From edits of one volume, at contacts, to better labels of another one than the mean makes."""
    write_edits(tmp_path / "edits.csv", answers(trained / "train_prediction.h5", tissue(1), 400))
    given = ["--cfg", str(trained / "run.toml"), "--out", str(tmp_path / "a.json"), "--edits"]
    assert learn_contacts([*given, str(trained / "train_prediction.h5"), str(tmp_path / "edits.csv")]) == 0
    truth, prediction = tissue(2), open_volume(trained / "test_prediction.h5")
    settings = settings_of(trained, f"decode.learned.file={tmp_path}/a.json").decode
    plain = Segmentation(Affinities(prediction[:3], OFFSETS[:3]), fragments="faces-1")
    found = voi(truth, learned_segmentation(prediction, settings).labels(0.5))
    assert found < 0.8 * voi(truth, plain.labels(0.5))
    write_edits(tmp_path / "few.csv", answers(trained / "train_prediction.h5", tissue(1), 4))
    assert run_command(learn_contacts, [*given, str(trained / "train_prediction.h5"), str(tmp_path / "few.csv")]) == 2
    assert "50 of each are needed" in capsys.readouterr().err
    write_edits(tmp_path / "none.csv", [Edit("drop", (0, 0, 0))])
    assert run_command(learn_contacts, [*given, str(trained / "train_prediction.h5"), str(tmp_path / "none.csv")]) == 2
    assert "nothing to learn from" in capsys.readouterr().err


def test_what_decisions_say_about_contacts(trained):
    """Clusters of one neuron by a chain of joins are one, those of two held apart are two, and no others count."""
    edits = answers(trained / "train_prediction.h5", tissue(1), 120)
    source = answers_of(str(trained / "train_prediction.h5"), edits, settings_of(trained).decode)
    table = first_clusters(source.contacts, 0.2, 1000)
    pooled = pool_contacts(source.contacts, table)
    links, foes = ([{int(table[int(one)]) for one in pair} for pair in pairs.tolist()] for pairs in (
        source.decisions.joined, source.decisions.apart))
    groups = [set(pair) for pair in links]
    for pair in links:  # every link joins the groups that it touches
        touched = [group for group in groups if group & pair]
        groups = [group for group in groups if not group & pair] + [set().union(*touched)]

    def group_of(one):
        return frozenset(next((group for group in groups if one in group), {one}))

    apart = [{group_of(one) for one in pair} for pair in foes]
    mixed = {next(iter(pair)) for pair in apart if len(pair) == 1}
    wanted = []
    for number, ends in enumerate(zip(pooled.u.tolist(), pooled.v.tolist())):
        pair = {group_of(one) for one in ends}
        if not pair & mixed and (len(pair) == 1 or pair in apart):
            wanted.append((number, len(pair) == 2))
    values, borders = source.edges(0.2, 1000)
    told = len(wanted)
    assert told > 50
    assert borders[:told].tolist() == [is_border for _, is_border in wanted]
    assert np.array_equal(values[:told], features(pooled)[[number for number, _ in wanted]])
    mean, rows = first_graph(pooled).mean, [row.tobytes() for row in features(pooled)]
    added = [rows.index(row.tobytes()) for row in values[told:]]
    assert len(set(added)) == len(added) == min(told, int(((mean < 0.2) | (mean > 0.8)).sum()))
    assert not set(added) & {number for number, _ in wanted}
    assert all(mean[number] < 0.2 if is_border else mean[number] > 0.8
               for number, is_border in zip(added, borders[told:]))


def test_perfect_affinities_give_the_truth_back(trained, tmp_path):
    for seed in (2, 3):
        truth = tissue(seed)
        found = open_volume(predicted(tmp_path / f"{seed}.h5", affinities(truth)))
        assert voi(truth, learned_segmentation(found, settings_of(trained).decode).labels(0.5)) <= 0.15


def test_the_stored_segmentation_cuts_again_explains_and_says_what_made_it(trained, tmp_path):
    settings, out = settings_of(trained).decode, tmp_path / "labels.h5"
    decode(open_volume(trained / "test_prediction.h5"), settings, out)
    direct = learned_segmentation(open_volume(trained / "test_prediction.h5"), settings)
    assert np.array_equal(open_volume(out, "labels")[...], direct.labels(0.5))
    again = recut(out, 0.3, tmp_path / "again.h5")
    assert np.array_equal(open_volume(again, "labels")[...], direct.labels(0.3))
    assert (direct.labels(0.3).max()) > direct.labels(0.5).max()
    assert "label" in str(Segmentation.read(out).explain((5, 30, 30), 0.5)).lower()


def test_probabilities_are_whole_numbers_of_16_bits_once_for_every_pooled_contact(trained):
    graph = learned_segmentation(open_volume(trained / "test_prediction.h5"), settings_of(trained).decode).graph
    each = graph.sum / graph.count / 2**8
    assert np.array_equal(each, np.rint(each))
    assert np.array_equal(graph.max, graph.min)
    assert np.allclose(graph.max, graph.mean)


def test_the_same_seed_trains_the_same_file(trained, tmp_path):
    assert learn_contacts(["--cfg", str(trained / "run.toml"), "--from", str(trained / "train_prediction.h5"),
                           f"{trained}/train_labels.h5:main", "--out", str(tmp_path / "a.json")]) == 0
    assert (tmp_path / "a.json").read_bytes() == (trained / "contacts.json").read_bytes()


# ---- features


def test_every_feature_has_a_name_and_a_number():
    truth = tissue(4, (18, 40, 40))
    contacts = measure_contacts(np.where(truth > 0, truth, 0), Affinities(affinities(truth, 1.0), OFFSETS))
    found = features(contacts)
    names = feature_names(3)
    assert found.shape == (len(contacts.u), len(names))
    assert len(set(names)) == len(names)
    assert np.isfinite(found).all()
    assert np.allclose(found[:, names.index("mean of near")], contacts.sums[:, 0] / contacts.count / 2**24)
    assert np.allclose(found[:, names.index("log of faces")], np.log(contacts.count))
    assert (found[:, names.index("saddle above deeper")] >= 0).all()


def test_quantiles_of_histograms_are_those_of_values_up_to_a_part():
    rng = np.random.default_rng(0)
    values = rng.random((4, 1, 1000)) ** np.array([1, 2, 3, 8])[:, None, None]
    histograms = np.stack([np.bincount((row * BINS).astype(int), minlength=BINS) for row in values[:, 0]])[:, None]
    assert np.abs(quantiles(histograms) - np.moveaxis(np.quantile(values, QUANTILES, axis=2), 0, 2)).max() < 1 / BINS
    one = np.zeros((1, 1, BINS), np.uint32)
    one[0, 0, 5] = 8
    assert ((quantiles(one) >= 5 / BINS) & (quantiles(one) <= 6 / BINS)).all()


def test_the_net_learns_a_rule_that_no_single_feature_tells():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, len(feature_names(3))))
    borders = values[:, 0] * values[:, 1] > 0
    arrays = train_net(values[:3000], borders[:3000])
    net = read_like(arrays)
    right = (net.probabilities(values[3000:]) > 2**15) == borders[3000:]
    assert right.mean() > 0.85


def read_like(arrays):
    from emcore.decode.contact_net import ContactNet

    return ContactNet(((1, 1, 1), (3, 3, 3), (9, 9, 9)), RESOLUTION, "faces", (), **arrays)


def test_the_size_is_in_cubic_micrometres():
    assert voxels_of(Learned("x"), (10.0, 10.0, 10.0)) == 10_000
    assert voxels_of(Learned("x", first_size=0.001), (50.0, 4.0, 4.0)) == 1250


# ---- what does not fit is refused in one sentence


def refused(call, capsys):
    """The one line that a command prints before it ends with 2."""
    assert run_command(call, []) == 2
    line, = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_damaged_file_is_refused_in_one_sentence(trained, tmp_path, capsys):
    good = (trained / "contacts.json").read_text()
    table = json.loads(good)
    flipped = good.replace("0.1", "0.2", 1)
    deep = "[" * 100_000
    for text in ("", "no json", "[]", "{}", flipped, good[:-100], deep, json.dumps({**table, "mean": "x"}),
                 json.dumps({**table, "format": 2})):
        path = tmp_path / "damaged.json"
        path.write_text(text)
        assert "no classifier of contacts that can be used" in refused(lambda _, path=path: read_net(path), capsys)
    with pytest.raises(InputError, match=r"cannot read .*missing\.json"):
        read_net(tmp_path / "missing.json")
    (tmp_path / "large.json").write_bytes(b" " * (9 << 20))
    with pytest.raises(InputError, match="larger than 8 MiB"):
        read_net(tmp_path / "large.json")


def test_a_file_with_a_right_digest_and_wrong_shapes_is_refused(trained, tmp_path):
    from emcore.decode.contact_net import _digest

    good = json.loads((trained / "contacts.json").read_text())
    good.pop("digest")
    wrong = {"mean": good["mean"][1:], "weights": good["weights"][0], "biases": [], "deviation": [0] * 65,
             "out_biases": [[1]], "steps": [[1, 1, 1]], "features": ["x"], "resolution": [1, 2],
             "out_weights": [[float("nan")] * 32] * 5, "made_of": 3}
    for name, value in wrong.items():
        table = good | {name: value}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(table | {"digest": _digest(table)}))
        with pytest.raises(InputError, match="no classifier of contacts that can be used"):
            read_net(path)


def test_predictions_that_do_not_fit_are_refused(trained, tmp_path):
    settings, affs = settings_of(trained).decode, affinities(tissue(5, (18, 30, 30)))
    longer = [*OFFSETS[:6], (-8, 0, 0), (0, -8, 0), (0, 0, -8)]
    for sentence, path in (
            ("trained on affinities of the steps", predicted(tmp_path / "a.h5", affs, longer)),
            ("trained on affinities of the steps", predicted(tmp_path / "b.h5", affs[:6], OFFSETS[:6])),
            ("at least one longer step", predicted(tmp_path / "c.h5", affs[:3], OFFSETS[:3])),
            ("trained on voxels of", predicted(tmp_path / "d.h5", affs, resolution=(30, 12, 12))),
            ("does not say its resolution", predicted(tmp_path / "e.h5", affs, resolution=None)),
            ("no attribute offsets", write(tmp_path / "f.h5", affs))):
        with pytest.raises(InputError, match=sentence):
            learned_segmentation(open_volume(path), settings)
    with pytest.raises(InputError, match=r"trained on decode\.fragments faces-1"):
        learned_segmentation(open_volume(trained / "test_prediction.h5"),
                             settings_of(trained, "decode.fragments=faces").decode)


def test_settings_that_mean_nothing_beside_a_classifier_are_refused(trained):
    for override in ("decode.statistic=max", "decode.ties=waterz", "decode.temperature=2.0",
                     "decode.channels=[0,1,2]", "decode.learned.first_size=0", "decode.learned.first_threshold=2",
                     'decode.learned.file=""'):
        with pytest.raises(InputError, match=override.partition("=")[0].rpartition(".")[2]):
            settings_of(trained, override)
    assert settings_of(trained, "decode.learned=none").decode == AffinityDecode(fragments="faces-1")


def test_other_ways_to_decode_say_that_they_do_not_know_it(trained):
    settings = settings_of(trained).decode
    with pytest.raises(InputError, match=r"only infer\.py works with it"):
        segmentation_of(None, settings)
    with pytest.raises(InputError, match=r"a tune does not know decode\.learned"):
        check_tune(settings_of(trained), None, None)


def test_the_command_refuses_what_teaches_nothing(trained, tmp_path, capsys):
    arguments = ["--cfg", str(trained / "run.toml"), "--from", str(trained / "train_prediction.h5")]
    ones = write(tmp_path / "ones.h5", np.ones((28, 72, 72), np.uint32))
    line = refused(lambda _: learn_contacts([*arguments, f"{ones}:main", "--out", str(tmp_path / "x.json")]), capsys)
    assert "50 of each are needed" in line
    assert not (tmp_path / "x.json").exists()
    small = write(tmp_path / "small.h5", np.ones((3, 4, 5), np.uint32))
    assert "shape" in refused(lambda _: learn_contacts([*arguments, f"{small}:main"]), capsys)
    line = refused(lambda _: learn_contacts(["--cfg", str(trained / "run.toml"), "decode.learned=none"]), capsys)
    assert "there is no [decode.learned]" in line


def test_labels_are_made_again_when_the_classifier_has_changed(trained, tmp_path):
    from emcore import record, results

    for name in ("run.toml", "contacts.json", "test_prediction.h5"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    text = (tmp_path / "run.toml").read_text().replace(str(trained), str(tmp_path))
    (tmp_path / "run.toml").write_text(text)
    settings = settings_of(tmp_path)
    prediction, labels = tmp_path / "test_prediction.h5", tmp_path / "test_labels.h5"
    decode(open_volume(prediction), settings.decode, labels, record.of_labels(settings, prediction))
    assert results.why_decode(labels, prediction, record.of_labels(settings, prediction)) is None
    assert learn_contacts(["--cfg", str(tmp_path / "run.toml"), "--from", str(trained / "train_prediction.h5"),
                           f"{trained}/train_labels.h5:main", "seed=5"]) == 0
    assert (tmp_path / "contacts.json").read_bytes() != (trained / "contacts.json").read_bytes()
    why = results.why_decode(labels, prediction, record.of_labels(settings, prediction))
    assert why == "the classifier in decode.learned.file is another one by now"
    (tmp_path / "contacts.json").unlink()
    with pytest.raises(InputError, match="learn-contacts writes it"):
        record.of_labels(settings, prediction)


def test_the_sentence_of_a_damaged_file_names_the_command():
    assert "learn-contacts" in str(damaged("x.json", "it is empty"))


def test_a_classifier_of_too_many_steps_or_units_is_refused_before_memory_is_taken(tmp_path):
    net = read_net(Path(__file__).resolve().parent.parent / "weights" / "fib25_contacts.json")
    path = tmp_path / "net.json"
    write_net(path, replace(net, steps=net.steps * 20))
    with pytest.raises(InputError, match="in its steps"):
        read_net(path)
    write_net(path, replace(net, biases=np.zeros((5, 2000), np.float32)))
    with pytest.raises(InputError, match="2000 hidden units"):
        read_net(path)


def test_results_do_nothing_beside_edits(trained, capsys):
    given = ["--cfg", str(trained / "run.toml"), "--results", str(trained), "--edits", "p.h5", "edits.csv"]
    assert "--results names predictions" in refused(lambda _: learn_contacts(given), capsys)


def test_a_volume_of_a_single_cluster_is_one_segment(trained, tmp_path):
    """Where the first merges leave no contact there is nothing to classify."""
    found = open_volume(predicted(tmp_path / "one.h5", np.ones((9, 18, 20, 22), np.float32)))
    assert (learned_segmentation(found, settings_of(trained).decode).labels(0.5) == 1).all()
