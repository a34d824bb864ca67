"""A rule that sees the whole tree: speculative decoding of a chain in one piece (arXiv 2211.17192, algorithm 1)."""

import torch

import rsdbench
from rsdbench.structures import CHAIN
from rsdbench.verification import Outcome


def all_at_once(tree, uniforms, repeat):
    """Uniforms [B, N], one of each node -> rows [B, N + 1] of the accepted path, last [B, V]."""
    nodes = uniforms.shape[1]
    rows = torch.arange(nodes + 1).expand(len(uniforms), -1)
    x = tree.tokens.unsqueeze(2)  # [B, N, 1]
    p, q = tree.p.at(rows), tree.q.at(rows[:, :-1])  # [B, 1 + N, V], [B, N, V]
    ratio = (p[:, :-1].gather(2, x) / q.gather(2, x).clamp(min=1e-30)).squeeze(2)
    accepted = ((uniforms < ratio) & tree.valid).long().cumprod(1)  # [B, N]
    count = accepted.sum(1)
    rest = (p[:, :-1] - q).relu() * tree.valid.unsqueeze(2) + p[:, :-1] * ~tree.valid.unsqueeze(2)
    mass = rest.sum(2, keepdim=True)
    rest = torch.where(mass > 1e-30, rest / mass.clamp(min=1e-30), p[:, :-1])
    last = torch.cat([rest, p[:, -1:]], 1)[torch.arange(len(count)), count]
    return Outcome(rows * torch.nn.functional.pad(accepted, (1, 0), value=1), last)


rsdbench.register_method(
    "sd_whole",
    rsdbench.Method(
        label="SD, whole",
        form=CHAIN,
        structures={6: ("6",), 10: ("10",)},
        strategy="rsdbench.decoding.strategies:Sequences",
        rule=all_at_once,
        whole_tree=True,
        style={"color": "tab:pink", "linestyle": "-", "marker": "^"},
    ),
)
