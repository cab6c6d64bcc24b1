"""Faults at random moments: tests in `tests/chaos`, and longer ``python -m tests.chaos.storm``."""
