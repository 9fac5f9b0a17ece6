"""Edits held by looking at everything again after every merge."""

from fractions import Fraction

UNIT = 2**24


def group_of(groups, fragment):
    return next(group for group in groups if fragment in group)


def merged(groups, one, other):
    first, second = group_of(groups, one), group_of(groups, other)
    return groups if first is second else [group for group in groups if group not in (first, second)] + [first | second]


def quarrel(fragments, joins, splits, drops):
    """Whether fragments that lie together are held apart, or a dropped one lies with one that a join names."""
    named = {fragment for pair in joins for fragment in pair}
    return any(a in fragments and b in fragments for a, b in splits) or (
        bool(fragments & set(drops)) and bool(fragments & named))


def edited(objects, merges, contacts, joins, splits, drops, largest):
    """The new label of every fragment.

    objects: {fragment: label}, 0 where it has none; merges: (a, b) in their order; contacts: {(a, b): (count, sum,
    key)}.
    """
    named = {objects[fragment] for pair in [*joins, *splits] for fragment in pair} | {objects[one] for one in drops}
    inside = [fragment for fragment, label in objects.items() if label in named]
    first = {label: min(one for one in inside if objects[one] == label) for label in named}
    unions = [frozenset([one]) for one in inside]
    for a, b in [*joins, *((one, first[objects[one]]) for one in inside)]:
        unions = merged(unions, a, b)
    parts = []
    for union in unions:
        parts += divided(union, objects, merges, contacts, joins, splits, drops)
    new, number = dict(objects), largest
    for part in sorted(parts, key=min):
        kept = [label for label in named if first[label] in part]
        if part & set(drops):
            label = 0
        elif kept:
            label = min(kept)
        else:
            label = number = number + 1
        new.update(dict.fromkeys(part, label))
    return new


def divided(union, objects, merges, contacts, joins, splits, drops):
    """The parts of objects that joins make one."""
    if not quarrel(union, joins, splits, drops):
        return [union]
    parts = [frozenset([one]) for one in union]
    for a, b in joins:
        parts = merged(parts, a, b) if a in union else parts
    for a, b in merges:
        if a in union:
            tried = merged(parts, a, b)
            if any(quarrel(part, joins, splits, drops) for part in tried):
                break
            parts = tried
    while True:
        found = []
        for number, one in enumerate(parts):
            for other in parts[:number]:
                rows = [row for (a, b), row in contacts.items() if objects[a] == objects[b] and (
                    (a in one and b in other) or (b in one and a in other))]
                if rows and not quarrel(one | other, joins, splits, drops):
                    mean = Fraction(sum(row[1] for row in rows), UNIT * sum(row[0] for row in rows))
                    found.append((1 - mean, max(row[2] for row in rows), one, other))
        if not found:
            return with_stray(parts, objects, lambda *two: quarrel(frozenset().union(*two), joins, splits, drops))
        _, _, one, other = min(found, key=lambda row: row[:2])
        parts = [part for part in parts if part not in (one, other)] + [one | other]


def with_stray(parts, objects, quarrels):
    """Parts without a place to hold apart go with the first that has one, and fragments of their object."""
    holders = [part for part in parts if any(quarrels(part, other) for other in parts if other is not part)]
    stray = [part for part in parts if part not in holders]
    while stray:
        taken = []
        for part in stray:
            mine = {objects[one] for one in part}
            near = [number for number, holder in enumerate(holders) if mine & {objects[one] for one in holder}]
            taken += [(part, min(near, key=lambda number: min(holders[number])))] if near else []
        for part, number in taken:
            holders[number] |= part
        stray = [part for part in stray if part not in [one for one, _ in taken]]
    return holders
