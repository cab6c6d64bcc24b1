"""Families of environments that come with fastrl; each is registered in `fastrl.builtin`.

They are loaded with `fastrl.envs`, so none imports what implements its environments.
"""
