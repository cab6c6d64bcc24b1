"""Clusters: one run on several machines, by Ray; only imported with the section `cluster`."""
