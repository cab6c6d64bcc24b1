"""What `scripts/bench_tuner.py` is made of."""
