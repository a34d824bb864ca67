"""Drafts that are taken for certain: a draw from p is accepted where it is one of them (Miao et al., SpecInfer, arXiv
2305.09781, section 4.3, of a drafter without a distribution).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rsdbench.verification import Verdict


def sample_and_match(p: Tensor, q: Tensor, drafts: Tensor, present: Tensor) -> Verdict:
    """Accept draft x with its share of the mass of p that the drafts before it have left. Reads no q.

    Shapes as in `NodeRule`. It is recursive rejection whose d is one-hot at each draft.
    """
    tiny, words = torch.finfo(p.dtype).tiny, torch.arange(p.shape[1], dtype=torch.int32, device=p.device)
    accept = []
    for x, here in zip(drafts.split(1, 1), present.split(1, 1), strict=True):
        mass = p.sum(-1, keepdim=True)
        accept.append((p.gather(1, x) / mass.clamp(min=tiny)).clamp(max=1) * here)
        rest = torch.where(here & (words == x), 0.0, p)
        # where nothing is left the draft was certain
        p = torch.where(rest.sum(-1, keepdim=True) >= tiny, rest, p)
    return Verdict(torch.cat(accept, 1), p / p.sum(-1, keepdim=True))
