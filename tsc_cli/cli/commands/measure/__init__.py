"""Commands that measure codecs, caches and tiers."""
