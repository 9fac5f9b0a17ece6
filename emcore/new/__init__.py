"""A recipe for one's own volume and labels: what they are (facts), what follows (rules), what it costs (costs)."""
