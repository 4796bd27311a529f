"""Commands about .tsc files."""
