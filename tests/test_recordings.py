"""Recorded blocks, on a CPU: when they are recorded, what they read, and when they go."""

import pytest
import torch

import rsdbench
from rsdbench.backends.cuda_graphs import all_nodes, graphs
from rsdbench.backends.cuda_graphs.graphs import Graphs, bucket
from rsdbench.backends.eager import few_kernels
from rsdbench.decoding.shapes import TreeShape
from rsdbench.decoding.tree import DraftTree, ancestors_of
from rsdbench.methods import get_shape
from rsdbench.sampling.distributions import Sampling
from rsdbench.verification.k_seq import k_seq

from .conftest import make_pair
from .recordings import graphed, traced

PROMPT = [2, 5, 9, 33, 12, 7]
CPU = torch.device("cpu")


@pytest.fixture
def recorded(monkeypatch):
    """Functions that are recorded."""
    found = []
    monkeypatch.setattr(graphs, "record", lambda function, *rest: found.append(function) or traced(function, *rest))
    return found


def decoded(pair, prompt, method, structure, new_tokens=24, **settings):
    out = rsdbench.generate(pair, [prompt], method, structure, new_tokens, 1.0, **settings)
    return out.tokens, out.blocks, out.accepted_by_depth


def test_a_recording_serves_later_prompts_and_seeds(recorded):
    pair, plain = graphed(make_pair("opt")), make_pair("opt")
    assert pair.forward == "CUDA graphs"
    for seed, prompt in enumerate([PROMPT, [2, 40, 41, 3, 3, 3, 60, 9], [7, 8], [7], PROMPT]):
        assert decoded(pair, prompt, "rsd_s", "3x2", seed=seed) == decoded(plain, prompt, "rsd_s", "3x2", seed=seed)
    assert len(recorded) == 4, "draft, score, verify, commit"
    for seed in range(2):  # by turns with another method, as a run times them
        assert decoded(pair, PROMPT, "ar", "0", seed=seed) == decoded(plain, PROMPT, "ar", "0", seed=seed)
        assert decoded(pair, PROMPT, "rsd_s", "3x2", seed=seed) == decoded(plain, PROMPT, "rsd_s", "3x2", seed=seed)
    assert len(recorded) == 4 + 3


def test_a_longer_prompt_gets_larger_caches_and_new_recordings(recorded, monkeypatch):
    monkeypatch.setattr(graphs, "BUCKET", 16)
    pair, plain = graphed(make_pair("opt")), make_pair("opt")
    for prompt in (PROMPT, [2, *range(5, 25)], PROMPT):
        assert decoded(pair, prompt, "sd", "6", seed=1) == decoded(plain, prompt, "sd", "6", seed=1)
    assert {m.shape[4] for m in pair.engine.graphs.memories.values() if m.dim() > 4} == {8 + 64}
    assert bucket(16) == 16
    assert bucket(17) == 32


def test_a_sequence_grows_out_of_a_recording(recorded, monkeypatch):
    monkeypatch.setattr(graphs, "BUCKET", 16)
    ours, theirs = (decoded(p, PROMPT, "ar", "0", 52) for p in (graphed(make_pair("opt")), make_pair("opt")))
    assert ours == theirs
    assert len(recorded) > 3 * 2


def test_another_temperature_is_another_recording(recorded):
    pair, plain = graphed(make_pair("opt")), make_pair("opt")
    for temperature in (1.0, 0.0, 0.3):
        ours, theirs = (rsdbench.generate(p, [PROMPT], "sd", "6", 12, temperature, seed=3) for p in (pair, plain))
        assert ours.tokens == theirs.tokens
    assert len(recorded) == 12


def test_batches_run_as_they_stand(recorded):
    pair, plain = graphed(make_pair("opt")), make_pair("opt")
    ours, theirs = (rsdbench.generate(p, [PROMPT, [2, 7]], "sd", "6", 12, 1.0, seed=3) for p in (pair, plain))
    assert ours.tokens == theirs.tokens
    assert not recorded


def test_recordings_are_limited_and_the_oldest_goes(recorded, monkeypatch):
    """What a later phase reads is where the new recording of an earlier one writes it."""
    monkeypatch.setattr(graphs, "KEPT", 4)
    pair, plain = graphed(make_pair("opt")), make_pair("opt")
    for method, structure in (("sd", "6"), ("sd", "6"), ("ar", "0"), ("sd", "6")):
        assert decoded(pair, PROMPT, method, structure) == decoded(plain, PROMPT, method, structure)
    assert len(pair.engine.graphs.recordings) == 4
    assert len(recorded) >= 4 + 3 + 4


