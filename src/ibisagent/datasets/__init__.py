"""Readers of public layouts, each to an iterable of Sample."""
