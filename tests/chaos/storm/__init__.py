"""Faults at random moments: for the tests beside, and longer as ``python -m tests.chaos.storm``."""
