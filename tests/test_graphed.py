"""Recorded blocks, on the CPU: a traced graph stands for a CUDA graph, with what is not an input baked in."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import rsdbench
from rsdbench.backends.cuda_graphs import graphs
from rsdbench.backends.cuda_graphs.graphs import Graphs, bucket
from rsdbench.decoding import draft, drafting, forward, loop, tree, verify

from .conftest import all_structures, make_pair

PROMPT = [2, 5, 9, 33, 12, 7]


def traced(function, inputs):
    """As `graphs.record`: static inputs and outputs, and no Python when it is replayed."""
    graph = make_fx(lambda *x: tuple(function(*x)))(*inputs)
    outputs = tuple(x.clone() for x in graph(*inputs))

    def replay():
        for own, new in zip(outputs, graph(*inputs), strict=True):
            own.copy_(new)

    return outputs, replay


@pytest.fixture
def recorded(monkeypatch):
    """Keys of what is recorded."""
    keys = []
    monkeypatch.setattr(graphs, "record", lambda function, inputs: keys.append(function) or traced(function, inputs))
    for module in (loop, verify):
        monkeypatch.setattr(module, "reading_is_free", lambda device: False)
    return keys


def decoded(pair, prompt, method, structure, new_tokens=24, **settings):
    out = rsdbench.generate(pair, [prompt], method, structure, new_tokens, 1.0, **settings)
    return out.tokens, out.blocks, out.accepted_by_depth


@pytest.mark.parametrize(
    ("kind", "method", "structure"),
    [("opt", "ar", "0"), *(("opt", m, s) for m, s, _ in all_structures((6,))), ("mixed", "rsd_s", "3x2"),
     ("llama", "rsd_s", "3x2"), ("mixed", "spectr", "2x3"), ("opt", "rsd_c", "2-2-2-2")],
)  # fmt: skip
def test_recorded_blocks_give_the_same_tokens(recorded, kind, method, structure):
    pair, plain = make_pair(kind), make_pair(kind)
    pair.graphs = Graphs()
    assert pair.forward == "CUDA graphs"
    for seed in (0, 1):
        ours, theirs = (decoded(p, PROMPT, method, structure, seed=seed) for p in (pair, plain))
        assert ours == theirs
    assert len(recorded) == (3 if method == "ar" else 4), "draft, forward, verify, move"


def test_a_recording_serves_later_prompts_and_seeds(recorded):
    pair, plain = make_pair("opt"), make_pair("opt")
    pair.graphs = Graphs()
    for seed, prompt in enumerate([PROMPT, [2, 40, 41, 3, 3, 3, 60, 9], [7, 8], PROMPT]):
        assert decoded(pair, prompt, "rsd_s", "3x2", seed=seed) == decoded(plain, prompt, "rsd_s", "3x2", seed=seed)
    assert len(recorded) == 4, "draft, forward, verify, move"
    for seed in range(2):  # by turns with another method, as a run times them
        assert decoded(pair, PROMPT, "ar", "0", seed=seed) == decoded(plain, PROMPT, "ar", "0", seed=seed)
        assert decoded(pair, PROMPT, "rsd_s", "3x2", seed=seed) == decoded(plain, PROMPT, "rsd_s", "3x2", seed=seed)
    assert len(recorded) == 4 + 3


def test_a_longer_prompt_gets_a_larger_storage_and_new_recordings(recorded, monkeypatch):
    monkeypatch.setattr(graphs, "BUCKET", 16)
    pair, plain = make_pair("opt"), make_pair("opt")
    pair.graphs = Graphs()
    for prompt in (PROMPT, [2, *range(5, 25)], PROMPT):
        assert decoded(pair, prompt, "sd", "6", seed=1) == decoded(plain, prompt, "sd", "6", seed=1)
    assert {m.shape[4] for m in pair.graphs.memories.values() if m.dim() > 1} == {8 + 64}
    assert bucket(16) == 16
    assert bucket(17) == 32


def test_no_numbers_are_used_twice_when_a_sequence_grows_out_of_a_recording(recorded, monkeypatch):
    """New recordings in the middle: what they read must not be where the numbers of a later block lie."""
    monkeypatch.setattr(graphs, "BUCKET", 16)
    pair, plain = make_pair("opt"), make_pair("opt")
    pair.graphs = Graphs()
    ours, theirs = (decoded(p, PROMPT, "ar", "0", 52) for p in (pair, plain))
    assert ours == theirs
    assert len(recorded) > 3 * 2


def test_another_temperature_is_another_recording(recorded):
    pair, plain = make_pair("opt"), make_pair("opt")
    pair.graphs = Graphs()
    for temperature in (1.0, 0.0, 0.3):
        ours, theirs = (rsdbench.generate(p, [PROMPT], "sd", "6", 12, temperature, seed=3) for p in (pair, plain))
        assert ours.tokens == theirs.tokens
    assert len(recorded) == 12


def test_batches_and_prompts_of_one_token_run_without(recorded):
    pair, plain = make_pair("opt"), make_pair("opt")
    pair.graphs = Graphs()
    for prompts in ([PROMPT, [2, 7]], [[2]]):
        ours, theirs = (rsdbench.generate(p, prompts, "sd", "6", 12, 1.0, seed=3) for p in (pair, plain))
        assert ours.tokens == theirs.tokens
    assert not recorded


def test_recordings_are_limited_and_the_oldest_goes(recorded, monkeypatch):
    monkeypatch.setattr(graphs, "KEPT", 4)
    pair = make_pair("opt")
    pair.graphs = Graphs()
    for method, structure in (("sd", "6"), ("sd", "6"), ("ar", "0"), ("sd", "6")):
        decoded(pair, PROMPT, method, structure)
    assert len(pair.graphs.recordings) == 4
    assert len(recorded) == 4 + 3 + 4


def test_the_stand_in_sees_what_is_not_an_input(recorded):
    """A function that reads something of one call's own gives that in every replay: the mutant of these tests."""
    graphs, number = Graphs(), torch.ones(())

    def function(x):
        return (x + number,)

    assert graphs.run(function, [torch.zeros(())], "key")[0] == 1
    number = torch.full((), 2.0)
    assert graphs.run(function, [torch.zeros(())], "key")[0] == 1


