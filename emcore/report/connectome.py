"""python -m emcore connectome --labels L --synapses S OUT: which neuron talks to which, as tables, a graph and a page.

OUT/synapses.csv has a line for each synapse and partner, OUT/edges.csv one for each pair of neurons. graph.graphml and
graph.npz hold the same graph for other programs, and connectome.html shows it.
"""

import argparse
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from emcore.errors import InputError
from emcore.files import reported, write_text
from emcore.png import colour_labels, overlay
from emcore.progress import Working
from emcore.report.html import filled, picture, policy, read, table
from emcore.report.wiring_files import write_files
from emcore.segment.edges import Connections, connections
from emcore.segment.wiring import SHARE, Partners, on_grid_of, partners
from emcore.volumes import Volume, open_volume, placement

SHOWN = 40  # neurons of the matrix
PAIRS = 12  # strongest ones, each with pictures
REACH = 64  # voxels around a synapse, along y and x
BARS = 40  # A histogram has at most so many.
CELL, LETTER = 14, 7  # pixels
STYLE = """
.row { display: flex; flex-wrap: wrap; gap: .7rem; margin-bottom: 1rem; }
.row figure { margin: 0; }
.row figcaption { color: var(--soft); font-size: .85rem; }
.row img { display: block; image-rendering: pixelated; }
.matrix text { fill: var(--soft); font-size: 11px; }
.matrix rect { fill: var(--accent); }
.matrix .frame { fill: none; stroke: var(--rule); }
h3 { margin: .8rem 0 .3rem; font-size: 1rem; }
"""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore connectome", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", required=True, metavar="L", help="labels of neurons: file, or file:dataset")
    parser.add_argument("--synapses", required=True, metavar="S",
                        help="labels of synapses on the same voxels: synapse n has the id 2n - 1 on its presynaptic "
                        "and 2n on its postsynaptic side")
    parser.add_argument("--clefts", action="store_true", help="each id of S is a cleft, which has no sides")
    parser.add_argument("--direction", metavar="P",
                        help="with --clefts: a prediction of the channels pre and post, which says which side is which")
    parser.add_argument("--image", metavar="I", help="the micrographs, for the pictures of the page")
    parser.add_argument("--share", type=float, default=SHARE, metavar="X",
                        help="least share of the votes behind a synapse, those for the presynaptic neuron left out, "
                        "that a further partner needs (default %(default)s)")
    parser.add_argument("--resolution", type=float, nargs=3, metavar=("Z", "Y", "X"),
                        help="size of a voxel in nm, where the files do not say it")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the files")
    options = parser.parse_args(arguments)
    if options.direction and not options.clefts:
        raise InputError("--direction belongs to --clefts: labels of both sides say which is which")
    labels, synapses = open_volume(options.labels, kind="labels"), open_volume(options.synapses, kind="labels")
    labels = on_grid_of(labels, synapses)
    image = None if options.image is None else open_image(options.image, labels)
    write_connectome(options.out, labels, synapses, "clefts" if options.clefts else "polarity", image,
                     options.resolution, options.direction, options.share)
    return 0


def write_connectome(out: Path, labels: Volume, synapses: Volume, kind: str,
                     image: tuple[Volume, tuple[slice, ...]] | None, resolution: Sequence[float] | None,
                     direction: str | None = None, share: float = SHARE) -> None:
    """Writes all files of a connectome into a folder, and says what was found."""
    with Working("find the partners of synapses"):
        found = partners(labels, synapses, kind, direction=direction, resolution=resolution, share=share)
    edges = connections(found)
    with reported(out):
        out.mkdir(parents=True, exist_ok=True)
    write_files(out, found, edges)
    page = out / "connectome.html"
    write_text(page, connectome_page(found, edges, labels, image, resolution or labels.resolution))
    missing = len(np.unique(found.synapse[~found.resolved]))
    print(f"{len(np.unique(found.synapse))} synapses, {missing} of them without a partner on one side, "
          f"{len(edges)} pairs of {len(edges.neurons)} neurons\n{page}")


