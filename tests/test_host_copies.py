"""A block reads the device once: no hidden synchronisation in drafting, verification or commit."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rsdbench.decoding import loop, verify
from rsdbench.decoding.clock import Clock
from rsdbench.decoding.loop import Decoder
from rsdbench.decoding.methods import get_shape
from rsdbench.sampling.distributions import Warp

from .conftest import all_structures

SYNCHRONISING = {"_local_scalar_dense", "nonzero", "masked_select", "item", "is_nonzero", "equal", "_unique2"}
PROMPTS = [[2, 5, 9, 33], [2], [2, 40, 41]]


class Recorder(TorchDispatchMode):
    """Names of the operators that make a host wait for its accelerator."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        boolean_index = name in ("index", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1] if i is not None
        )
        if name in SYNCHRONISING or boolean_index:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("method", "structure", "budget"), [("ar", None, 0), *all_structures((6, 30))])
@pytest.mark.parametrize("warp", [Warp(0.0), Warp(0.3, 0.9)], ids=["T=0", "T=0.3,top_p=0.9"])
def test_one_copy_to_the_host_a_block(pairs, monkeypatch, method, structure, budget, warp):
    for module in (loop, verify):
        monkeypatch.setattr(module, "reading_is_free", lambda device: False)  # as on an accelerator
    copies, real = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: copies.append(tensor.shape) or real(tensor))
    shape = get_shape(method, structure)
    with torch.inference_mode():
        decoder = Decoder(pairs["opt"], method, shape, warp, PROMPTS, 30, 64, seed=0, eos_token_id=None)
        decoder.prefill()
        decoder.block(Clock(decoder.device))  # tables of the shape are made in the first block
        copies.clear()
        with Recorder() as recorder:
            for _ in range(3):
                decoder.block(Clock(decoder.device))
    assert copies == [(len(PROMPTS), shape.depth + 2)] * 3
    assert recorder.found == []


def test_the_recorder_sees_a_hidden_read():
    with Recorder() as recorder:
        x = torch.ones(3)
        x[x > 0].sum().item()
    assert recorder.found
