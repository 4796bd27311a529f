"""Probes: what a model's weights and caches hold that a delta could save."""