def test_the_stand_in_sees_what_is_not_an_input(recorded):
    """A function that reads something of one call's own gives that in every replay: the mutant of these tests."""
    graphs, number, zero = Graphs(), torch.ones(()), torch.zeros(())

    def function(x):
        return (x + number,)

    assert graphs.run("key", function, [zero])[0] == 1
    number = torch.full((), 2.0)
    assert graphs.run("key", function, [zero])[0] == 1


def test_an_input_that_lies_elsewhere_is_another_recording(recorded):
    graphs = Graphs()
    for value in (1.0, 5.0):
        x = torch.tensor([value])
        (double,) = graphs.run("double", lambda x: (2 * x,), [x])
        assert graphs.run("more", lambda double, x: (double + x,), [double, x])[0].item() == 3 * value
        recorded.append(x)  # keeps its place
    assert len([f for f in recorded if callable(f) and not isinstance(f, torch.Tensor)]) == 4


def test_inputs_are_written_once_a_replay(recorded):
    """Recording calls a function several times, and none of these may be seen."""
    graphs = Graphs()
    state = graphs.memory("state", (3,), 0, torch.long, CPU)
    assert graphs.memory("state", (2,), 0, torch.long, CPU).data_ptr() == state.data_ptr()

    def advance(x):
        x += 1
        return ()

    for steps in range(1, 4):
        graphs.run("advance", advance, [state])
        assert state.tolist() == [steps] * 3
    assert len(recorded) == 1
    graphs.memory("state", (4,), 0, torch.long, CPU)
    assert not graphs.recordings, "they know where the smaller one lay"


def test_only_recordings_attend_by_cudnn():
    """Its plans are made anew for each length, and only recordings see the same lengths again."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with few_kernels(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
    cached = graphed(make_pair("opt")).engine.backend(job()).target
    with graphs.recording(), cached.guard():
        assert torch.backends.cuda.cudnn_sdp_enabled() == before


def job():
    from .blocks import job_of

    return job_of(make_pair("opt"), "ar", "0", [PROMPT])


def tree_of(shape: TreeShape, tokens, valid=None):
    """A tree of given nodes, whose distributions are all uniform over eight tokens."""
    log_p = torch.full((1, 1 + shape.budget, 8), 1 / 8).log()
    ancestors = torch.nn.functional.pad(ancestors_of(shape.parents), (0, 0, 1, 0)).unsqueeze(0)
    valid = torch.tensor([valid or [True] * shape.budget])
    return DraftTree(
        torch.tensor([[0, 0, *tokens]]), ancestors, torch.tensor([shape.parents]), valid, log_p[:, : 1 + shape.expanded]
    ), log_p


def test_equal_sequences_are_verified_together():
    """Two of three sequences begin alike: below either node both of their second tokens are candidates."""
    shape = get_shape("spectr", "3x2")
    tree, log_p = tree_of(shape, [7, 3, 7, 1, 2, 4])  # levels (7, 3, 7) and (1, 2, 4): paths 7-1, 3-2, 7-4
    depths = torch.tensor(shape.depths[1:])
    same = all_nodes.same_prefix(tree.tokens[:, 2:], tree.ancestors[:, 1:], depths, shape.depth)[0]
    expected = torch.eye(7, dtype=torch.bool)
    expected[1, 3] = expected[3, 1] = True
    assert torch.equal(same, expected)
    numbers = []

    def counting(p, q, drafts, present):
        numbers.append(present.sum(1).tolist())
        return k_seq(p, q, drafts, present)

    found = all_nodes.verdicts(counting, Sampling.at(), tree, log_p, torch.zeros(1, 6), depths, shape.depth, 3)
    assert numbers == [[3, 2, 1, 2]], "drafts below the root and below each node of the first level"
    assert found.below.tolist() == [[1, 4, 5, 4]], "the first candidate, which may be another sequence's"


def test_a_draft_that_is_not_there_is_never_accepted():
    shape = get_shape("rsd_c", "2-2")
    tree, log_p = tree_of(shape, [0, 1, 2, 3, 4, 5], [False, True, False, False, False, False])
    depths = torch.tensor(shape.depths[1:])
    found = all_nodes.verdicts(k_seq, Sampling.at(), tree, log_p, torch.zeros(1, 6), depths, shape.depth, 2)
    assert found.below.tolist() == [[2, 0, 0]]
    torch.testing.assert_close(found.residual[:, 1:], log_p[:, 1:3].exp())
