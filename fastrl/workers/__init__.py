"""Worker processes: env workers, model workers, their supervisor, and the handoff between them."""
