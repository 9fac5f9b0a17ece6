"""What is of dbMiM alone: its data, its published checkpoints, the files of its evaluation, its rehearsal of blocks."""
