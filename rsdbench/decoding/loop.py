"""The block loop: draft, one target forward, verify, commit, for a batch of prompts of different lengths."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rsdbench.backends.aot.block import CompiledBlock
from rsdbench.backends.aot.calls import calls_of
from rsdbench.backends.aot.forwards import CompiledForward
from rsdbench.backends.cuda_graphs.graphs import Recording, bucket
from rsdbench.decoding.cache import accept
from rsdbench.decoding.clock import Clock
from rsdbench.decoding.descent import Outcome, slots_of
from rsdbench.decoding.draft import draft_tree, no_tree, noise_rows
from rsdbench.decoding.forward import Lane, row_numbers
from rsdbench.decoding.generation import Generation
from rsdbench.decoding.methods import get_method, get_shape
from rsdbench.decoding.randomness import Randomness
from rsdbench.decoding.tree import DraftTree, TreeShape
from rsdbench.decoding.verify import reading_is_free, to_host, verify
from rsdbench.errors import UsageError
from rsdbench.models.pair import Pair
from rsdbench.sampling.distributions import Warp
from rsdbench.sampling.gumbel import group_size, to_gumbel


def generate(
    pair: Pair,
    prompts: list[list[int]],
    method: str = "rsd_s",
    structure: str | int | Sequence[int] | None = None,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    eos_token_id: int | Collection[int] | None = None,
) -> Generation:
    """Decode a batch of prompts with one method; the tokens follow the target's own law, whatever the drafter.

    prompts: lists of token ids, of any lengths; structure: as in the benchmark's table, such as "6", "2x3" or "2-1-1",
    or as a number or a list of branching factors; None: the first one of the table's smallest budget.
    A sequence ends with `eos_token_id` (or any of several), after `max_new_tokens`, or when prompt and new tokens fill
    the positions that both models have. Nothing past that is kept or counted. The same seed on the same machine gives
    the same tokens.

    Raises:
        UsageError: an unknown method; a structure of another form; temperature < 0; top_p outside (0, 1];
            max_new_tokens < 1; an empty prompt, one with ids outside the vocabulary, or one that leaves no position.
    """
    warp = Warp(temperature, top_p)
    shape = get_shape(method, structure)
    limit = check_prompts(pair, prompts, max_new_tokens)
    if not prompts:
        return Generation([], [], [])
    with torch.inference_mode():
        return Decoder(pair, method, shape, warp, prompts, max_new_tokens, limit, seed, eos_token_id).run()


def check_prompts(pair: Pair, prompts: list[list[int]], max_new_tokens: int) -> int:
    """Positions that both models have.

    Raises:
        UsageError: as in `generate`.
    """
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    limit = pair.positions
    vocabulary = pair.target.config.vocab_size
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, list | tuple):
            raise UsageError("prompts must be a list of lists of token ids, one list a prompt")
        if not prompt:
            raise UsageError(f"prompt {i} is empty: give at least one token, such as the model's BOS")
        if len(prompt) >= limit:
            raise UsageError(f"prompt {i} has {len(prompt)} tokens, but these models decode {limit} positions: cut it")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise UsageError(f"prompt {i} has token ids outside the vocabulary of {vocabulary}")
    return limit


class Decoder:
    """The state of one batch between blocks. Rows of finished sequences are closed up at once."""

    def __init__(
        self, pair: Pair, method: str, shape: TreeShape, warp: Warp, prompts: list[list[int]], max_new_tokens: int,
        limit: int, seed: int, eos_token_id: int | Collection[int] | None,
    ) -> None:  # fmt: skip
        self.name, self.method, self.shape, self.warp = method, get_method(method), shape, warp
        self.limit = limit
        self.ends = set(eos_token_id) if isinstance(eos_token_id, Collection) else {eos_token_id}
        self.prompts, self.prefixes = prompts, pair.prefixes
        self.calls = calls_of(pair, self.method.drafting, self.method.rule, warp, max(shape.fanouts, default=1))
        self.compiled: CompiledBlock | None = None  # from the first block with a prefix on, where there are calls
        self.vocabulary = pair.target.config.vocab_size
        self.room = [min(max_new_tokens, limit - len(p)) for p in prompts]
        # the last block may commit a whole path, and garbage up to its depth, behind the last token that is kept
        positions = max(len(p) + r for p, r in zip(prompts, self.room, strict=True)) + shape.depth + 1
        # graphs are for one sequence, in a storage that its prefill allocates
        self.graphs = pair.graphs if len(prompts) == 1 and len(prompts[0]) > 1 else None
        self.ready: dict[tuple[str, int], Recording] = {}  # by phase and `end`, of which all inputs are in their place
        self.target = self.lane(pair.target, positions, False, pair.target_forward)
        # levels drafted in one call need no forward of the drafter beside it
        levels = pair.levels() if self.calls is None and shape.depth else None
        self.drafter = self.lane(pair.drafter, positions, True, levels) if shape.depth else None
        self.lanes = [lane for lane in (self.target, self.drafter) if lane is not None]
        self.device = self.target.device
        rows = noise_rows(self.method.drafting, shape)
        slots = slots_of(max(shape.fanouts, default=1))
        generator = torch.Generator(self.device).manual_seed(seed)
        memory = None if self.graphs is None else partial(self.graphs.memory, "numbers")
        self.randomness = Randomness(generator, rows, group_size(self.vocabulary), slots, memory)

        self.out = Generation([[] for _ in prompts], [0] * len(prompts), [[0] * shape.depth for _ in prompts])
        self.accepted: list[list[int]] = [[] for _ in prompts]  # drafts that were accepted, of each prompt and block
        self.alive = list(range(len(prompts)))  # the prompt of each row of the batch
        self.lengths = [len(p) - 1 for p in prompts]  # position of each row's root
        self.length = torch.tensor(self.lengths, device=self.device)
        last_two = [(p[-2] if len(p) > 1 else 0, p[-1]) for p in prompts]
        self.last_two = torch.tensor(last_two, device=self.device)  # [B, 2]
        if self.graphs is not None:
            state = self.graphs.memory("state", 3, torch.long, self.device)
            state.copy_(torch.cat([self.length, self.last_two[0]]))
            self.length, self.last_two = state[:1], state[1:].view(1, 2)

    def lane(self, model: Any, positions: int, previous: bool, compiled: CompiledForward | None) -> Lane:
        """A lane for these prompts."""
        if self.graphs is None:
            return Lane(model, self.shape, self.warp, len(self.prompts), positions, previous, compiled)
        storage = partial(self.graphs.storage, (id(model), previous))
        return Lane(model, self.shape, self.warp, 1, bucket(positions), previous, None, storage)

    def run(self) -> Generation:
        """Prefill, then blocks until every sequence has ended."""
        clock = Clock(self.device)
        self.prefill()
        self.out.prefill_s = clock.stop()
        clock = Clock(self.device)
        while self.alive:
            if self.compiled is None:
                self.compile()  # of a prompt of one token, only a block allocates caches
            (self.block if self.compiled is None else self.compiled_block)(clock)
        self.out.decode_s = clock.stop()
        self.out.phase_s, self.out.block_s = clock.seconds, clock.blocks
        return self.out

    def prefill(self) -> None:
        """All tokens but each prompt's last go into both caches, and what blocks need is prepared.

        Equal prompts are computed once.
        """
        width = max(self.lengths)
        for lane in self.lanes if width else ():
            kept = self.prefixes.get(lane.model, self.prompts)
            if kept is not None:
                lane.cache.restore(kept)
            else:
                self.compute_prefix(lane, width)
                self.prefixes.keep(lane.model, self.prompts, lane.cache.prefix(width))
        self.compile()
        if len(self.prompts) == 1:
            self.randomness.allocate()

    def compute_prefix(self, lane: Lane, width: int) -> None:
        """Forward the first `width` tokens of all prompts, padded on the right."""
        place: dict[tuple[int, ...], int] = {}
        copies = torch.tensor([place.setdefault(tuple(p), len(place)) for p in self.prompts], device=self.device)
        tokens = torch.tensor([[*p[:-1], *[0] * (width - len(p) + 1)] for p in place], device=self.device)
        lane.prefill(tokens)
        if len(place) < len(self.prompts):
            lane.cache.repeat(copies, width)

    def block(self, clock: Clock) -> None:
        """One block of all living sequences. The only copy to the host is that of the tokens at its end."""
        shape, end = self.shape, self.positions_read()
        last_two, length, last_noise, uniforms, noise = self.state()
        tree = DraftTree(*self.phase(self.draft, end, last_two, length, noise))
        assert tree.tokens.shape[1] == shape.budget, "a structure has exactly as many nodes as its budget"
        clock.mark("draft")

        (tempered,) = self.phase(self.forward, end, last_two, tree.tokens, length, tree.ancestors)
        clock.mark("target")

        outcome = Outcome(*self.phase(self.verify, end, *tree, tempered, uniforms, last_noise, last_two))
        report = to_host(outcome.report)
        # where it is known in time how many drafts were accepted, deeper rows need not move
        free = reading_is_free(self.device)
        most = max(accepted for accepted, *_ in report()) if free else shape.depth
        clock.mark("verify")

        if self.graphs is None:
            (self.length,), self.last_two = self.move(most, outcome.rows, outcome.accepted, length), outcome.last_two
        else:
            self.phase(self.advance, end, outcome.rows, outcome.accepted, outcome.last_two, length, last_two)
            self.randomness.ahead()  # while the device moves rows and draws, the host reads and goes on
        self.collect(report())
        clock.mark("commit")

    def compile(self) -> None:
        """Where calls are compiled and caches allocated, prepare the blocks to come, until the next sequence ends."""
        if self.calls is None or not all(lane.cache.storage for lane in self.lanes):
            return
        self.compiled = CompiledBlock(self.calls, self.target, self.drafter, self.limit, self.length, self.last_two)
        self.length, self.last_two = self.compiled.length, self.compiled.last_two

    def compiled_block(self, clock: Clock) -> None:
        """`block`, in compiled calls."""
        compiled, steps = self.compiled, row_numbers(0, max(self.lengths), self.device)
        drafts, noise, uniforms, _ = self.randomness.block(len(self.alive))
        if self.drafter is not None:
            compiled.draft(steps, drafts)
        clock.mark("draft")
        tempered = compiled.forward(steps)
        clock.mark("target")
        report, rows, accepted = compiled.verify(tempered, uniforms, noise)
        del tempered
        host = report.tolist()
        clock.mark("verify")
        # deeper rows than were accepted need not move
        compiled.accept(rows[:, : max(kept for kept, *_ in host) + 1], accepted)
        self.collect(host)
        clock.mark("commit")

    def state(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Iterable[Tensor] | Tensor]:
        """What a block begins with: the last two tokens, lengths, noise for the last token, uniforms, drafts' noise.

        For recordings the noise of all levels is one piece.
        """
        drafts, last, uniforms, whole = self.randomness.block(len(self.alive))
        if self.graphs is not None:
            return self.last_two, self.length, last, uniforms, whole
        return self.last_two, self.length, to_gumbel(last), uniforms, map(to_gumbel, drafts)

    def positions_read(self) -> int:
        """Prefix positions that this block's forwards read: as many as the longest sequence has, or more."""
        longest = max(self.lengths)
        return longest if self.graphs is None else bucket(longest)

    def phase(self, function: Callable[..., tuple[Tensor, ...]], end: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Call one of the functions below, or replay its recording for this method and `end`.

        Where the inputs of the first block are in their place, later ones are: each phase reads what the phases before
        it write for the same `end`.
        """
        if self.graphs is None or (function == self.draft and self.drafter is None):
            return function(end, *inputs)
        recording = self.ready.get((function.__name__, end))
        if recording is None:
            key = (function.__name__, end, self.name, self.shape, self.warp, self.limit)
            recording = self.graphs.find(partial(function, end), inputs, key)
            if recording.take(inputs):
                self.ready[function.__name__, end] = recording
        recording.replay()
        return recording.outputs

    def draft(self, end: int, last_two: Tensor, length: Tensor, noise: Iterable[Tensor] | Tensor) -> DraftTree:
        """The trees; noise of each level, or in one piece, as `state` gives it."""
        if self.drafter is None:
            return no_tree(self.shape, len(length), self.vocabulary, self.device)
        if self.graphs is not None:
            noise = noise.split(self.randomness.rows, 1)
        drafting = self.method.drafting
        return draft_tree(self.drafter, drafting, self.warp, last_two, length, end, self.limit, noise)

    def forward(self, end: int, last_two: Tensor, tokens: Tensor, length: Tensor, ancestors: Tensor) -> tuple[Tensor]:
        """The target's laws at the root and at every node."""
        tokens = torch.cat([last_two[:, 1:], tokens], 1)
        return (self.target.rows(tokens, 0, self.target.begin(length, end), ancestors),)

    def verify(self, end: int, *inputs: Tensor) -> Outcome:
        """What is accepted, and the last token; inputs: `DraftTree`, laws, uniforms, noise, the last two tokens."""
        fields = len(DraftTree._fields)
        tree, (tempered, uniforms, noise, last_two) = DraftTree(*inputs[:fields]), inputs[fields:]
        root = last_two[:, 1:]
        return verify(self.shape, tree, tempered, self.method.rule, self.warp, uniforms, noise, root)

    def move(self, most: int, rows: Tensor, accepted: Tensor, length: Tensor) -> tuple[Tensor]:
        """Move accepted rows behind the prefix in both caches, and each sequence forward: returns its new length.

        rows [B, L + 1], of which the first `most` + 1 count; accepted, length [B].
        """
        return (accept([lane.cache for lane in self.lanes], rows[:, : most + 1], accepted, length),)

    def advance(
        self, end: int, rows: Tensor, accepted: Tensor, new_last_two: Tensor, length: Tensor, last_two: Tensor
    ) -> tuple[()]:  # fmt: skip
        """`move`, with the new length and the last two tokens written where the next block's recordings read them."""
        length.copy_(self.move(self.shape.depth, rows, accepted, length)[0])
        last_two.copy_(new_last_two)
        return ()

    def collect(self, host: list[list[int]]) -> None:
        """Keep what each sequence gets of a block, and close the rows of those that end with it."""
        ended = []
        for row, (prompt, report) in enumerate(zip(self.alive, host, strict=True)):
            tokens, new = self.out.tokens[prompt], report[1 : report[0] + 2]
            tokens += new
            self.out.blocks[prompt] += 1
            self.accepted[prompt].append(report[0])
            self.lengths[row] += len(new)
            if len(tokens) >= self.room[prompt] or not self.ends.isdisjoint(new):
                ended.append(row)
        if ended:
            for row in ended:
                self.end(self.alive[row])
            self.close(ended)

    def end(self, prompt: int) -> None:
        """Cut a sequence behind its last token that is kept, and count which of its drafts were accepted and kept."""
        tokens, accepted = self.out.tokens[prompt], self.accepted[prompt]
        first = len(tokens) - accepted[-1] - 1  # token of the last block
        del tokens[self.room[prompt] :]
        ends = (i for i in range(first, len(tokens)) if tokens[i] in self.ends)
        del tokens[next(ends, len(tokens)) + 1 :]
        accepted[-1] = min(accepted[-1], len(tokens) - first)
        self.out.accepted_by_depth[prompt] = [sum(a > depth for a in accepted) for depth in range(self.shape.depth)]

    def close(self, ended: list[int]) -> None:
        """Shrink the batch: living rows from its end take the places of ended ones before them."""
        keep = len(self.alive) - len(ended)
        if not keep:
            self.alive = []
            return
        living = sorted(set(range(keep, len(self.alive))).difference(ended))
        gaps = [row for row in ended if row < keep]
        order = list(range(keep))
        for gap, row in zip(gaps, living, strict=True):
            order[gap] = row
        for lane in self.lanes:
            lane.cache.move(living, gaps)
        index = torch.tensor(order, dtype=torch.long, device=self.device)
        self.length, self.last_two = self.length[index], self.last_two[index]
        self.alive = [self.alive[row] for row in order]
        self.lengths = [self.lengths[row] for row in order]
        if self.compiled is not None:
            self.compile()
