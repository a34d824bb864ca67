"""Random numbers of blocks: drawn ahead or not, they are the same."""

import pytest
import torch

from rsdbench.decoding import randomness
from rsdbench.decoding.randomness import Randomness
from rsdbench.sampling.gumbel import to_gumbel

BLOCKS = 40


def generator():
    return torch.Generator().manual_seed(5)


def one_by_one(rows, size, depth, slots, batch):
    """What each block takes when it draws for itself."""
    own = generator()
    for _ in range(BLOCKS):
        noise = torch.rand(batch, rows + 2, size, generator=own)
        yield noise[:, :-2], noise[:, -2:], torch.rand(batch, depth, slots, generator=own)


@pytest.mark.parametrize(
    ("rows", "size", "slots"),
    [([], 8, 2), ([2] * 6, 8, 2), ([2] * 30, 225, 2), ([6, 10, 10, 10, 10, 10], 225, 8)],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_blocks_get_the_same_numbers_whenever_they_are_drawn(batch, rows, size, slots):
    source = Randomness(generator(), rows, size, slots)
    for noise, *expected in one_by_one(sum(rows), size, len(rows), slots, batch):
        drafts, *block, whole = source.block(batch)
        assert torch.equal(whole, torch.cat([*drafts, noise[:, :0]], 1))
        for ours, theirs in zip((*drafts, *block), (*noise.split(rows, 1), *expected), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("size", "draws"), [(8, 3), (225, 3), (10_000, 14), (50_000, 40)])
def test_numbers_ahead_are_limited(monkeypatch, size, draws):
    shapes, real = [], torch.rand
    monkeypatch.setattr(randomness.torch, "rand", lambda *shape, **rest: shapes.append(shape) or real(*shape, **rest))
    source = Randomness(generator(), [], size, 2)
    for _ in range(BLOCKS):
        source.block(1)
    assert len(shapes) == draws
    assert all(blocks * numbers <= max(randomness.NUMBERS, 2 * size) for blocks, numbers in shapes)


def test_a_batch_that_has_shrunk_to_one_goes_on_with_the_same_numbers():
    source, own = Randomness(generator(), [1, 1], 64, 2), generator()
    for batch in (3, 2, 1, 1):
        drafts, last, uniforms, _ = source.block(batch)
        assert torch.equal(torch.cat([*drafts, last], 1), torch.rand(batch, 4, 64, generator=own))
        assert torch.equal(uniforms, torch.rand(batch, 2, 2, generator=own))


@pytest.mark.parametrize("batch", [1, 3])
def test_noise_is_standard_gumbel_and_fresh_in_every_block(batch):
    """Of 60 rows a sequence of 20,000 none is correlated with another by more than six standard errors."""
    source, blocks = Randomness(generator(), [1, 3], 20_000, 2), []
    for _ in range(10):
        drafts, last, _, _ = source.block(batch)
        blocks.append(torch.cat([*drafts, last], 1).clone())
    rows = to_gumbel(torch.cat(blocks, 1)).flatten(0, 1)
    # mean 0.5772, variance 1.6449; of 1.2 million, six standard errors are 0.007 and 0.019
    assert float(rows.mean()) == pytest.approx(0.5772, abs=0.007)
    assert float(rows.var()) == pytest.approx(1.6449, abs=0.019)
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert float(correlation.abs().max()) < 6 / 20_000**0.5
    rows[7] = rows[1]  # of an earlier block
    assert float((torch.corrcoef(rows) - torch.eye(len(rows))).abs().max()) > 6 / 20_000**0.5


def test_recordings_get_noise_made_in_memory_of_theirs():
    lines = torch.empty(4 * 64 + 4)
    source = Randomness(generator(), [1, 1], 64, 2, lambda size, **kind: lines[:size])
    for noise, *expected in one_by_one(2, 64, 2, 2, 1):
        drafts, *block, whole = source.block(1)
        expected[0] = to_gumbel(expected[0])
        for ours, theirs in zip(
            (*drafts, whole, *block), (*to_gumbel(noise).split(1, 1), noise, *expected), strict=True
        ):
            # vector units round the last places their way
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
        assert block[0].data_ptr() == lines[128:].data_ptr(), "the same memory for each block"
