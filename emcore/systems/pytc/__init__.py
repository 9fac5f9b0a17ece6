"""What people bring along: the configs and checkpoints of other systems, turned into ours."""
