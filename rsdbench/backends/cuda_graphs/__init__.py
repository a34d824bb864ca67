"""On a GPU: the phases of a block recorded as CUDA graphs, and kernels for few rows."""
