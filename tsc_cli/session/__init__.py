"""Sessions of a model: capture, append, resume and replay."""
