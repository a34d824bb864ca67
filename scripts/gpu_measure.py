"""Single measurements for `gpu_check.py`: models with random weights, their forwards, blocks of a method, a copy.

Times are medians in milliseconds, with the device synchronised before and after; what is compared is measured by turns.
"""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, OPTConfig

import rsdbench
from rsdbench.backends.choice import EAGER, GRAPHED
from rsdbench.decoding.backend import Backend, Job
from rsdbench.decoding.shapes import TreeShape
from rsdbench.decoding.strategies import Frontier, Level, shared_parents, without_scores
from rsdbench.decoding.tree import DraftTree
from rsdbench.methods import BASELINE, METHODS, get_shape
from rsdbench.pair import Pair
from rsdbench.results.readings import reading
from rsdbench.sampling.distributions import Sampling
from rsdbench.verification.lift import lift
from rsdbench.verification.recursive_rejection import recursive_rejection

GIB = 2**30
SAMPLING = Sampling.at(0.3)


def opt(width: int, layers: int, heads: int, ffn: int, **changes: Any) -> OPTConfig:
    """The configuration of an OPT model."""
    return OPTConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, ffn_dim=ffn, dropout=0.0, **changes
    )


TARGETS = {
    "OPT-13B": opt(5120, 40, 40, 20480),
    "OPT-30B": opt(7168, 48, 56, 28672),
    "OPT-66B": opt(9216, 64, 72, 36864),
}
DRAFTERS = {
    "OPT-125M": opt(768, 12, 12, 3072),
    "OPT-350M": opt(1024, 24, 16, 4096, word_embed_proj_dim=512, do_layer_norm_before=False),
}
SMALL = opt(256, 4, 8, 1024, vocab_size=512, max_position_embeddings=512, init_std=0.1)


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often.

    forwards: how the models run, the quickest first; small: the target whose tokens are compared; rounds: turns of
    each measurement; calls: of a forward or a copy in one turn; seconds: nothing is begun after them.
    """

    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    forwards: tuple[str, ...] = (GRAPHED, EAGER)
    targets: dict[str, OPTConfig] = field(default_factory=lambda: TARGETS)
    drafters: dict[str, OPTConfig] = field(default_factory=lambda: DRAFTERS)
    small: OPTConfig = field(default_factory=lambda: SMALL)
    budgets: tuple[int, ...] = (6, 10, 14, 21, 30)
    prompt: int = 100
    new_tokens: int = 8
    compared_tokens: int = 32
    rounds: int = 3
    calls: int = 5
    copied_bytes: int = GIB
    seconds: float = 460.0

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of the target's forwards: AR's, and each budget's."""
        return (1, *(1 + budget for budget in self.budgets))

    @property
    def tokens(self) -> list[int]:
        """The prompt."""
        return [2, *range(3, 2 + self.prompt)]


def random_model(config: OPTConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """An OPT model with random weights, made on the device; the same for the same device."""
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype).eval()


def weight_bytes(model: Any) -> int:
    """Bytes of a model's weights, which one forward reads."""
    return sum(p.nbytes for p in model.parameters())


def free_memory(device: torch.device) -> float:
    """Bytes that the device has free; a CPU's are not counted."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


def release(device: torch.device) -> None:
    """Give back the memory of what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def timed(function: Callable[[], object], device: torch.device, calls: int) -> float:
    """Milliseconds of one of several calls, with the device synchronised before and after all of them."""
    wait = (lambda: None) if device.type == "cpu" else (lambda: torch.accelerator.synchronize(device))
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    wait()
    return 1e3 * (time.perf_counter() - start) / calls


def by_turns(measures: dict[Any, Callable[[], float]], rounds: int) -> dict[Any, list[float]]:
    """What measures give, taken by turns; a first round, which warms up and records graphs, does not count."""
    taken: dict[Any, list[float]] = {name: [] for name in measures}
    for i in range(rounds + 1):
        for name, measure in measures.items():
            value = measure()
            if i:
                taken[name].append(value)
    return taken


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios of what was measured in the same turns."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


class Fixed:
    """A strategy that draws nothing: what is left of drafting are the drafter's forwards."""

    @staticmethod
    def noise_rows(above: int, width: int) -> int:
        """None."""
        return 0

    @staticmethod
    def expand(above: Frontier, log_q: Tensor, noise: Tensor, width: int) -> Level:
        """The same token everywhere."""
        parents = shared_parents(above, width)
        return Level(torch.full_like(parents, 5), parents, without_scores(above.valid.gather(1, parents)))


@torch.inference_mode()
def bare(pair: Pair, shape: TreeShape, settings: Settings) -> Backend:
    """A backend behind the prompt, whose phases are the models' forwards and little else."""
    shape = TreeShape(shape.widths, shape.fanouts, shape.parents or (-1,) * shape.budget)
    room = [settings.new_tokens]
    job = Job(Fixed, lift(recursive_rejection), shape, SAMPLING, [settings.tokens], room, pair.positions, seed=0)
    backend = pair.engine.backend(job)
    backend.prefill()
    return backend


def scoring(pair: Pair, shape: TreeShape, settings: Settings) -> Callable[[], Tensor]:
    """A target's forward of a tree."""
    backend = bare(pair, shape, settings)
    with torch.inference_mode():
        tree = backend.draft(backend.numbers())
    return torch.inference_mode()(lambda: backend.score(tree))


