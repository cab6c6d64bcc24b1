"""Faults at random moments, for `scripts/chaos.py` and `tests/chaos`."""
