"""Classic control, as tensor programs and as compiled loops."""
