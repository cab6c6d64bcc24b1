"""What scripts/bench_vector.py measures, how, and how it is told."""
