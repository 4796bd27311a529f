"""Model families: what each caches, whether it can be captured, and how to read its config.  Nothing imports torch."""