def drafting(pair: Pair, shape: TreeShape, settings: Settings) -> Callable[[], DraftTree]:
    """A drafter's forwards of a block."""
    backend = bare(pair, shape, settings)
    with torch.inference_mode():
        numbers = backend.numbers()
    return torch.inference_mode()(lambda: backend.draft(numbers))


def copying(settings: Settings) -> Callable[[], Tensor]:
    """A large copy on the device."""
    source = torch.ones(settings.copied_bytes, dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def block_ms(pair: Pair, method: str, structure: str, settings: Settings) -> float:
    """Milliseconds of a block, without the prefill."""
    out = rsdbench.generate(pair, [settings.tokens], method, structure, settings.new_tokens, SAMPLING.temperature)
    return 1e3 * out.decode_s / sum(out.blocks)


def pairs_of(target: Any, drafter: Any, forwards: tuple[str, ...]) -> dict[str, Pair]:
    """A pair for each way to run the models; what compiling does to the models themselves holds for all of them."""
    pairs = {kind: Pair(target, drafter) for kind in forwards}
    if GRAPHED in pairs:
        pairs[GRAPHED].compile()
    return pairs


def cases(budgets: Sequence[int]) -> list[tuple[str, str, int]]:
    """The first structure of each of the paper's methods at each budget."""
    return [(name, METHODS[name].structures[b][0], b) for b in budgets for name in reading("block efficiency")]


def same_tokens(settings: Settings) -> dict[str, Any]:
    """Which decodings at T=0 in float32 are not AR's: every method, with a drafter that is often right."""
    target = random_model(settings.small, settings.device, torch.float32)
    drafter = copy.deepcopy(target)
    with torch.no_grad():
        for weight in drafter.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2 * settings.small.init_std)
    pairs = pairs_of(target, drafter, settings.forwards)

    def decode(kind: str, prompt: list[int], method: str, structure: str) -> list[list[int]]:
        return rsdbench.generate(pairs[kind], [prompt], method, structure, settings.compared_tokens, 0.0).tokens

    differing, decoded = [], 0
    tried = [(BASELINE, "0"), *(case[:2] for case in cases(ends(settings)))]
    for prompt in (settings.tokens, settings.tokens[: settings.prompt // 2]):
        expected = decode(settings.forwards[-1], prompt, BASELINE, "0")
        for kind in settings.forwards:
            for method, structure in tried:
                decoded += 1
                if decode(kind, prompt, method, structure) != expected:
                    differing.append(f"{method} {structure}, {kind}, {len(prompt)} tokens of prompt")
    return {"decoded": decoded, "differing": differing}


def ends(settings: Settings) -> list[int]:
    """The largest budget, for which graphs make the largest storage, and then the smallest."""
    return list(dict.fromkeys((max(settings.budgets), min(settings.budgets))))


def step_ms(pair: Pair, settings: Settings) -> float:
    """Milliseconds of one step of the longest sequence, by a pair's drafter."""
    steps = max(settings.budgets)
    draft = drafting(pair, get_shape("sd", str(steps)), settings)
    taken = by_turns({"draft": lambda: timed(draft, settings.device, settings.calls)}, settings.rounds)
    return statistics.median(taken["draft"]) / steps


def forward_times(pair: Pair, settings: Settings) -> dict[str, list[float]]:
    """Milliseconds of a pair's target's forwards by the number of rows.

    Raises:
        ArithmeticError: there are NaN among the laws.
    """
    shapes = {rows: get_shape("sd", str(rows - 1)) if rows > 1 else get_shape(BASELINE) for rows in settings.rows}
    scored = {rows: scoring(pair, shape, settings) for rows, shape in shapes.items()}
    if scored[settings.rows[-1]]().isnan().any():
        raise ArithmeticError("the target's log-probabilities have NaN: its weights are not fit for a measurement")
    measures = {str(rows): lambda run=run: timed(run, settings.device, settings.calls) for rows, run in scored.items()}
    return by_turns(measures, settings.rounds)


def ar_against_copy(pair: Pair, settings: Settings) -> dict[str, float]:
    """AR's milliseconds a token, and bytes of weights a second against those that a copy reads and writes."""
    move = copying(settings)
    measures = {
        "ar": lambda: block_ms(pair, BASELINE, "0", settings),
        "copy": lambda: timed(move, settings.device, settings.calls),
    }
    taken = by_turns(measures, settings.rounds)
    read, copied = weight_bytes(pair.target), 2 * settings.copied_bytes
    return {
        "ms_per_token": statistics.median(taken["ar"]),
        "gb_per_s": read / statistics.median(taken["ar"]) / 1e6,
        "copy_gb_per_s": copied / statistics.median(taken["copy"]) / 1e6,
        "share_of_copy": read / copied * ratio(taken["copy"], taken["ar"]),
    }


def block_times(pair: Pair, method: str, structure: str, settings: Settings) -> dict[str, float]:
    """A block against AR's and against its own bare forwards; outside: the share of it that is neither model's."""
    shape = get_shape(method, structure)
    draft, score = drafting(pair, shape, settings), scoring(pair, shape, settings)
    measures = {
        "ar": lambda: block_ms(pair, BASELINE, "0", settings),
        "block": lambda: block_ms(pair, method, structure, settings),
        "bare": lambda: timed(lambda: (draft(), score()), settings.device, settings.new_tokens),
    }
    taken = by_turns(measures, settings.rounds)
    medians = {f"{name}_ms": statistics.median(times) for name, times in taken.items()}
    outside = 1 - ratio(taken["bare"], taken["block"])
    return {**medians, "ar_over_block": ratio(taken["ar"], taken["block"]), "outside": outside}
