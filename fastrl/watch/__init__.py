"""A page, and the same as text, that show runs while they train; nothing here imports torch."""
