"""Everything that imports transformers: caches taken apart and put together, passes of a model, prompts."""
