"""Compute the cost of a model's KV cache from its config: bytes, users, prefill, transfer time."""
