"""From the merges of blocks to labels at a threshold: the stages that a cut takes, and what comes after it.

    cut k n          from the last partition to the first: what clusters are called at the threshold
    numbers          the labels that these names get
    sizes i          the voxels of the segments in a block, and in `segments` those of the volume
    borders i        of small segments; `dust` merges and removes these
    overlaps i       of segments in consecutive sections; `links z` and `linked` join them
    edits            what fragments become in the objects that edits name
    labels i         the voxels
"""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np

from emcore.blocks import borders, cuts, dust, editing, linking, runs, store
from emcore.blocks.grid import Box
from emcore.blocks.leaves import Columns
from emcore.blocks.merging import TreeWork
from emcore.blocks.windows import extent, moved, places_of
from emcore.blocks.work import Stage, digest_of
from emcore.record import LABELS
from emcore.segment import Affinities, LinkRule
from emcore.segment.cleanup import clear_boundaries
from emcore.segment.edit_files import Edit, Place, canonical
from emcore.segment.edits import decided, ids_at, places_of_edits
from emcore.segment.merge_tree import look_up
from emcore.segment.relabeling import remap


@dataclass(frozen=True)
class AffinityWork(TreeWork):
    """The decoding of a prediction by decode.kind = "affinities", and edits that its labels hold."""

    edits: tuple[Edit, ...] = ()

    def at(self, threshold: float) -> "AffinityWork":
        """The same work with another threshold, up to the end of its merges."""
        settings = replace(self.settings, threshold=threshold, end=self.end)
        return replace(self, source=replace(self.source, settings=settings))

    # ---- stages

    @cached_property
    def folders(self) -> dict[str, str]:
        asked, found = self.settings, super().folders
        cut = digest_of(found["merges"], asked.threshold)
        sizes = digest_of(cut, asked.boundary)
        dust = digest_of(sizes, asked.dust_size, asked.dust_affinity, asked.remove_size)
        link = digest_of(dust, asked.link and asdict(asked.link))
        digests = {"cut": cut, "numbers": cut, "sizes": sizes, "segments": sizes,
                   "borders": digest_of(sizes, asked.dust_size), "dust": dust, "overlaps": link, "links": link,
                   "linked": link, LABELS: link}
        if self.edits:
            digests["edits"] = digests[LABELS] = digest_of(link, canonical(self.edits))
        return found | {name: f"{name}-{digest}" for name, digest in digests.items()}

    def stages(self) -> list[Stage]:
        blocks, asked = self.grid.blocks(), self.settings
        counts = {"numbers": 1}
        if self.cleans:
            counts |= {"sizes": blocks, "segments": 1}
            counts |= {"borders": blocks} if asked.dust_size else {}
            counts |= {"dust": 1}
        if asked.link is not None:
            counts |= {"overlaps": blocks, "links": self.grid.counts(0)[0], "linked": 1}
        counts |= {"edits": 1} if self.edits else {}
        counts |= {LABELS: blocks}
        down = [self.cut_stage(partition) for partition in reversed(range(len(self.grid.partitions)))]
        return [*self.tree_stages(), *down, *(Stage(name, count, self.folders[name]) for name, count in counts.items())]

    @property
    def cleans(self) -> bool:
        """Whether small segments are merged or removed."""
        return self.settings.dust_size > 0 or self.settings.remove_size > 0

    def cut_stage(self, partition: int) -> Stage:
        return Stage(f"cut {partition}", self.grid.partitions[partition].blocks(), f"{self.folders['cut']}/{partition}")

    def run(self, stage: Stage, number: int) -> None:
        if stage.name == LABELS:
            if not (self.edits and self.take_unchanged(stage, number)):
                self.write_labels(stage, number, self.final_labels(number))
        else:
            super().run(stage, number)

    # ---- the cut

    def make_cut(self, partition: int, number: int) -> Columns:
        windows, later = self.grid.partitions[partition], self.grid.partitions[partition + 1:]
        found = store.read(self.path(self.merge_stage(partition), number), "names", "root", "u", "v", "height")
        above = [self.read(f"cut {partition + 1}", other, "names", "final")
                 for other in (later[0].overlapping(windows.box(number)) if later else ())]
        return cuts.settled(*found, self.settings.threshold, above)

    def make_numbers(self, _: int) -> Columns:
        return cuts.numbered(lambda number: self.read("cut 0", number, "names", "final"), self.grid.blocks())

    def numbers_of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(the names of the fragments in and before a block, sorted, 0 first; the labels that they have at the cut)."""
        names, final = self.read("cut 0", number, "names", "final")
        clusters, numbers = self.read("numbers", 0, f"final_{number}", f"number_{number}")
        return names, numbers[places_of(final, clusters, np.int64)].astype(self.label_type)

    def cut_labels(self, number: int, before: int = 0) -> np.ndarray:
        """The labels of a block at the cut without boundaries; before=1: and of the section before it, if there is one.
        """
        begins, labels = self.read("fragments", number, *runs.NAMES)
        names, numbers = self.numbers_of(number)
        labels = numbers[places_of(self.names(number), names)][labels]  # runs are fewer than voxels
        found = runs.labels_of(begins, labels, extent(self.grid.box(number)))
        above = self.grid.neighbour(number, 0, 0) if before else None
        if above is not None:
            section = numbers[places_of(self.plane(above, 0, 1), names)]
            found = np.concatenate([section[None], found])
        if self.settings.boundary > 0:
            clear_boundaries(found, *self.affinities_of(number, len(found)), self.settings.boundary)
        return found

    def affinities_of(self, number: int, sections: int) -> tuple[Affinities, Box]:
        """The affinities of a block and of the planes before it; where its last so many sections lie in them."""
        window, inside = self.grid.grown(number, 1, 0)
        return self.source.affinities(window), (slice(inside[0].stop - sections, inside[0].stop), *inside[1:])

    # ---- small segments

    def make_sizes(self, number: int) -> Columns:
        numbers, voxels = dust.sizes_of(self.cut_labels(number))
        return {"numbers": numbers, "voxels": voxels}

    def make_segments(self, _: int) -> Columns:
        segments, = self.read("numbers", 0, "segments")
        parts = (self.read("sizes", number, "numbers", "voxels") for number in range(self.grid.blocks()))
        return {"voxels": dust.pool_sizes(parts, int(segments[0]))}

    def make_borders(self, number: int) -> Columns:
        graph = store.read_all(self.path(self.graph_stage, number))
        _, numbers = self.numbers_of(number)
        sizes, = self.read("segments", 0, "voxels")
        small = borders.is_small(numbers, sizes, self.settings.dust_size)
        return borders.border_columns(graph, numbers, small, self.statistic)

    def make_dust(self, _: int) -> Columns:
        stage = self.stage_named.get("borders")
        parts = (store.read_all(self.path(stage, number)) for number in range(stage.count if stage else 0))
        sizes, = self.read("segments", 0, "voxels")
        return {"table": dust.dust_table(parts, sizes, self.settings)}

    def cleaned_labels(self, number: int, before: int = 0) -> np.ndarray:
        """The labels of a block before sections are linked."""
        labels = self.cut_labels(number, before)
        if not self.cleans:
            return labels
        table, = self.read("dust", 0, "table")
        return look_up(labels, table.astype(self.label_type, copy=False), out=labels)

    # ---- links between sections

    @property
    def rule(self) -> LinkRule:
        return LinkRule(**asdict(self.settings.link))

    @property
    def pixels(self) -> int:
        """A whole section has so many."""
        return self.grid.shape[1] * self.grid.shape[2]

    def make_overlaps(self, number: int) -> Columns:
        labels, planes = self.cleaned_labels(number, before=1), None
        start = self.grid.box(number)[0].stop - len(labels)
        if self.rule.affinity:
            planes = linking.z_planes(*self.affinities_of(number, len(labels)))
        return linking.overlap_columns(labels, start, self.pixels, planes)

    def make_links(self, row: int) -> Columns:
        blocks = dict(self.grid.slabs())[row]
        parts = (dict(zip(linking.PAIRS, self.read("overlaps", number, *linking.PAIRS))) for number in blocks)
        return linking.decide(linking.pool_overlaps(parts), self.pixels, self.rule)

    def make_linked(self, _: int) -> Columns:
        stage = self.stage_named["links"]
        rows = [store.read_all(self.path(stage, row)) for row in range(stage.count)]
        spans = (dict(zip(linking.SPANS, self.read("overlaps", number, *linking.SPANS)))
                 for number in range(self.grid.blocks()))
        joined = linking.link_table(rows, spans)
        return {"old": joined.old, "new": joined.new}

    def linked_labels(self, number: int) -> np.ndarray:
        """The labels of a block before edits."""
        labels = self.cleaned_labels(number)
        if self.settings.link is None:
            return labels
        old, new = self.read("linked", 0, "old", "new")
        return remap(labels, (old, new.astype(labels.dtype)), missing="keep")

    def final_labels(self, number: int) -> np.ndarray:
        """The labels of a block as they are written."""
        labels = self.linked_labels(number)
        if not self.edits:
            return labels
        return editing.held(labels, *self.fragments(number), self.read("edits", 0, "names", "labels"))

    # ---- edits

    def make_edits(self, _: int) -> Columns:
        places = self.named_at(places_of_edits(self.edits, self.grid.shape))
        ids = ids_at(self.edits, self.grid.shape, places.__getitem__)
        decisions = decided(self.edits, ids)
        blocks, settings = range(self.grid.blocks()), self.settings
        objects = np.unique([label for _, label in places.values()])
        names, labels = editing.named_objects(map(self.labels_of_fragments, blocks), objects)
        stages = map(self.merge_stage, range(len(self.grid.partitions)))
        merges = editing.merges_inside(names, (store.read(self.path(stage, number), "a", "b", "height", "key")
                                             for stage in stages for number in range(stage.count)), settings.threshold)
        columns = ("names", *editing.EDGES)
        contacts = editing.edges_inside(names, labels, (
            dict(zip(columns, store.read(self.path(self.graph_stage, number), *columns))) for number in blocks))
        segments, = self.read("numbers", 0, "segments")
        return editing.edit_columns(names, labels, merges, contacts, decisions, int(segments[0]))

    def named_at(self, places: set[Place]) -> dict[Place, tuple[int, int]]:
        """The name of the fragment at every one of these places, and the label that it has before edits."""
        found = {}
        listed = sorted(places)
        numbers = self.grid.numbers_at(np.array(listed).T) if listed else []
        for number in np.unique(numbers):
            labels, (fragments, names) = self.linked_labels(int(number)), self.fragments(int(number))
            for place in (listed[at] for at in np.flatnonzero(numbers == number)):
                inside = tuple(at - span.start for at, span in zip(place, self.grid.box(int(number))))
                found[place] = int(names[fragments[inside]]), int(labels[inside])
        return found

    def labels_of_fragments(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(names, labels before edits) of the fragments in and before a block; 0 where a segment has no voxel left."""
        names, labels = self.numbers_of(number)
        if self.cleans:
            (table,), (voxels,) = self.read("dust", 0, "table"), self.read("segments", 0, "voxels")
            labels = np.where(voxels[labels] > 0, table[labels], 0)
        if self.settings.link is not None:
            old, new = self.read("linked", 0, "old", "new")
            labels = moved(labels, old, new)
        return names, labels

    def take_unchanged(self, stage: Stage, number: int) -> bool:
        """Whether no edit changes a block, and the file of its labels without edits has become that of this stage."""
        changed, = self.read("edits", 0, "names")
        plain = replace(self, edits=())
        before = plain.stages()[-1]
        if editing.ranks(changed, self.names(number))[1].any() or not plain.is_done(before, number):
            return False
        path = self.path(stage, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # A file system without hard links has the block written again.
            path.unlink(missing_ok=True)
            os.link(plain.path(before, number), path)
            return True
        return False
