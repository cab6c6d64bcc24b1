"""Memory that processes share: the table, its rollouts, and weights."""
