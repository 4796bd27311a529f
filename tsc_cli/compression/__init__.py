"""Compression: the smallest file of a quality, and the best file of a size."""
