"""Slow and obvious: expected run length, edge by edge, from its definition."""

from collections import Counter, defaultdict


def run_length(skeletons, segments, edges, lengths, contact_nodes, convention, no_merge=()):
    """(ERL, ERL of a perfect segmentation); (None, None) without length."""
    nodes, masked = Counter(zip(skeletons, segments)), Counter(no_merge)
    total = defaultdict(float)
    runs = defaultdict(float)
    for (u, v), length in zip(edges, lengths):
        skeleton, segment = skeletons[u], segments[u]
        total[skeleton] += length
        if segment != segments[v] or segment == 0:
            continue
        enough = nodes[skeleton, segment] >= contact_nodes
        touching = {k for k, s in nodes if s == segment and nodes[k, s] >= contact_nodes}
        if len(touching) >= 2 and (enough or convention == "em_erl"):
            continue
        if masked[segment] > contact_nodes and enough:
            continue
        runs[skeleton, segment] += length
    whole = sum(total.values())
    if not whole:
        return None, None
    return sum(run**2 for run in runs.values()) / whole, sum(length**2 for length in total.values()) / whole
