"""Text to batches: where it comes from, what is added, how it is encoded and grouped."""
