"""Volumes written as blocks by many processes and joined at the end."""

from pathlib import Path

from tests.fuzz import flip  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
