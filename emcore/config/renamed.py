"""Settings that have another name now; the old ones are taken until the next release, with one sentence on stderr."""

# (class of the table, old name) -> new name
RENAMED = {
    ("AffinityDecode", "score"): "statistic",
    ("Space", "score"): "statistic",
    ("Sweep", "merges"): "statistics",
}
