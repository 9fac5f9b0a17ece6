"""Which statistic of the affinities between two regions decides when they merge, by the names of waterz and PyTC.

Two regions merge at the height 1 - the statistic. Only reducible statistics are here: a pooled edge is never better
than the better of its parts. With them, merges can be done in any order that takes mutually best pairs, tree and cuts
agree, and volumes may be decoded in blocks.
"""

import re
from dataclasses import dataclass

from emcore.errors import InputError


@dataclass(frozen=True)
class Statistic:
    """Holds what the name of a merge statistic says; a quantile looks at the largest affinities or at all of them.

    Attributes:
        kind: "mean", "max", "min" or "quantile".
        quantile: percent; 0 for the other kinds.
        bins: the bins of a histogram of 0 to 1; 0 stands for the values themselves.
        every_contact: whether a quantile is over every affinity of a contact, or over the largest one of each pair of
            fragments. The default is False.

    Examples:
        >>> from emcore import segment
        >>> segment.parse_statistic("aff75_his256_all")
        Statistic(kind='quantile', quantile=75, bins=256, every_contact=True)
    """

    kind: str
    quantile: int = 0
    bins: int = 0
    every_contact: bool = False

    @property
    def name(self) -> str:
        """The name that gives this statistic."""
        if self.kind != "quantile":
            return self.kind
        return f"aff{self.quantile}" + (f"_his{self.bins}" if self.bins else "") + "_all" * self.every_contact


_NAMED = {
    "mean": Statistic("mean"), "affmean": Statistic("mean"), "mean_affinity": Statistic("mean"),
    "max": Statistic("max"), "affmax": Statistic("max"), "max_affinity": Statistic("max"),
    "min": Statistic("min"), "affmin": Statistic("min"), "min_affinity": Statistic("min"),
    "hist_quantile": Statistic("quantile", 50, 256), "hist_quantile_false": Statistic("quantile", 50, 256, True),
}
_TYPED = {"MeanAffinity": "mean", "MaxAffinity": "max", "MinAffinity": "min"}
_QUANTILE = re.compile(r"aff(\d+)(?:_his(\d+))?(_all)?")
_TYPE = re.compile(r"OneMinus<(\w+)<RegionGraphType,(?:(\d+),)?ScoreValue(?:,(\d+))?(?:,(true|false))?>>")
_NOT_REDUCIBLE = {
    r"max\d+|.*MaxK.*": "the mean of the largest values",
    r".*(contact|area).*": "a number that grows with the contact",
    r".*(size|random|const).*": "no statistic of affinities",
}


def parse_statistic(name: "str | Statistic") -> Statistic:
    """Reads the name of a merge statistic.

    Args:
        name: "mean", "max" or "min" of the affinities of a contact; "aff85_his256", the 85th percentile of the largest
            affinities in 256 bins; "aff85", the same without bins; "aff85_his256_all", the percentile of all affinities
            of the contact; a type of waterz; or a `Statistic`, which is returned.

    Returns:
        The `Statistic`.

    Raises:
        InputError: no statistic has this name; the message lists what there is.

    Cost:
        None.

    Examples:
        >>> from emcore import segment
        >>> segment.parse_statistic("mean").name
        'mean'
    """
    if isinstance(name, Statistic):
        return name
    text = re.sub(r"\s", "", str(name)).removesuffix("_ran255")
    typed = _TYPE.fullmatch(text)
    if text.lower() in _NAMED:
        return _NAMED[text.lower()]
    if match := _QUANTILE.fullmatch(text):
        quantile, bins, every = int(match[1]), int(match[2] or 0), bool(match[3])
    elif typed and typed[1] in _TYPED and not typed[2]:
        return Statistic(_TYPED[typed[1]])
    elif typed and typed[2] and typed[1] in ("HistogramQuantileAffinity", "QuantileAffinity"):
        quantile, bins, every = int(typed[2]), int(typed[3] or 0), typed[4] == "false"
    else:
        for pattern, what in _NOT_REDUCIBLE.items():
            if re.fullmatch(pattern, text, re.IGNORECASE):
                raise InputError(f"statistic {name!r} is {what}: it is not reducible, so the result would depend on "
                                 "the order of merges; use mean, max, min or a quantile like aff85_his256")
        raise InputError(f"unknown statistic {name!r}; there are mean, max, min, aff85_his256 (85 % quantile, 256 "
                         "bins), aff85 (exact) and aff85_his256_all (over every contact)")
    if quantile > 100 or bins > 65536:
        raise InputError(f"statistic {name!r} must have a quantile of 0 to 100 percent and at most 65536 bins")
    if every and bins != 256:
        raise InputError(f"statistic {name!r}: a quantile over every contact needs 256 bins: aff{quantile}_his256_all")
    return Statistic("quantile", quantile, bins, every)
