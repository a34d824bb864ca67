"""Recursive rejection sampling over drafts drawn without replacement (Jeon et al., arXiv 2402.14160, algorithm 3).

With a single draft this is the rule of speculative decoding (arXiv 2211.17192, algorithm 1; 2302.01318).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rsdbench.verification import Verdict


def recursive_rejection(p: Tensor, q: Tensor, drafts: Tensor, present: Tensor) -> Verdict:
    """Accept draft x with probability min(1, r(x) / d(x)); after a rejection r = norm(relu(r - d)), d loses x.

    Shapes as in `NodeRule`. r starts as p and d as q; both are normalised by the sum of what remains.
    """
    tiny = torch.finfo(p.dtype).tiny
    r, d, words = p, q, torch.arange(p.shape[1], dtype=torch.int32, device=p.device)
    accept = []
    for j in range(drafts.shape[1]):
        x, here = drafts[:, j : j + 1], present[:, j : j + 1]
        r_x, d_x = r.gather(1, x), d.gather(1, x)
        rest = (r - d).relu_()
        mass = rest.sum(-1, keepdim=True)
        some = mass >= tiny
        # no mass left over means r = d up to rounding: then the draft is accepted for certain, if r can emit it
        ratio = torch.where(some, r_x / d_x.clamp(min=tiny), r_x > 0)
        accept.append(ratio.clamp(max=1) * here)
        r = torch.where(here & some, rest / mass.clamp(min=tiny), r)
        if j + 1 < drafts.shape[1]:
            others = torch.where(words == x.int(), 0.0, d)
            d = torch.where(here, others / others.sum(-1, keepdim=True).clamp(min=tiny), d)
    return Verdict(torch.cat(accept, 1) if accept else p.new_zeros(drafts.shape), r)