def open_image(reference: str, labels: Volume) -> tuple[Volume, tuple[slice, ...]]:
    """The micrographs, and where the labels lie in them."""
    image = open_volume(reference, kind="image")
    if image.ndim != 3:
        raise InputError(f"--image takes (z, y, x); {image.name} has the shape {image.shape}")
    return image, placement(labels, image)


def connectome_page(found: Partners, edges: Connections, labels: Volume,
                    image: tuple[Volume, tuple[slice, ...]] | None, resolution: Sequence[float] | None) -> str:
    """One HTML file that needs no network."""
    style = read("page.css") + STYLE
    sizes = resolution or (1.0, 1.0, 1.0)
    return filled("connectome.html", {
        "policy": policy(style), "style": style, "title": "Connectome", "subtitle": escape(labels.name),
        "summary": summary(found, edges), "matrix": matrix(edges), "degrees": degrees(edges),
        "pairs": "".join(pair(rank, row, found, edges, labels, image, sizes)
                         for rank, row in enumerate(strongest(edges), start=1)) or "<p>There are none.</p>"})


def summary(found: Partners, edges: Connections) -> str:
    numbers = np.unique(found.synapse)
    open_ones = len(np.unique(found.synapse[~found.resolved]))
    undirected = int(np.count_nonzero(found.resolved & ~found.directed))
    rows = [("synapses", f"{len(numbers):,}"), ("of them without a neuron on one side", f"{open_ones:,}"),
            ("pairs of a synapse and a partner", f"{int(found.resolved.sum()):,}"),
            ("of them of unknown direction", f"{undirected:,}"),
            ("neurons with a partner", f"{len(edges.neurons):,}"), ("pairs of neurons", f"{len(edges):,}")]
    return table(("", "number"), rows, "A synapse may have several postsynaptic partners.")


def strongest(edges: Connections) -> np.ndarray:
    """The rows of the pairs with most synapses, then most voxels, then smallest ids."""
    return np.lexsort((edges.post, edges.pre, -edges.size, -edges.count))[:PAIRS]


def matrix(edges: Connections) -> str:
    """The numbers of synapses of the neurons that have most, presynaptic ones down and postsynaptic ones across."""
    if not len(edges):
        return "<p>No synapse joins two neurons.</p>"
    neurons = edges.neurons
    rows, columns = np.searchsorted(neurons, edges.pre), np.searchsorted(neurons, edges.post)
    total = np.bincount(rows, edges.count, len(neurons)) + np.bincount(columns, edges.count, len(neurons))
    chosen = np.argsort(-total, kind="stable")[:SHOWN]
    place = np.full(len(neurons), -1)
    place[chosen] = np.arange(len(chosen))
    size, most = CELL * len(chosen), edges.count.max()
    margin = 14 + LETTER * max(len(str(neuron)) for neuron in neurons[chosen].tolist())
    parts = [f'<rect class="frame" x="{margin}" y="{margin}" width="{size}" height="{size}"/>']
    for at, neuron in enumerate(neurons[chosen].tolist()):
        middle = margin + CELL * at + CELL - 3
        parts.append(f'<text x="{margin - 4}" y="{middle}" text-anchor="end">{neuron}</text>'
                     f'<text transform="translate({middle} {margin - 4}) rotate(-90)">{neuron}</text>')
    for edge in np.flatnonzero((place[rows] >= 0) & (place[columns] >= 0)).tolist():
        x, y = margin + CELL * place[columns[edge]], margin + CELL * place[rows[edge]]
        joint = "to" if edges.directed[edge] else "and"
        strength = 0.25 + 0.75 * edges.count[edge] / most
        parts.append(f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill-opacity="{strength:.2f}"><title>'
                     f"{edges.pre[edge]} {joint} {edges.post[edge]}: {several(edges.count[edge])}</title></rect>")
    note = "" if len(chosen) == len(neurons) else f", the {len(chosen)} of {len(neurons)} with most synapses"
    whole = margin + size + 4
    return (f'<p class="caption">Presynaptic neurons down, postsynaptic ones across{note}; the darker, the more '
            f"synapses (at most {most}). Where the direction is unknown, the smaller id is down.</p>"
            f'<div class="scroll"><svg class="matrix" width="{whole}" height="{whole}" viewBox="0 0 {whole} {whole}" '
            f'role="img" aria-label="matrix of synapses">{"".join(parts)}</svg></div>')


