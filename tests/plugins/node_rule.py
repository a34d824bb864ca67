"""A rule that looks at one node: recursive rejection with replacement (SpecInfer, arXiv 2305.09781, algorithm 2)."""

import torch

import rsdbench
from rsdbench.structures import SEQUENCES
from rsdbench.verification import Verdict


def with_replacement(p, q, drafts, present):
    """p, q [B, V]; drafts, present [B, k] -> accept [B, k], residual [B, V]. Drafts are independent draws from q."""
    r, accept = p, []
    for x, here in zip(drafts.split(1, 1), present.split(1, 1), strict=True):
        accept.append((r.gather(1, x) / q.gather(1, x).clamp(min=1e-30)).clamp(max=1) * here)
        rest = (r - q).relu()
        mass = rest.sum(1, keepdim=True)
        r = torch.where(here & (mass > 1e-30), rest / mass.clamp(min=1e-30), r)
    return Verdict(torch.cat(accept, 1), r)


rsdbench.register_method(
    "specinfer",
    rsdbench.Method(
        label="SpecInfer",
        form=SEQUENCES,
        structures={6: ("2x3", "3x2"), 10: ("5x2",)},
        strategy="rsdbench.decoding.strategies:Sequences",
        rule=with_replacement,
        independent=True,
        style={"color": "tab:purple", "linestyle": "-", "marker": "v"},
    ),
)
