"""Each rule and each strategy on three tokens, in numbers that a hand can follow: a, b, c are tokens 0, 1, 2."""

import pytest
import torch

from rsdbench.backends.eager import rows_by_level
from rsdbench.backends.repeat import stop_early
from rsdbench.decoding.strategies import Branching, Frontier, Sequences, StochasticBeam
from rsdbench.decoding.tree import DraftTree, ancestors_of
from rsdbench.decoding.verify import finish, view
from rsdbench.methods import get_shape
from rsdbench.sampling.distributions import Sampling
from rsdbench.verification.bottom_up import bottom_up
from rsdbench.verification.k_seq import k_seq, optimal_rho
from rsdbench.verification.lift import lift
from rsdbench.verification.recursive_rejection import recursive_rejection

pytestmark = pytest.mark.unit
A, B, C = 0, 1, 2


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def ids(*tokens):
    return torch.tensor([tokens])


def close(found, *expected):
    torch.testing.assert_close(found, row(*expected), rtol=0, atol=1e-6)


def test_recursive_rejection():
    """p = (.5, .3, .2), q = (.3, .6, .1); drawn without replacement: first b, then a."""
    p, q = row(0.5, 0.3, 0.2), row(0.3, 0.6, 0.1)
    verdict = recursive_rejection(p, q, ids(B, A), torch.ones(1, 2).bool())
    # b is accepted with p(b) / q(b) = .3 / .6. Once it is rejected, p has relu(p - q) = (.2, 0, .1) left, which is
    # (2/3, 0, 1/3), and q without b is (.3, 0, .1) / .4 = (3/4, 0, 1/4): a is accepted with (2/3) / (3/4) = 8/9
    close(verdict.accept, 0.5, 8 / 9)
    # then relu((2/3, 0, 1/3) - (3/4, 0, 1/4)) = (0, 0, 1/12): the recovered token is c
    close(verdict.residual, 0, 0, 1)


def test_a_single_draft_is_speculative_decoding():
    verdict = recursive_rejection(row(0.5, 0.3, 0.2), row(0.3, 0.6, 0.1), ids(B), torch.ones(1, 1).bool())
    close(verdict.accept, 0.5)
    close(verdict.residual, 2 / 3, 0, 1 / 3)


def test_k_seq():
    """p = (.6, .3, .1), q = (.43, .27, .30), two independent drafts: c, then b."""
    p, q, both = row(0.6, 0.3, 0.1), row(0.43, 0.27, 0.30), torch.ones(1, 2).bool()
    # with rho = 5/4: beta = min(.43, .48) + min(.27, .24) + min(.30, .08) = .75, and 1 - (1 - beta)^2 = rho beta
    close(optimal_rho(p, q, row(2.0)), 1.25)
    verdict = k_seq(p, q, ids(C, B), both)
    close(verdict.accept, 0.1 / (1.25 * 0.30), 0.3 / (1.25 * 0.27))
    # p - min(q, p / rho) rho = (.6 - .43 * 5/4, 0, 0): its mass is (1 - beta)^2 = 1/16, and the recovered token is a
    close(verdict.residual, 1, 0, 0)


def frontier(*log_probs):
    numbers = torch.tensor([log_probs])
    return Frontier(torch.ones_like(numbers).bool(), numbers, torch.zeros_like(numbers))


LOG_Q = torch.tensor([[[0.5, 0.3, 0.2]]]).log()
# noise of groups and of their tokens, two of each; token t is in group t % 2: {a, c} and {b}
CALM = [0.0, 0.0]


def test_without_noise_siblings_come_by_probability():
    level = Branching.expand(frontier(0.0), LOG_Q, torch.tensor([[CALM, CALM, CALM]]), 2)
    assert level.tokens.tolist() == [[A, B]]
    assert level.parents.tolist() == [[0, 0]]


def test_noise_decides_the_order_of_siblings():
    """The group {b} gets 2 more than the group {a, c}: log .3 + 2 is above log .7, and b is drawn first."""
    level = Branching.expand(frontier(0.0), LOG_Q, torch.tensor([[[0.0, 2.0], CALM, CALM]]), 2)
    assert level.tokens.tolist() == [[B, A]]


def test_a_beam_may_leave_an_entry_without_children():
    """Two entries of log-probability log .9 and log .1 and the same score: given it, the children share the beam."""
    log_q = LOG_Q.expand(1, 2, 3)
    above = Frontier(torch.ones(1, 2).bool(), torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.0, -9.0]]))
    level = StochasticBeam.expand(above, log_q, torch.tensor([[CALM] * 4]), 2)
    assert level.parents.tolist() == [[0, 0]], "no child can score above its parent, and the second one's score is low"
    assert level.tokens.tolist() == [[A, B]]
    torch.testing.assert_close(level.frontier.log_prob, torch.tensor([[0.45, 0.27]]).log())
    assert level.frontier.score[0, 0] == pytest.approx(0.0, abs=1e-6), "the best child has its parent's score"


