"""The sampled responses: do they end, say something, and not go round in circles? Are their log-probs the trainer's?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gopd.doctor.evidence import Evidence
from gopd.doctor.finding import Finding, Verdict, unmeasured
from gopd.objective import correction_weights
from gopd.recipe import SampledRecipe
from gopd.types import Rollout

CUT, CUT_STOP = 0.1, 0.9
"""Shares of responses cut at the limit that are warned of, and that stop. Choices: the builtin student has none
(docs/doctor.md); what learns from responses without an end does not learn to end."""
EMPTY = 0.05
"""Share of responses without text that is warned of. A choice; the builtin student has none."""
GRAM, LONG, DISTINCT, CIRCLES = 4, 48, 0.25, 0.05
"""A response of at least LONG tokens goes in circles where less than DISTINCT of its GRAM-grams are different; a share
of more than CIRCLES is warned of. Choices; no response of the builtin student does."""

EXACT_GAP = 1e-3
"""Nats that one token may be off where engine and trainer share numerics (float32). Measured: 1e-5."""
GAP, GAP_STOP = 0.05, 0.5
"""Mean |Δℓ| in nats that is warned of, and that stops. Choices; measured with the tiny family: 0.001 in bfloat16, 0.1
at most. Half a nat on average is no rounding: the engine has other weights, or samples at another temperature."""


def responses_end(evidence: Evidence) -> Finding:
    """Truncation at the response limit, empty responses, repetition; of demonstrations for SFT."""
    rollouts, limit = evidence.rollouts, evidence.recipe.data.max_response_tokens
    lengths = sorted(len(r.response_ids) for r in rollouts)
    cut = _share([not r.finished for r in rollouts])
    empty = _share([not r.text.strip() for r in rollouts])
    circles = _share([goes_in_circles(r) for r in rollouts])
    kind = "responses" if isinstance(evidence.recipe, SampledRecipe) else "demonstrations"
    measured = (
        f"{len(rollouts)} {kind} of {sum(lengths) / len(lengths):,.0f} tokens on average, at most {lengths[-1]:,}; "
        f"{cut:.0%} cut at {limit:,}, {empty:.0%} empty, {circles:.0%} in circles"
    )
    verdict: Verdict = "fine"
    mends = []
    if cut > CUT:
        verdict = "stop" if cut > CUT_STOP else "warning"
        mends.append(
            "raise data.max_response_tokens, or start from a student that ends its answers (SFT first); "
            "where 'endings' is not fine, mend that before"
        )
    if empty > EMPTY or circles > CIRCLES:
        verdict = "stop" if verdict == "stop" else "warning"
        mends.append("see that the student is chat-tuned and its view is the one it was tuned with")
    figures = {
        "rows": len(rollouts),
        "mean_tokens": sum(lengths) / len(lengths),
        "max_tokens": lengths[-1],
        "limit": limit,
        "truncated": cut,
        "empty": empty,
        "in_circles": circles,
    }
    return Finding("responses", verdict, measured, "; ".join(mends), figures=figures)


def goes_in_circles(rollout: Rollout) -> bool:
    """Whether a long response says few things again and again."""
    if len(rollout.response_ids) < LONG:
        return False
    grams = torch.tensor(rollout.response_ids).unfold(0, GRAM, 1)
    return len(grams.unique(dim=0)) < DISTINCT * len(grams)


def sampler_matches_trainer(evidence: Evidence) -> Finding:
    """ℓ_train − ℓ_sampler of every sampled token, and what rollout correction would cut."""
    recipe = evidence.recipe
    if not isinstance(recipe, SampledRecipe):
        return unmeasured("sampler", "method sft samples nothing")
    own_T = torch.cat(list(evidence.own_logprobs))
    sampler_T = torch.cat(
        [r.sampler_logprobs_R.cpu() for r in evidence.rollouts if r.sampler_logprobs_R is not None]
    )
    size_T = (own_T - sampler_T).abs()
    mean, largest = float(size_T.mean()), float(size_T.max())
    lengths = torch.tensor([len(r.response_ids) for r in evidence.rollouts])
    row_T = torch.arange(len(lengths)).repeat_interleave(lengths)
    correction = recipe.correction
    weights_T = correction_weights(own_T, sampler_T, row_T, level=correction.level, cap=correction.cap)
    cut = float((weights_T >= correction.cap).double().mean())
    engine = f"engine {recipe.sampler.engine}"
    measured = f"{engine}: |Δℓ| {mean:.2g} nats on average, at most {largest:.2g}, over {len(own_T):,} tokens"
    measured += f"; correction above {correction.cap:g} would cut {cut:.2%} of them"
    figures = {"mean": mean, "max": largest, "tokens": len(own_T), "above_cap": cut, "exact": evidence.exact}
    if evidence.exact and largest > EXACT_GAP:
        mend = "sampler and trainer are to share weights and numerics, and no correction is made; report this as a bug"
        return Finding("sampler", "stop", measured, mend, figures=figures)
    if mean <= GAP:
        return Finding("sampler", "fine", measured, figures=figures)
    if mean > GAP_STOP:
        mend = "the engine samples from another model than is trained: look at its weights, dtype and temperature"
        return Finding("sampler", "stop", measured, mend, figures=figures)
    mend = "keep correction.mode: auto, and sample in the precision that trains"
    return Finding("sampler", "warning", measured, mend, figures=figures)


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
