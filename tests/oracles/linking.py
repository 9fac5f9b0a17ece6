"""Section linking and face merging with dicts of pixels, one pair of labels at a time."""

import numpy as np


def pixels(image):
    """label -> set of its pixels, background left out."""
    found = {}
    for where in np.ndindex(image.shape):
        if image[where]:
            found.setdefault(int(image[where]), set()).add(where)
    return found


def groups(pairs):
    """label -> smallest label it hangs together with."""
    name = {label: label for pair in pairs for label in pair}
    changed = True
    while changed:
        changed = False
        for a, b in pairs:
            lowest = min(name[a], name[b])
            changed |= name[a] != lowest or name[b] != lowest
            name[a] = name[b] = lowest
    return name


def face_pairs(first, second, affinities, min_overlap, iou, one_sided, one_sided_size, affinity):
    pairs = []
    for a, of_a in sorted(pixels(first).items()):
        for b, of_b in sorted(pixels(second).items()):
            common, smaller = of_a & of_b, min(len(of_a), len(of_b))
            if not common or len(common) < min_overlap or len(common) / len(of_a | of_b) < iou:
                continue
            if one_sided and (len(common) / smaller < one_sided or smaller < one_sided_size):
                continue
            if affinity and np.mean([float(affinities[p]) for p in sorted(common)]) < affinity:
                continue
            pairs.append((a, b))
    return pairs


def link_sections(labels, z_affinities, iou, best_buddy, one_sided, one_sided_size, affinity, min_size):
    sections = [pixels(section) for section in labels]
    where = {}
    for z, section in enumerate(sections):
        for label in section:
            where.setdefault(label, []).append(z)
    pairs = []
    for z in range(len(labels) - 1):
        below, above = ({k: v for k, v in s.items() if len(v) >= min_size} for s in sections[z:z + 2])
        best_above = {a: max(((len(below[a] & above[b]), -b) for b in above if b != a), default=(0, 0)) for a in below}
        best_below = {b: max(((len(below[a] & above[b]), -a) for a in below if b != a), default=(0, 0)) for b in above}
        for a, of_a in below.items():
            for b, of_b in above.items():
                common, smaller = of_a & of_b, min(len(of_a), len(of_b))
                ends, begins = max(where[a]) == z, min(where[b]) == z + 1
                if a == b or not common or not (ends or begins):
                    continue
                joined = bool(iou) and len(common) / len(of_a | of_b) >= iou
                joined |= bool(one_sided) and len(common) / smaller >= one_sided and smaller >= one_sided_size
                joined |= best_buddy and ends and begins and best_above[a][1] == -b and best_below[b][1] == -a
                if joined and affinity:
                    joined = np.mean([float(z_affinities[z + 1][p]) for p in sorted(common)]) >= affinity
                if joined:
                    pairs.append((a, b))
    name = groups(pairs)
    return np.vectorize(lambda label: name.get(label, label), otypes=[labels.dtype])(labels)
