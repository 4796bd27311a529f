"""Codec klt: profiles of models, their transform, the importance of tokens, entropy coding."""
