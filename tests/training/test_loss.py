import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ibisagent.errors import InputError
from ibisagent.training.loss import policy_loss

LOW, HIGH, BETA = 0.2, 0.28, 0.05


def naive(
    new: list[list[float]],
    old: list[list[float]],
    advantages: list[list[float]],
    mask: list[list[bool]],
    reference: list[list[float]] | None,
    tokens: float | None,
) -> tuple[float, list[list[float]]]:
    """The formula token by token in plain floats, with its derivative by hand."""
    cells = [(b, t) for b, row in enumerate(mask) for t, used in enumerate(row) if used]
    count = tokens if tokens is not None else max(len(cells), 1)
    loss, gradient = 0.0, [[0.0] * len(row) for row in mask]
    for b, t in cells:
        ratio, advantage = math.exp(new[b][t] - old[b][t]), advantages[b][t]
        free = ratio * advantage
        held = min(max(ratio, 1 - LOW), 1 + HIGH) * advantage
        loss -= min(free, held) / count
        if free <= held or 1 - LOW < ratio < 1 + HIGH:  # else the clip holds and nothing moves
            gradient[b][t] -= ratio * advantage / count
        if reference is not None:
            d = reference[b][t] - new[b][t]
            loss += BETA * (math.exp(d) - d - 1) / count
            gradient[b][t] += BETA * (1 - math.exp(d)) / count
    return loss, gradient


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 4),
    width=st.integers(1, 7),
    with_reference=st.booleans(),
    per_token=st.booleans(),
    tokens=st.none() | st.integers(1, 50),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_loss_and_gradient_equal_the_formula_written_as_loops(
    seed: int,
    rows: int,
    width: int,
    with_reference: bool,
    per_token: bool,
    tokens: int | None,
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, spread: float = 1.0) -> torch.Tensor:
        return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)

    old = draw(rows, width) - 2
    new = (old + draw(rows, width, spread=0.3)).to(dtype).requires_grad_()
    old = old.to(dtype)
    reference = (old + draw(rows, width, spread=0.5)).to(dtype) if with_reference else None
    advantages = (draw(rows, width) if per_token else draw(rows)).to(dtype)
    mask = torch.rand(rows, width, generator=generator) < 0.7
    result = policy_loss(
        new, old, advantages, mask, clip=(LOW, HIGH), reference=reference, beta=BETA if with_reference else 0.0,
        tokens=tokens,
    )  # fmt: skip
    result.loss.backward()
    wide = advantages if per_token else advantages[:, None].expand(rows, width)
    loss, gradient = naive(
        new.tolist(), old.tolist(), wide.tolist(), mask.tolist(),
        None if reference is None else reference.tolist(), tokens,
    )  # fmt: skip
    assert result.loss.item() == pytest.approx(loss, abs=1e-6)
    assert torch.allclose(new.grad.double(), torch.tensor(gradient, dtype=torch.float64), rtol=0, atol=1e-6)
    assert not (result.kl.requires_grad or result.clipped.requires_grad)


def test_other_tokens_carry_no_gradient_whatever_stands_there() -> None:
    mask = torch.tensor([[False, True, False], [True, False, False]])
    nasty = torch.tensor([[math.inf, 0.0, math.nan], [0.0, -math.inf, 1e30]])
    new = torch.where(mask, torch.full((2, 3), -1.0), nasty).requires_grad_()
    old = torch.where(mask, torch.full((2, 3), -1.1), -nasty)
    advantages = torch.where(mask, torch.tensor([[1.0], [-2.0]]), nasty)
    result = policy_loss(new, old, advantages, mask, reference=old, beta=0.1)
    result.loss.backward()
    assert torch.isfinite(result.loss) and torch.isfinite(result.kl)
    assert torch.all(new.grad[~mask] == 0) and torch.all(new.grad[mask] != 0)


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    """Gradient accumulation and several ranks: every part is divided by the tokens of all."""
    generator = torch.Generator().manual_seed(5)
    old = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2, 4, 1])[:, None]  # very different lengths
    whole, parts = ((old + 0.1).requires_grad_() for _ in range(2))
    policy_loss(whole, old, advantages, mask).loss.backward()
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        total = float(mask.sum())
        policy_loss(parts[rows], old[rows], advantages[rows], mask[rows], tokens=total).loss.backward()
    assert torch.allclose(whole.grad, parts.grad, atol=1e-12)


def test_on_policy_the_ratio_is_1_and_the_gradient_that_of_reinforce() -> None:
    new = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], requires_grad=True)
    mask = torch.ones(2, 2, dtype=torch.bool)
    result = policy_loss(new, new, torch.tensor([2.0, -1.0]), mask)
    result.loss.backward()
    assert result.clipped.item() == 0 and result.kl.item() == 0
    assert torch.allclose(new.grad, torch.tensor([[-0.5, -0.5], [0.25, 0.25]]))


def test_what_to_watch_counts_the_clipped_tokens() -> None:
    old = torch.zeros(1, 4)
    new = torch.log(torch.tensor([[1.5, 1.5, 0.5, 1.0]]))
    advantages = torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    result = policy_loss(new, old, advantages, torch.ones(1, 4, dtype=torch.bool), clip=(0.2, 0.2))
    assert result.clipped.item() == 0.5  # the first and the third; the second may still fall


def test_a_batch_without_policy_tokens_gives_0() -> None:
    new = torch.zeros(2, 3, requires_grad=True)
    result = policy_loss(new, torch.zeros(2, 3), torch.ones(2), torch.zeros(2, 3, dtype=torch.bool))
    result.loss.backward()
    assert result.loss.item() == 0 and torch.all(new.grad == 0)


def test_what_does_not_fit_is_refused() -> None:
    ones, mask = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    for arguments in (
        (ones, torch.ones(2, 4), torch.ones(2), mask),
        (ones, ones, torch.ones(3), mask),
        (ones, ones, torch.ones(2), mask[:, :2]),
        (ones, ones, torch.ones(2), ones),
        (ones[0], ones[0], torch.ones(3), mask[0]),
    ):
        with pytest.raises(InputError):
            policy_loss(*arguments)
    with pytest.raises(InputError, match="reference"):
        policy_loss(ones, ones, torch.ones(2), mask, beta=0.1)