def test_sequences_draw_for_themselves():
    noise = torch.tensor([[[0.0, 9.0], CALM, CALM, [0.0, 9.0]]])  # the first draws in {b}, the second c of {a, c}
    level = Sequences.expand(frontier(0.0), LOG_Q, noise, 2)
    assert level.tokens.tolist() == [[B, C]]
    assert level.parents.tolist() == [[0, 0]], "both are drawn at the root"


def example_tree():
    """RSD-C 2-1 below a root: b with its child c, and a with its child b; q = (.3, .6, .1) everywhere."""
    shape = get_shape("rsd_c", "2-1")
    log_q = torch.tensor([[0.3, 0.6, 0.1]]).log().expand(1, 3, 3)
    tokens = torch.tensor([[C, C, B, A, C, B]])  # the token before the root, the root, the nodes
    valid = torch.ones(1, 4).bool()
    ancestors = torch.nn.functional.pad(ancestors_of(shape.parents), (0, 0, 1, 0)).unsqueeze(0)
    return shape, DraftTree(tokens, ancestors, torch.tensor([shape.parents]), valid, log_q)


def verify(rule, uniforms):
    """The example with p = (.5, .3, .2) everywhere and uniforms of the four nodes; the last token's distribution."""
    shape, tree = example_tree()
    log_p = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(1, 5, 3)
    seen = view(Sampling.at(), tree, log_p, rows_by_level(shape), shape.fanout)
    outcome = rule(seen, torch.tensor([uniforms]), stop_early)
    return tree, finish(tree, outcome, torch.full((1, 2, 2), 0.5)), outcome.last


@pytest.mark.parametrize(
    ("uniforms", "accepted", "rows"),
    [
        ([0.4, 0.9, 0.1, 0.0], 2, [0, 1, 3]),  # .4 < 1/2: b; c is accepted with .2 / .1, that is for certain
        ([0.6, 0.8, 0.0, 0.4], 2, [0, 2, 4]),  # .6 rejects b, .8 < 8/9 accepts a; below it .4 < .3 / .6: b
        ([0.6, 0.8, 0.0, 0.6], 1, [0, 2, 0]),  # b below a is rejected
        ([0.6, 0.9, 0.0, 0.0], 0, [0, 0, 0]),  # both children of the root are
    ],
)
def test_the_walk_down_a_tree(uniforms, accepted, rows):
    tree, found, _ = verify(lift(recursive_rejection), uniforms)
    assert found.accepted.tolist() == [accepted]
    assert found.rows.tolist() == [rows]
    drafts = [int(tree.tokens[0, 1 + r]) for r in rows[1 : 1 + accepted]]
    assert found.report[0, : 1 + accepted].tolist() == [accepted, *drafts]
    if accepted == 0:
        assert int(found.report[0, 1]) == C, "all that is left of p"
    line = [C, *found.report[0, 1 : 2 + accepted].tolist()]
    assert found.last_two.tolist() == [line[-2:]]


@pytest.mark.parametrize(
    ("uniforms", "rows", "last"),
    [
        # b has scale .3 / .6 = 1/2, and c below it min(1, 1/2 * .2 / .1) = 1: the deepest path comes first, for certain
        ([0.9, 0.9, 0.99, 0.9], [0, 1, 3], (0.5, 0.3, 0.2)),
    ],
)
def test_bottom_up_takes_the_deepest_path(uniforms, rows, last):
    _, found, law = verify(bottom_up, uniforms)
    assert found.rows.tolist() == [rows]
    torch.testing.assert_close(law, torch.tensor([last]))


def test_bottom_up_on_a_chain():
    """p = (.5, .3, .2) and q = (.3, .6, .1) everywhere, drafts b, b: block verification."""
    shape = get_shape("sd", "2")
    tree = DraftTree(
        torch.tensor([[C, C, B, B]]), torch.nn.functional.pad(ancestors_of((-1, 0)), (0, 0, 1, 0)).unsqueeze(0),
        torch.tensor([[-1, 0]]), torch.ones(1, 2).bool(), torch.tensor([[0.3, 0.6, 0.1]]).log().expand(1, 2, 3),
    )  # fmt: skip
    log_p = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(1, 3, 3)
    seen = view(Sampling.at(), tree, log_p, rows_by_level(shape), 1)

    def decide(*uniforms):
        found = bottom_up(seen, torch.tensor([uniforms]), stop_early)
        return found.rows.tolist()[0], found.last

    # scales: 1/2 of the first b, 1/2 * 1/2 of the second. Below the first, relu(p / 2 - q) = 0 is left of p: it never
    # stops there. At the root relu(p - q) = (.2, 0, .1)
    assert decide(0.24, 0.9)[0] == [0, 0, 0], "the second uniform is the second node's"
    assert decide(0.9, 0.24)[0] == [0, 1, 2]
    rows, last = decide(0.0, 0.26)
    assert rows == [0, 0, 0]
    torch.testing.assert_close(last, torch.tensor([[2 / 3, 0, 1 / 3]]))
