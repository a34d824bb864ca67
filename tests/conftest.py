"""Tiny random models of the architectures that matter, made on the spot."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from rsdbench.backends.aot import library
from rsdbench.pair import Pair
from rsdbench.sampling.gumbel import to_gumbel

# sizes of a tiny model of any family
BASE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def tiny_opt(seed, vocabulary=64, width=16, layers=2, positions=64, std=0.4, **changes):
    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=vocabulary, hidden_size=width, word_embed_proj_dim=changes.pop("word_embed_proj_dim", width),
        num_hidden_layers=layers, num_attention_heads=2, ffn_dim=2 * width, max_position_embeddings=positions,
        dropout=0.0, init_std=std, pad_token_id=1, bos_token_id=2, eos_token_id=2, **changes,
    )  # fmt: skip
    return OPTForCausalLM(config).eval()


def tiny_opt_post_norm(seed, vocabulary=64, **changes):
    return tiny_opt(seed, vocabulary, do_layer_norm_before=False, word_embed_proj_dim=8, **changes)


def tiny_llama(seed, vocabulary=64, positions=64):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=positions, initializer_range=0.4,
        pad_token_id=1, bos_token_id=2, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def resembling(model, seed, noise):
    """A copy of a model with disturbed weights: a drafter that is sometimes right."""
    import copy

    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(noise * torch.randn_like(p))
    return other


def make_pair(kind, vocabulary=64, noise=0.1, **changes):
    """opt: pre-norm target; opt_post_norm: as OPT-350M; llama: rotary positions, grouped-query attention; mixed: an
    unrelated post-norm drafter below a pre-norm target."""
    if kind == "mixed":
        return Pair(tiny_opt(1, vocabulary, **changes), tiny_opt_post_norm(2, vocabulary, **changes))
    target = {"opt": tiny_opt, "opt_post_norm": tiny_opt_post_norm, "llama": tiny_llama}[kind](1, vocabulary, **changes)
    return Pair(target, resembling(target, 3, noise))


COMPILED = ("test_aot", "test_backends", "test_golden")  # they need the same compiled code
LONGEST = ("test_certificate", *COMPILED, "test_slurm", "test_crashes", "test_grid", "test_sweeps")


def module_of(nodeid):
    return nodeid.partition("::")[0].rpartition("/")[2].removesuffix(".py")


def pytest_collection_modifyitems(items):
    """The longest modules first, so that of several processes none is left with one at the end."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(module_of(item.nodeid), len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Processes share the tests by module, for a module's tests share what is costly."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            module = module_of(nodeid)
            return "compiled" if module in COMPILED else module

    return ByModule(config, log)


PAIRS = ("opt", "opt_post_norm", "llama", "mixed")


@pytest.fixture(scope="session")
def pairs():
    return {kind: make_pair(kind) for kind in PAIRS}


def gumbel_noise(shape, generator):
    return to_gumbel(torch.rand(shape, generator=generator))


def all_structures(budgets=(6, 10, 14, 21, 30)):
    from rsdbench.methods import METHODS

    cases = []
    for name, method in METHODS.items():
        for budget, structures in method.structures.items():
            cases += [(name, s, budget) for s in structures if budget in budgets]
    return cases


@pytest.fixture(scope="session")
def compiled_cache(tmp_path_factory):
    """A cache of compiled code that no earlier run has filled; the tests of one run share it, for it takes minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield library.cache_folder()
