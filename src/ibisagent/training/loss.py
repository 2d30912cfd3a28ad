"""The clipped policy loss of GRPO as a pure function of log-probabilities (docs/training.md).

Per token t of the policy's own text, with ratio r = exp(log p - log p_old) and advantage A:

    - min(r A, clip(r, 1 - low, 1 + high) A) + beta (exp(d) - d - 1),   d = log p_ref - log p

The first part is that of PPO (Schulman et al. 2017, equation 7), the second the estimator k3 of
the KL divergence (Schulman, "Approximating KL divergence", 2020). The sum over tokens is divided
by one number of tokens, not per text, so that long and short texts weigh alike per token. Left
out: an entropy bonus, a value loss, sampling corrections.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ibisagent.errors import InputError


@dataclass(frozen=True)
class PolicyLoss:
    """The loss and, detached, what to watch beside it; each is a scalar."""

    loss: Tensor  # to call backward on
    kl: Tensor  # mean k3 over the tokens; 0 without a reference
    clipped: Tensor  # share of the tokens where the clip took the gradient away


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: tuple[float, float] = (0.2, 0.2),
    reference: Tensor | None = None,
    beta: float = 0.0,
    tokens: float | None = None,
) -> PolicyLoss:
    """The loss of one batch, or of one part of it.

    log_probs, old_log_probs, reference: float BxT, natural log-probabilities of the written tokens
    under the policy, the policy that wrote them, and the reference; the last two carry no gradient.
    advantages: float B (one a text) or BxT. mask: bool BxT, True for tokens that the policy wrote;
    at all others (prompt, pictures, padding) any value may stand, infinities included, and no
    gradient arises. `clip`: how far the ratio may fall and rise. `tokens`: what the sum is divided
    by, such as the number of policy tokens of all parts and ranks; by default that of this mask.
    The two values to watch are means over this mask. Raises InputError for shapes that differ,
    and for a `beta` without a reference.
    """
    _check(log_probs, old_log_probs, advantages, mask, reference, beta)
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    here = max(int(mask.sum()), 1)

    def masked(values: Tensor) -> Tensor:
        # before exp: what stands outside the mask must not reach the gradient even as 0 * inf
        return torch.where(mask, values, torch.zeros_like(values))

    new = masked(log_probs)
    ratio = torch.exp(new - masked(old_log_probs.detach()))
    advantage = masked(advantages.detach().expand_as(mask))
    free = ratio * advantage
    held = torch.clamp(ratio, 1 - clip[0], 1 + clip[1]) * advantage
    per_token = -torch.minimum(free, held)
    kl = torch.zeros_like(new)
    if reference is not None:
        difference = masked(reference.detach()) - new
        kl = torch.exp(difference) - difference - 1
        per_token = per_token + beta * kl
    loss = (per_token * mask).sum() / (here if tokens is None else tokens)
    with torch.no_grad():
        return PolicyLoss(
            loss=loss,
            kl=(kl * mask).sum() / here,
            clipped=((held < free) & mask).sum() / here,
        )


def _check(
    log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, reference: Tensor | None, beta: float
) -> None:
    shape = log_probs.shape
    others = {"old_log_probs": old, "mask": mask} | ({} if reference is None else {"reference": reference})
    wrong = [name for name, value in others.items() if value.shape != shape]
    if log_probs.ndim != 2 or wrong:
        raise InputError(
            "log-probabilities and mask are all BxT", f"{tuple(shape)} and {', '.join(wrong) or 'no others'}"
        )
    if advantages.shape not in (shape, shape[:1]):
        raise InputError("advantages are B or BxT", tuple(advantages.shape))
    if mask.dtype != torch.bool:
        raise InputError("the mask of policy tokens is bool", mask.dtype)
    if beta and reference is None:
        raise InputError(
            "a KL term needs the reference's log-probabilities", f"beta {beta}", "pass reference"
        )
