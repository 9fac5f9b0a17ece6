"""The statistics of contacts again, face by face in plain Python; see emcore/segment/contacts.py."""

import numpy as np

ONE = 2**24


def statistics(fragments, values, groups, stored_earlier=()):
    """({(u, v): statistics of faces}, [{(u, v): [count, sum]} for each longer step], {fragment: of its voxels}).

    values: float (c, z, y, x); groups: (channels along z, y, x, steps along z, y, x) of each, the nearest first;
    stored_earlier: channels whose values lie at the earlier voxel of a pair.
    """
    shape = fragments.shape
    units = np.floor(np.asarray(values, np.float32) * np.float32(ONE)).astype(np.int64)

    def pair(group, axis, later):
        """The affinity of the pair with this later voxel; None where there is none."""
        channel, step = groups[group][0][axis], groups[group][1][axis]
        earlier = list(later)
        earlier[axis] -= step
        if earlier[axis] < 0 or later[axis] >= shape[axis]:
            return None
        return int(units[(channel, *(earlier if channel in stored_earlier else later))])

    def height(voxel):
        total = 0
        for axis in range(3):
            for move in (0, 1):
                later = list(voxel)
                later[axis] += move
                found = pair(0, axis, later)
                total += 0 if found is None else ONE - found
        return total // 6

    def shifted(group, axis, voxel, move):
        step = groups[group][1][axis]
        later = list(voxel)
        later[axis] = max(step, min(shape[axis] - 1, voxel[axis] + move))
        return pair(group, axis, later)

    faces, long, inside = {}, [{} for _ in groups[1:]], {}
    for voxel in np.ndindex(shape):
        one = int(fragments[voxel])
        found = inside.setdefault(one, {"size": 0, "least": 2**31 - 1, "sums": [0] * (1 + len(groups))})
        found["size"] += 1
        found["least"] = min(found["least"], height(voxel))
        found["sums"][0] += height(voxel)
        for group in range(len(groups)):
            own = [pair(group, axis, voxel) for axis in range(3)]
            found["sums"][1 + group] += sum(ONE if value is None else value for value in own)
        for axis in range(3):
            for group in range(len(groups)):
                step = groups[group][1][axis]
                before = list(voxel)
                before[axis] -= step
                other = int(fragments[tuple(before)]) if before[axis] >= 0 else one
                if other == one or not one or not other:
                    continue
                ends = min(one, other), max(one, other)
                if group:
                    row = long[group - 1].setdefault(ends, [0, 0])
                    row[0] += 1
                    row[1] += pair(group, axis, voxel)
                    continue
                near = pair(0, axis, voxel)
                centred = [near if groups[g][1][axis] >= shape[axis]
                           else shifted(g, axis, voxel, (groups[g][1][axis] - 1) // 2) for g in range(len(groups))]
                quantities = [*centred, max(height(voxel), height(tuple(before))),
                              min(near, shifted(0, axis, voxel, -1), shifted(0, axis, voxel, 1))]
                row = faces.setdefault(ends, {"faces": [], "z": 0})
                row["faces"].append(quantities)
                row["z"] += axis == 0
    return faces, long, inside
