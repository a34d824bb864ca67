"""What stands for CUDA graphs on a CPU: a traced graph, with what is not an input baked in."""

from torch.fx.experimental.proxy_tensor import make_fx

from rsdbench.backends.cuda_graphs.engine import CudaGraphsEngine


def traced(function, inputs, restore):
    """As `graphs.record`: static inputs and outputs, and no Python when it is replayed."""
    graph = make_fx(lambda *x: tuple(function(*x)))(*inputs)
    restore()
    outputs = tuple(x.clone() for x in graph(*inputs))

    def replay():
        for own, new in zip(outputs, graph(*inputs), strict=True):
            own.copy_(new)

    return outputs, replay


def graphed(pair):
    """A pair whose blocks are recorded."""
    pair.compiled = CudaGraphsEngine(pair.target, pair.drafter)
    return pair
