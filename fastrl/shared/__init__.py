"""Memory that processes share: the table, weights, signals and counters."""
