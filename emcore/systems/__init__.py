"""Published systems rebuilt on emcore, a folder each: the core imports none of them, nor do they each other."""
