"""What is of dbMiM alone: the files of its evaluation, and its rehearsal of blocks."""
