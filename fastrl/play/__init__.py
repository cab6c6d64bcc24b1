"""Plays an environment with a policy or a keyboard, in a window or on a page."""
