"""From files to batches: sampling on the CPU, augmentations and targets on the model's device."""
