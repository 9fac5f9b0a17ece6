"""python -m emcore learn-contacts: trains the classifier of [decode.learned] from predictions and their labels.

    python -m emcore learn-contacts --cfg C --results FOLDER           # the volumes of data.test and their predictions
    python -m emcore learn-contacts --cfg C --from my_prediction.h5 my_labels.h5:labels
    python -m emcore learn-contacts --cfg C --edits my_prediction.h5 my_edits.csv    # decisions instead of labels

It writes the file that decode.learned.file names. Fragments and first merges are those of [decode], at several
thresholds around decode.learned.first_threshold; two clusters have a border where the bodies that most of their voxels
lie in differ. Of edits, a join says that there is no border between the clusters of its two places, and a split that
there is one; what joins connect is one neuron. As many contacts are added whose affinities leave no question. Volumes
that are to be scored should not be learned from, and nets predict what they were trained on better than what they will
see: sections that the net has not seen make the better classifier.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emcore import config, results
from emcore.decode.contact_net import ContactNet, read_net, train_net, write_net
from emcore.decode.features import features
from emcore.decode.learned import first_clusters, fragments_named, fragments_of, read_groups, voxels_of
from emcore.errors import InputError
from emcore.metrics.placement import Shared, placed
from emcore.metrics.tables import Contingency, contingency
from emcore.segment import Edit, read_edits
from emcore.segment.contacts import Contacts, first_graph, measure_contacts, pool_contacts
from emcore.segment.edit_files import DROP
from emcore.segment.edits import Decisions, decided, ids_at, united
from emcore.settings import Settings
from emcore.settings.decode import AffinityDecode
from emcore.volumes import open_volume
from emcore.volumes.address import located

LEVELS = (0.5, 0.75, 1.0, 1.25)  # They multiply decode.learned.first_threshold, so clusters differ in size.
PURE = 0.7  # part of a cluster that has to lie in one body, or its contacts teach nothing
LEAST_EDGES = 50  # Each of the two kinds needs so many.
SURE = 0.2  # Where decisions teach, a mean affinity this close to 0 or 1 says by itself whether there is a border.


@dataclass(frozen=True)
class Source:
    """What is known of a volume: the contacts of its fragments, and the bodies that these lie in."""

    name: str
    steps: tuple[tuple[int, int, int], ...]
    resolution: tuple[float, ...]
    contacts: Contacts
    bodies: Contingency  # labels are fragments
    place: Shared  # where prediction and labels lie on each other

    def edges(self, threshold: float, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """(features, whether there is a border) of the contacts of clusters that lie in one body each."""
        table = first_clusters(self.contacts, threshold, limit)
        pooled = pool_contacts(self.contacts, table)
        body, share = largest_body(self.bodies, table)
        u, v = pooled.u, pooled.v
        used = (share[u] > PURE) & (share[v] > PURE)
        return features(pooled)[used], (body[u] != body[v])[used]


@dataclass(frozen=True)
class Answers:
    """What is known of a volume without labels: the contacts of its fragments, and decisions about some of them."""

    name: str
    steps: tuple[tuple[int, int, int], ...]
    resolution: tuple[float, ...]
    contacts: Contacts
    decisions: Decisions

    def edges(self, threshold: float, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """(features, whether there is a border) of contacts that decisions tell, and of as many that need none.

        These are drawn from the contacts whose mean affinity leaves no question, as people are not asked about them.
        """
        table = first_clusters(self.contacts, threshold, limit)
        pooled = pool_contacts(self.contacts, table)
        joined, apart = (table[ids.astype(np.int64)].astype(np.int64) for ids in (
            self.decisions.joined, self.decisions.apart))
        count = int(table.max()) + 1
        neuron = united(count, joined)
        codes, foes = (np.minimum(*ends) * count + np.maximum(*ends) for ends in (
            (neuron[pooled.u], neuron[pooled.v]), neuron[apart].T))
        mixed = foes[foes // count == foes % count] // count  # The first merges were wrong there.
        border = np.isin(codes, foes)
        used = (border | (codes // count == codes % count)) & ~np.isin(codes // count, mixed)
        used &= ~np.isin(codes % count, mixed)
        mean = first_graph(pooled).mean
        sure = np.flatnonzero(((mean < SURE) | (mean > 1 - SURE)) & ~used)
        told = np.flatnonzero(used)
        drawn = np.random.default_rng(0).permutation(sure)[:len(told)]
        return features(pooled)[np.append(told, drawn)], np.append(border[told], mean[drawn] < SURE)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore learn-contacts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="TOML file with the settings of the run")
    parser.add_argument("--params", help="TOML file laid over --cfg, such as one that names other volumes")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where the predictions of data.test stand; by "
                        "default those of the run's newest checkpoint")
    parser.add_argument("--from", dest="pairs", nargs=2, action="append", default=[], metavar=("PREDICTION", "LABELS"),
                        help="a stored prediction and its labels, instead of data.test; may be given several times")
    parser.add_argument("--edits", nargs=2, action="append", default=[], metavar=("PREDICTION", "FILE"),
                        help="a stored prediction and edits of its labels; may be given several times")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where it is written, in place of decode.learned.file")
    parser.add_argument("overrides", nargs="*", help="settings to change, such as decode.fragments=faces-1")
    options, more = parser.parse_known_args(arguments)
    settings = config.load(Settings, options.cfg, [*options.overrides, *more], options.params)
    decode = check_decode(settings)
    out = options.out or Path(decode.learned.file)
    if options.results and (options.pairs or options.edits):
        raise InputError("--results names predictions of data.test, and --from and --edits take the place of these: "
                         "leave it out")
    pairs = options.pairs or ([] if options.edits else pairs_of(settings, options.results))
    for pair in pairs:  # says what is wrong with one before work begins with another
        for path in pair:
            open_volume(path)
    answered = [(prediction, read_edits(file)) for prediction, file in options.edits]
    sources: list[Source | Answers] = []
    ignored = (0, *settings.data.background, *settings.data.ignore)
    for make, *given in [*((source_of, *pair, decode, ignored) for pair in pairs),
                         *((answers_of, *pair, decode) for pair in answered)]:
        start, prediction = time.monotonic(), given[0]
        sources.append(make(*given))
        found = sources[-1].contacts
        print(f"{prediction}: {found.fragments} fragments, {len(found.u)} contacts, "
              f"{time.monotonic() - start:.1f} s", flush=True)
    start = time.monotonic()
    net, edges = learn(sources, decode, settings.seed)
    write_net(out, net)
    read_net(out)  # what cannot be read is said now
    print(f"{out}: learned from {edges} contacts in {time.monotonic() - start:.1f} s")
    return 0


def check_decode(settings: Settings) -> AffinityDecode:
    """[decode] of settings that have a table [decode.learned]."""
    if not isinstance(settings.decode, AffinityDecode) or settings.decode.learned is None:
        raise InputError("there is no [decode.learned] in these settings: set decode.learned.file to the file that is "
                         "to be written")
    return settings.decode


def pairs_of(settings: Settings, folder: Path | None) -> list[tuple[str, str]]:
    """The predictions of data.test and their labels."""
    files = results.files_of(settings, folder or results.newest(settings))
    pairs = [(str(prediction), located(settings.data.folder, volume.label))
             for (prediction, _), volume in zip(files, settings.data.test) if volume.label is not None]
    if not pairs:
        raise InputError("no volume of data.test has a label to learn from; name one, or --from PREDICTION LABELS")
    return pairs


def source_of(prediction: str, labels: str, decode: AffinityDecode, ignored: Sequence[int]) -> Source:
    """The contacts in a prediction, and which bodies of the labels its fragments lie in."""
    volume, truth = open_volume(prediction), open_volume(labels, kind="labels")
    affs, steps, resolution = read_groups(volume)
    place = placed(volume, truth, None)
    fragments = fragments_of(affs, decode)
    contacts = measure_contacts(fragments, affs)
    bodies = contingency(truth[place.theirs], fragments[place.ours], ignore_truth=tuple(dict.fromkeys(ignored)))
    return Source(prediction, steps, resolution, contacts, bodies, place)


def answers_of(prediction: str, edits: Sequence[Edit], decode: AffinityDecode) -> Answers:
    """The contacts in a prediction, and what edits say about its fragments; those within one say nothing."""
    affs, steps, resolution = read_groups(open_volume(prediction))
    fragments = fragments_of(affs, decode)
    ids = ids_at(edits, fragments.shape, lambda place: (int(fragments[place]), 1))
    told = [at for at, (edit, pair) in enumerate(zip(edits, ids)) if edit.kind != DROP and pair.all()
            and pair[0] != pair[1]]
    if not told:
        raise InputError(f"none of the {len(edits)} edits of {prediction} is about two of its fragments, so there is "
                         "nothing to learn from them")
    decisions = decided([edits[at] for at in told], ids[told])
    return Answers(prediction, steps, resolution, measure_contacts(fragments, affs), decisions)


def learn(sources: Sequence[Source | Answers], decode: AffinityDecode, seed: int) -> tuple[ContactNet, int]:
    """(classifier, contacts that it learned from); the sources must have affinities and voxels alike."""
    first = sources[0]
    for source in sources[1:]:
        if source.steps != first.steps or not np.allclose(source.resolution, first.resolution, rtol=0.02):
            raise InputError(f"{source.name} has steps {source.steps} and voxels of {source.resolution} nm, "
                             f"{first.name} {first.steps} and {first.resolution}: a classifier learns from alike ones")
    limit = voxels_of(decode.learned, first.resolution)
    thresholds = [min(1.0, level * decode.learned.first_threshold) for level in LEVELS]
    found = [source.edges(threshold, limit) for source in sources for threshold in thresholds]
    values, borders = (np.concatenate(part) for part in zip(*found))
    if min(borders.sum(), len(borders) - borders.sum()) < LEAST_EDGES:
        raise InputError(f"there are {borders.sum()} contacts across a border and {len(borders) - borders.sum()} "
                         f"within a body to learn from, and {LEAST_EDGES} of each are needed: name more volumes")
    made_of = tuple(Path(source.name).name for source in sources)
    net = ContactNet(first.steps, first.resolution, fragments_named(decode), made_of,
                     **train_net(values, borders, seed))
    return net, len(borders)


def largest_body(bodies: Contingency, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the body that most voxels of every cluster lie in, their part of those that have one), by cluster."""
    kept = bodies.kept
    clusters = table[bodies.labels[kept].astype(np.int64)].astype(np.uint64)
    names, which = np.unique(np.stack([clusters, bodies.truth[kept].astype(np.uint64)]), axis=1,
                             return_inverse=True)
    count = np.zeros(names.shape[1], np.int64)
    np.add.at(count, which.reshape(-1), bodies.counts[kept])
    body, most, total = (np.zeros(int(table.max()) + 1, dtype) for dtype in (np.uint64, np.int64, np.int64))
    order = np.argsort(count, kind="stable")  # The last one stays where there are several.
    cluster = names[0].astype(np.int64)[order]
    body[cluster], most[cluster] = names[1][order], count[order]
    np.add.at(total, cluster, count[order])
    return body, most / np.maximum(total, 1)
