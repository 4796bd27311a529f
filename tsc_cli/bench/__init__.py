"""Benchmarks of codecs, ours and of other projects, on the same caches."""
