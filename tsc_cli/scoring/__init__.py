"""How faithful a restored cache is: distributions, continuations, recall, and the tiers that promise it."""