def degrees(edges: Connections) -> str:
    """How many neurons have how many partners, and how many pairs how many synapses."""
    ways = {"neurons by their postsynaptic partners": edges.pre, "neurons by their presynaptic partners": edges.post}
    if not edges.directed.any():
        ways = {"neurons by their partners": np.concatenate([edges.pre, edges.post])}
    shown = [histogram(np.unique(ids, return_counts=True)[1], title) for title, ids in ways.items()]
    return f'<div class="plots">{"".join([*shown, histogram(edges.count, "pairs by their synapses")])}</div>'


def histogram(values: np.ndarray, title: str) -> str:
    """Bars: of how many things a whole number is what."""
    if not len(values):
        return ""
    width = -(-int(values.max()) // BARS)
    counts = np.bincount((values - 1) // width)
    step = max(1, len(counts) // 8)
    parts = []
    for bar, count in enumerate(counts.tolist()):
        height, x = 150 * count / counts.max(), 14 + 14 * bar
        first, last = bar * width + 1, (bar + 1) * width
        name = str(first) if width == 1 else f"{first} to {last}"
        parts.append(f'<rect x="{x}" y="{170 - height:.1f}" width="12" height="{height:.1f}"><title>{name}: {count}'
                     "</title></rect>")
        if bar % step == 0:
            parts.append(f'<text x="{x + 6}" y="184" text-anchor="middle">{first}</text>')
    wide = 40 + 14 * len(counts)
    return (f'<figure class="matrix"><figcaption>{title}, at most {counts.max()} in a bar</figcaption><svg '
            f'width="{wide}" height="190" viewBox="0 0 {wide} 190" role="img" aria-label="{title}">{"".join(parts)}'
            "</svg></figure>")


def pair(rank: int, edge: int, found: Partners, edges: Connections, labels: Volume,
         image: tuple[Volume, tuple[slice, ...]] | None, sizes: Sequence[float]) -> str:
    """A pair of neurons at its largest synapse."""
    pre, post, directed = edges.pre[edge], edges.post[edge], edges.directed[edge]
    rows = np.flatnonzero((found.pre == pre) & (found.post == post) & (found.directed == directed))
    row = rows[found.size[rows].argmax()]
    middle = np.rint((found.place[row] - labels.offset) / sizes).astype(int).clip(0, np.array(labels.shape) - 1)
    box = (slice(middle[0], middle[0] + 1), *(slice(max(0, at - REACH), min(end, at + REACH))
                                              for at, end in zip(middle[1:].tolist(), labels.shape[1:])))
    ids = labels[box][0]
    ids = np.where((ids == pre) | (ids == post), ids, 0)
    pictures = {"labels": colour_labels(ids)}
    if image is not None:
        volume, start = image
        grey = in_grey(volume[tuple(slice(span.start + at.start, span.stop + at.start)
                                    for span, at in zip(box, start))][0])
        pictures = {"image": grey, "both neurons": overlay(grey, ids)}
    shown = "".join(picture(view, 2 * view.shape[1], 2 * view.shape[0], name) for name, view in pictures.items())
    z, y, x = middle.tolist()
    place = ", ".join(f"{at:g}" for at in found.place[row].tolist())
    return (f"<h3>{rank}. {pre} {'to' if directed else 'and'} {post}: {several(edges.count[edge])}, "
            f"{edges.size[edge]:,} voxels</h3><p class=\"caption\">the largest, synapse {found.synapse[row]}, at voxel "
            f"z {z}, y {y}, x {x} ({place} nm)</p><div class=\"row\">{shown}</div>")


def several(count: int) -> str:
    return "1 synapse" if count == 1 else f"{count} synapses"


def in_grey(values: np.ndarray) -> np.ndarray:
    """8 bits as they are, others from their smallest to their largest value."""
    if values.dtype == np.uint8:
        return values
    values = np.nan_to_num(values.astype(np.float64))
    low, high = values.min(), values.max()
    return np.round(255 * (values - low) / (high - low or 1)).astype(np.uint8)
