"""A .tsc file: its header, its index, its blocks; how it is opened, written and checked."""
