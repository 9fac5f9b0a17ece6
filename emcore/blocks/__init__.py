"""Decoding in blocks: volumes beyond the memory of one machine, with the labels that the whole volume would have."""
