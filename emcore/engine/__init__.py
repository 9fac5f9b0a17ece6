"""What train.py would otherwise repeat: ranks, checkpoints, schedules, averages, logs."""
