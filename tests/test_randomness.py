"""Random numbers of blocks: one stream for a batch, whatever becomes of its sequences."""

import pytest
import torch

from rsdbench.decoding.randomness import Randomness
from rsdbench.sampling.gumbel import to_gumbel

pytestmark = pytest.mark.unit


def source(rows, size, nodes):
    return Randomness(5, rows, size, nodes, torch.device("cpu"), lambda name, shape, dtype: torch.empty(shape))


def one_by_one(rows, size, nodes, batches):
    """What each block takes of the stream: noise of all levels and of the last token, then the uniforms."""
    own = torch.Generator().manual_seed(5)
    for batch in batches:
        noise = torch.rand(batch, sum(rows) + 2, size, generator=own)
        yield noise, torch.rand(batch, nodes, generator=own)


@pytest.mark.parametrize(
    ("rows", "size", "nodes"),
    [([], 8, 0), ([2] * 6, 8, 6), ([2] * 30, 225, 30), ([6, 10, 10, 10, 10, 10], 225, 30)],
)
@pytest.mark.parametrize("batches", [[1] * 9, [3] * 9, [3, 2, 1, 1]])
def test_blocks_take_their_numbers_one_after_another(batches, rows, size, nodes):
    own = source(rows, size, nodes)
    for batch, (noise, uniforms) in zip(batches, one_by_one(rows, size, nodes, batches), strict=True):
        numbers = own.block(batch)
        assert torch.equal(torch.cat([*numbers.drafts, numbers.last], 1), noise)
        assert [x.shape[1] for x in numbers.drafts] == rows
        assert torch.equal(numbers.uniforms, uniforms)


def test_the_numbers_of_a_batch_lie_in_one_place():
    own = source([1, 1], 64, 2)
    assert {own.block(2).last.data_ptr() for _ in range(5)} == {own.block(2).last.data_ptr()}


@pytest.mark.parametrize("batch", [1, 3])
def test_noise_is_standard_gumbel_and_fresh_in_every_block(batch):
    """Of 60 rows a sequence of 20,000 none is correlated with another by more than six standard errors."""
    own, blocks = source([1, 3], 20_000, 2), []
    for _ in range(10):
        drafts, last, _ = own.block(batch)
        blocks.append(torch.cat([*drafts, last], 1).clone())
    rows = to_gumbel(torch.cat(blocks, 1)).flatten(0, 1)
    # mean 0.5772, variance 1.6449; of 1.2 million, six standard errors are 0.007 and 0.019
    assert float(rows.mean()) == pytest.approx(0.5772, abs=0.007)
    assert float(rows.var()) == pytest.approx(1.6449, abs=0.019)
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert float(correlation.abs().max()) < 6 / 20_000**0.5
    rows[7] = rows[1]  # of an earlier block
    assert float((torch.corrcoef(rows) - torch.eye(len(rows))).abs().max()) > 6 / 20_000**0.5
