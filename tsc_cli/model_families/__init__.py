"""Model families: what each caches, whether it can be captured, and how a plan reads its config."""
