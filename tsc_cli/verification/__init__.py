"""Comparing a file's caches with exact ones, and its claims with a new prefill."""
