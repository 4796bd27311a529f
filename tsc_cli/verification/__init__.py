"""Comparing what a file restores with an exact cache, and its claims with a new prefill."""
