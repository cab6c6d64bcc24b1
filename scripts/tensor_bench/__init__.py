"""Who takes part in `bench_tensor_envs.py`, and how it reports."""
