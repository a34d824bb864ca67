"""K-SEQ: k i.i.d. drafts, tried in turn against p / rho (Sun et al., SpecTr, arXiv 2310.15141, algorithm 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from rsdbench.verification import Verdict

SECTIONS, ROUNDS = 4, 10  # the interval of rho shrinks by 4 in each round: to a millionth of k - 1


def k_seq(p: Tensor, q: Tensor, drafts: Tensor, present: Tensor) -> Verdict:
    """Accept draft x with probability min(1, p(x) / (rho q(x))), with rho for the number of drafts present.

    Shapes as in `NodeRule`; equal drafts may occur. Lossless for every rho at or above the optimum,
    which is why `optimal_rho` rounds up.
    """
    tiny = torch.finfo(p.dtype).tiny
    number = present.sum(-1, keepdim=True).to(p.dtype)  # [B, 1]
    rho = optimal_rho(p, q, number)
    kept = torch.minimum(q, p / rho)  # [B, V]: mass that one draft has accepted at each token
    beta = kept.sum(-1, keepdim=True)
    # a probability, even if the sum was rounded up; (1 - (1 - beta)^k) / beta tends to k as beta vanishes
    some = at_least_one(beta, number)
    residual = (p - kept * torch.where(beta > 0, some / beta.clamp(min=tiny), number)).relu_()
    mass = residual.sum(-1, keepdim=True)
    # its mass is (1 - beta)^k, the probability that it is needed: where that is lost to rounding, p does as well
    residual = torch.where((mass >= tiny) & (beta > 0) & (number > 0), residual / mass.clamp(min=tiny), p)
    accept = (p.gather(1, drafts) / (rho * q.gather(1, drafts)).clamp(min=tiny)).clamp(max=1)
    return Verdict(accept * present, residual)


def at_least_one(beta: Tensor, number: Tensor) -> Tensor:
    """1 - (1 - beta)^number without cancellation for small beta."""
    return -torch.expm1(number * torch.log1p(-beta.clamp(max=1)))


def optimal_rho(p: Tensor, q: Tensor, number: Tensor) -> Tensor:
    """The root rho in [1, number] of 1 - (1 - beta)^number = rho beta, beta(rho) = sum_x min(q, p / rho), rounded up.

    p, q [B, V]; number [B, 1] -> [B, 1]. The left side falls and rho beta grows with rho, so sections of the interval
    can be searched side by side; the upper end keeps the residual non-negative.
    """
    low, high = torch.ones_like(number), number.clamp(min=1)
    inner = torch.linspace(0, 1, SECTIONS + 1, dtype=p.dtype, device=p.device)[1:-1]

    def reaches(rho: Tensor) -> Tensor:  # [B, R] -> [B, R]
        beta = torch.minimum(q.unsqueeze(1), p.unsqueeze(1) / rho.unsqueeze(-1)).sum(-1)
        return at_least_one(beta, number) <= rho * beta

    high = torch.where(reaches(low), low, high)
    for _ in range(ROUNDS):
        rho = low + (high - low) * inner  # [B, SECTIONS - 1]
        high = torch.where(reaches(rho), rho, high).amin(-1, keepdim=True)
        low = torch.where(rho < high, rho, low).amax(-1, keepdim=True)
    return high
