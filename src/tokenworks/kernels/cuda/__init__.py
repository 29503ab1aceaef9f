"""The GPU backend: PyTorch for memory, streams and graphs, Triton for kernels. Its modules need `tokenworks[cuda]`."""
