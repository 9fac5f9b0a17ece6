"""In which arithmetic a net computes: found out by trying, kept by the run or the result, put to work on the net.

machine.py tells what this machine can do, and mode.py what there is to choose. probe.py chooses for a training by the
steps that trial.py takes in child processes; verdict.py keeps that for the run and its ranks. prediction.py chooses for
a result. net.py holds what all of them do to a net. Only trial.py, prediction.py and net.py import torch: a limit of
the instruction sets must be set before torch first computes.
"""
