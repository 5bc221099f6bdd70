"""Runs that train together in one process: which, and how many. No torch."""
