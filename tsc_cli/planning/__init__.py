"""What a model's KV cache costs, computed from its config alone: bytes, users, prefill, time on the wire."""
