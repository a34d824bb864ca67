"""The models that level 2 decodes with: a vocabulary so small that the target's law can be written down."""

from __future__ import annotations

from functools import lru_cache

import torch
from transformers import OPTConfig, OPTForCausalLM

from rsdbench.pair import Pair

VOCABULARY = 6


@lru_cache(maxsize=1)
def tiny_pair() -> Pair:
    """A random two-layer OPT and, as its drafter, its first layer: often right, often wrong, never the same law."""
    target = tiny_model(layers=2)
    drafter = tiny_model(layers=1)
    drafter.load_state_dict(target.state_dict(), strict=False)
    return Pair(target, drafter)


def tiny_model(layers: int) -> OPTForCausalLM:
    """A random OPT over `VOCABULARY` tokens; its weights do not depend on the global generator."""
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=8, word_embed_proj_dim=8, num_hidden_layers=layers, num_attention_heads=1,
        ffn_dim=8, max_position_embeddings=64, dropout=0.0, init_std=0.7, pad_token_id=1, bos_token_id=2,
        eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return OPTForCausalLM(config).eval()