def test_a_recording_reads_where_another_writes(recorded, monkeypatch):
    copies, real = [], torch.Tensor.copy_
    graphs, x = Graphs(), torch.tensor([1.0])
    for value in (1.0, 5.0):
        x = torch.tensor([value])
        monkeypatch.setattr(torch.Tensor, "copy_", lambda own, new: copies.append(own.shape) or real(own, new))
        copies.clear()
        (double,) = graphs.run(lambda x: (2 * x,), [x], "double")
        (more,) = graphs.run(lambda double, x: (double + x,), [double, x], "more")
        monkeypatch.setattr(torch.Tensor, "copy_", real)
        assert (double.item(), more.item()) == (2 * value, 3 * value)
    # x into the input of either, and the stand-in's two results: not the double
    assert len(copies) == 4


def test_inputs_in_memory_that_stays_are_written_once_a_replay(recorded):
    """Recording calls a function several times, and none of these may be seen."""
    graphs = Graphs()
    state = graphs.memory("state", 3, torch.long, torch.device("cpu"))
    assert graphs.memory("state", 2, torch.long, torch.device("cpu")).data_ptr() == state.data_ptr()

    def advance(x):
        x += 1
        return ()

    for steps in range(1, 4):
        graphs.run(advance, [state], "advance")
        assert state.tolist() == [steps] * 3
    assert len(recorded) == 1
    graphs.memory("state", 4, torch.long, torch.device("cpu"))
    assert not graphs.recordings, "they know where the smaller one lay"


@pytest.mark.parametrize("module", [draft, drafting, tree])
def test_what_recordings_read_is_kept_for_good(module):
    """A graph knows addresses: a table that is dropped, and made anew elsewhere, would leave it with other numbers."""
    kept = [f for f in vars(module).values() if hasattr(f, "cache_info") and f.__module__ == module.__name__]
    assert kept
    dropped = {f.__name__ for f in kept if f.cache_info().maxsize is not None}
    assert dropped <= {"row_depths"}, "which gives views of node_depths"


def test_numbers_of_rows_lie_in_one_place_however_many_were_asked_for():
    device = torch.device("cpu")
    first = forward.row_numbers(3, 5, device)
    for end in range(2000):  # more than the cache holds
        forward.row_numbers(0, end, device)
    again = forward.row_numbers(3, 5, device)
    assert again.tolist() == [3, 4, 5, 6, 7]
    assert again.data_ptr() == first.data_ptr()


def test_only_recordings_attend_by_cudnn(recorded, monkeypatch):
    """Its plans are made anew for each length, and only recordings see the same lengths again."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with forward.attention(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
    calls, real = [], forward.attention
    monkeypatch.setattr(forward, "attention", lambda device: calls.append(device) or real(device))
    pair = make_pair("opt")
    out = rsdbench.generate(pair, [PROMPT], "sd", "6", 6)
    assert len(calls) == 2 + 7 * out.blocks[0], "two prefills, and of each block six levels and the target"
    calls.clear()
    pair.graphs = Graphs()
    rsdbench.generate(pair, [PROMPT], "sd", "6", 6)
    assert len(calls) == 2, "the prefills"


def test_models_on_different_devices_cannot_be_compiled():
    pair = make_pair("opt")
    pair.target = pair.target.to("meta")
    with pytest.raises(rsdbench.UsageError, match="both models on a CPU or on a GPU, not cpu and meta"):
        pair.compile()
