"""Fidelity of restored caches: distributions, continuations, recall, and published tiers."""
