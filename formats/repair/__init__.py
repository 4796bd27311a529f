"""A damaged file: what of it can be found, relied on and saved."""
