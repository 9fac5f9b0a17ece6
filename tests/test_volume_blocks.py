"""Volumes written as blocks by many processes and joined at the end."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from emcore.errors import InputError
from emcore.files import assembled
from emcore.volumes import create_volume, open_volume
from emcore.volumes.blocks import Damaged, is_whole, join_blocks, read_block, write_block
from emcore.volumes.convert import boxes
from emcore.volumes.inspect import inspect
from tests.fuzz import flip  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
