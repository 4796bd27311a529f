"""Everything that imports transformers: caches read and filled, forward passes, prompts."""
