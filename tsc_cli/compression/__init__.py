"""The smallest file that keeps a promise, and the best file of a size."""
