"""From predictions to labels by [decode], and the search for its best settings: no torch."""
