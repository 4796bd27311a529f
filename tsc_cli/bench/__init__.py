"""Benchmarks of codecs, of this and of other projects, on the same caches."""
