"""The model outside PyTorch's eager mode: the same `generate`."""
