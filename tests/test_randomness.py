"""Random numbers of blocks: drawn ahead or not, they are the same."""

import pytest
import torch

from rsdbench.engine import randomness
from rsdbench.engine.randomness import Randomness
from rsdbench.sampling.gumbel import to_gumbel

BLOCKS = 40


def generator():
    return torch.Generator().manual_seed(5)


def one_by_one(rows, vocabulary, depth, slots, batch):
    """What each block takes when it draws for itself."""
    own = generator()
    for _ in range(BLOCKS):
        noise = torch.rand(batch, rows + 1, vocabulary, generator=own)
        yield noise[:, :-1], noise[:, -1], torch.rand(batch, depth, slots, generator=own)


@pytest.mark.parametrize(
    ("rows", "vocabulary", "slots"),
    [([], 64, 2), ([1] * 6, 64, 2), ([1] * 30, 1024, 2), ([1, 5, 5, 5, 5, 5], 4096, 8)],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_blocks_get_the_same_numbers_whenever_they_are_drawn(batch, rows, vocabulary, slots):
    source = Randomness(generator(), rows, vocabulary, slots)
    for noise, *expected in one_by_one(sum(rows), vocabulary, len(rows), slots, batch):
        drafts, *block, whole = source.block(batch)
        assert torch.equal(whole, torch.cat([*drafts, noise[:, :0]], 1))
        for ours, theirs in zip((*drafts, *block), (*noise.split(rows, 1), *expected), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("vocabulary", "draws"), [(64, 3), (1024, 3), (20_000, 14), (100_000, 40)])
def test_numbers_ahead_are_limited(monkeypatch, vocabulary, draws):
    shapes, real = [], torch.rand
    monkeypatch.setattr(randomness.torch, "rand", lambda *shape, **rest: shapes.append(shape) or real(*shape, **rest))
    source = Randomness(generator(), [], vocabulary, 2)
    for _ in range(BLOCKS):
        source.block(1)
    assert len(shapes) == draws
    assert all(blocks * numbers <= max(randomness.NUMBERS, vocabulary) for blocks, numbers in shapes)


def test_a_batch_that_has_shrunk_to_one_goes_on_with_the_same_numbers():
    source, own = Randomness(generator(), [1, 1], 64, 2), generator()
    for batch in (3, 2, 1, 1):
        drafts, last, uniforms, _ = source.block(batch)
        assert torch.equal(torch.cat([*drafts, last.unsqueeze(1)], 1), torch.rand(batch, 3, 64, generator=own))
        assert torch.equal(uniforms, torch.rand(batch, 2, 2, generator=own))


def test_noise_of_a_large_batch_is_drawn_when_a_level_asks_for_it(monkeypatch):
    drawn, real = [], randomness.fresh
    monkeypatch.setattr(randomness, "fresh", lambda shape, source: drawn.append(shape) or real(shape, source))
    source = Randomness(generator(), [1, 5, 5], 50_000, 2)
    blocks = []
    for _ in range(2):
        drafts, last, uniforms, _ = source.block(3)
        assert drawn == [(3, 1, 50_000)], "the last token's"
        levels = []
        for rows, level in zip((1, 5, 5), drafts, strict=True):
            assert level.shape == drawn[-1] == (3, rows, 50_000)
            levels.append(level)
        assert len(drawn) == 4
        assert last.shape == (3, 50_000)
        assert uniforms.shape == (3, 3, 2)
        blocks.append(torch.cat([*levels, last.unsqueeze(1)], 1))
        drawn.clear()
    rows = to_gumbel(torch.cat(blocks, 1)).flatten(0, 1)
    # standard Gumbel: mean 0.5772, variance 1.6449; of 3.6 million, six standard errors are 0.0041 and 0.012
    assert float(rows.mean()) == pytest.approx(0.5772, abs=0.0041)
    assert float(rows.var()) == pytest.approx(1.6449, abs=0.012)
    # rows are independent: of 2,556 pairs none is correlated by more than six standard errors
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert float(correlation.abs().max()) < 6 / 50_000**0.5


def test_recordings_get_noise_made_in_memory_of_theirs():
    lines = torch.empty(3 * 64 + 4)
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
