"""The processes: env workers, model workers, the throughput meter, and their supervisor."""
