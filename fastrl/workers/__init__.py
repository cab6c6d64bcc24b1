"""The processes: env workers, model workers, and their supervisor."""
