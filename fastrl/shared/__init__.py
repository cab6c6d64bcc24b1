"""Shared memory: blocks and signals, the table, its rollouts, and weights."""
