"""Signals about pairs, one file a signal: plain functions on arrays, each with a frozen choice for its limits."""
