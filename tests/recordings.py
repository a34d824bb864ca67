"""What stands for CUDA graphs on a CPU: a traced graph, with what is not an input baked in."""

from rsdbench.backends.cuda_graphs.engine import CudaGraphsEngine
from rsdbench.certificate.on_backends import traced

__all__ = ["graphed", "traced"]


def graphed(pair):
    """A pair whose blocks are recorded."""
    pair.compiled = CudaGraphsEngine(pair.target, pair.drafter)
    return pair
