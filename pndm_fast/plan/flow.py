"""How far the grids of flow networks are shifted: mu by the length of a sample and by steps, as pipelines have it."""

from __future__ import annotations

from pndm_fast.plan.checks import check_type

# mu of FLUX.2 by tokens: (slope, value at no tokens), at 10 steps and at 200
_AT_10, _AT_200 = (8.73809524e-05, 1.89833333), (0.00016927, 0.45666666)
_MOST_TOKENS = 4300  # above, the longer line alone


def flow_mu(
    tokens: float,
    *,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    base_tokens: float = 256,
    max_tokens: float = 4096,
) -> float:
    """mu of `Schedule.flow(math.exp(mu))`, linear in the number of image tokens: FLUX.1's, and its kin's.

    mu = base_shift + (max_shift - base_shift) (tokens - base_tokens) / (max_tokens - base_tokens). After Esser et al.
    2024, arXiv:2403.03206, eq. 23, where resolution shifts the noise. The defaults are FLUX.1's; Qwen-Image
    (arXiv:2508.02324) has max_shift=0.9 and max_tokens=8192. Where a scheduler has time_shift_type="linear" the shift
    is mu itself.

    Args:
        tokens: what the network sees of a sample; of FLUX.1 (height / 16) (width / 16).

    Raises:
        TypeError, ValueError: no numbers, tokens not positive, or one count for both ends of the line.
    """
    given = {"tokens": tokens, "base_shift": base_shift, "max_shift": max_shift}
    for name, value in (given | {"base_tokens": base_tokens, "max_tokens": max_tokens}).items():
        check_type(name, value, float)
    _check_tokens(tokens)
    if base_tokens == max_tokens:
        raise ValueError(f"max_tokens must differ from base_tokens, got {max_tokens!r}")
    return float(base_shift + (max_shift - base_shift) * (tokens - base_tokens) / (max_tokens - base_tokens))


def flux2_mu(tokens: float, steps: int) -> float:
    """mu of `Schedule.flow(math.exp(mu))` by FLUX.2's empirical rule, of image tokens and steps.

    Linear in steps through one line in tokens at 10 steps and another at 200; above 4300 tokens the latter alone
    (Black Forest Labs' released code).

    Raises:
        TypeError, ValueError: no numbers, or not positive.
    """
    check_type("tokens", tokens, float)
    check_type("steps", steps, int)
    _check_tokens(tokens)
    if steps < 1:
        raise ValueError(f"steps must be positive, got {steps}")
    few, many = (slope * tokens + value for slope, value in (_AT_10, _AT_200))
    return float(many if tokens > _MOST_TOKENS else many + (many - few) / 190 * (steps - 200))


def _check_tokens(tokens: float) -> None:
    if not tokens > 0:
        raise ValueError(f"tokens must be positive, got {tokens}")
