"""Do all models mean the same by a token, see prompts that end alike, and end their answers by what stops sampling?"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from gopd.doctor.evidence import Evidence
from gopd.doctor.finding import Finding
from gopd.sections import View

ENDING_GAP = 5.0
"""Nats by which another model may find the student's ends unlikelier than the student does, on average: its chance is
then 150 times smaller. A choice; measured within the tiny family: 0.00."""
TAIL = 4
"""Last prompt tokens that views are expected to share: those that open the answer."""
ANSWER = "the answer"
"""What a chat is closed after, to see how its template closes a turn."""


def models_agree(evidence: Evidence) -> Finding:
    """Vocabulary, logits and context, which `prepare` has found to fit; special tokens; and what it warned of."""
    models, student = evidence.models, evidence.models["student"]
    differing = {
        name: {role: getattr(model.tokenizer, name) for role, model in models.items()}
        for name in ("eos_token", "bos_token", "pad_token")
    }
    other = {name: tokens for name, tokens in differing.items() if len(set(tokens.values())) > 1}
    room = min(model.context_length for model in models.values())
    measured = (
        f"{_count(len(models), 'model')}, {len(student.tokenizer.get_vocab()):,} tokens, {student.logits:,} logits; "
        f"the longest row can have {evidence.task.longest:,} tokens, the context is {room:,}"
    )
    for name, tokens in other.items():
        measured += f"\n{name}: " + ", ".join(f"{role} {token!r}" for role, token in tokens.items())
    measured += "".join(f"\n{text}" for text in evidence.said)
    figures = {
        "vocabulary": len(student.tokenizer.get_vocab()),
        "logits": student.logits,
        "context": room,
        "longest": evidence.task.longest,
        "differing": other,
        "said": list(evidence.said),
    }
    if not evidence.said and "eos_token" not in other:
        return Finding("tokens", "fine", measured, figures=figures)
    mend = "see that this is meant"
    if "eos_token" in other:
        mend = "give all models the student's eos_token, or see under 'endings' whether they know its end of answer"
    return Finding("tokens", "warning", measured, mend, figures=figures)


def views_end_alike(evidence: Evidence) -> Finding:
    """Whether every model sees the same last tokens before the answer, such as a closed thinking block."""
    rows = len(evidence.seen)
    for row in evidence.seen:
        own = row.prompts["student"][-TAIL:]
        for role, ids in row.prompts.items():
            if ids[-TAIL:] != own:
                theirs = evidence.task.tokenizer.decode(ids[-TAIL:])
                return Finding(
                    "views",
                    "warning",
                    f"{row.where}: before the answer the student sees {evidence.task.tokenizer.decode(own)!r}, "
                    f"{role} {theirs!r}",
                    "let both chat templates open the answer alike (view.enable_thinking, view.chat_template_kwargs); "
                    "otherwise the model judges an answer of a kind that it does not expect",
                    figures={"rows": rows},
                )
    same = all(ids == row.prompts["student"] for row in evidence.seen for ids in row.prompts.values())
    others = sorted({role for row in evidence.seen for role in row.prompts} - {"student"})
    measured = f"{_count(rows, 'row')} shown: "
    if not others:
        measured += "the student alone sees them"
    elif same:
        measured += f"the same prompt tokens for student, {', '.join(others)}"
    else:
        measured += f"other prompts, but the same last {TAIL} tokens, for {', '.join(others)}"
    return Finding("views", "fine", measured, figures={"rows": rows, "same": same})


def turns_end(evidence: Evidence) -> Finding:
    """Whether the token that the student's template ends a turn with stops sampling, and the others know that end."""
    student, recipe = evidence.models["student"], evidence.recipe
    tokenizer, stops = student.tokenizer, student.eos_ids
    closing = closing_ids(tokenizer, recipe.student.view)
    shown = ", ".join(repr(tokenizer.decode([i])) for i in stops)
    end = closing[0] if closing else None
    figures: dict[str, object] = {"stops": stops, "template_ends_with": end}
    if end is None:
        return Finding(
            "endings",
            "warning",
            f"the chat template puts nothing behind an answer; sampling stops at {shown}",
            "see that the student was taught to end its answers so",
            figures=figures,
        )
    name = repr(tokenizer.decode([end]))
    if end not in stops:
        return _runs_on(evidence, name, end, shown, figures)
    gaps = _ending_gaps(evidence)
    measured = f"the chat template ends answers with {name}, which stops sampling"
    if gaps:
        said = ", ".join(f"{role} {round(gap, 2) + 0.0:+.2f}" for role, gap in gaps.items())
        measured += f"; at the ends, log-probs less the student's: {said}"
    far = [role for role, gap in gaps.items() if gap < -ENDING_GAP]
    if far:
        mend = f"{', '.join(far)}: not taught to end an answer with {name}, though its gap there teaches the student "
        mend += "when to stop; take the chat-tuned model" + _where(far)
        return Finding("endings", "warning", measured, mend, figures=figures | {"gaps": gaps})
    return Finding("endings", "fine", measured, figures=figures | {"gaps": gaps})


def closing_ids(tokenizer: PreTrainedTokenizerBase, view: View) -> list[int]:
    """What a view's chat template puts behind an answer, white space before it aside."""
    variables = dict(view.chat_template_kwargs)
    if view.enable_thinking is not None:
        variables["enable_thinking"] = view.enable_thinking
    chat = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": ANSWER}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, **variables)
    assert isinstance(text, str)
    ids: list[int] = tokenizer(text.rpartition(ANSWER)[2].lstrip(), add_special_tokens=False)["input_ids"]
    return ids


def _where(far: Sequence[str]) -> str:
    """With a reference that does not know the end, the sign is the other one."""
    if any(role.startswith("reference") for role in far):
        return "; with a reference that finds it unlikely, a reward scale above 1 rewards every end"
    return ""


def _runs_on(evidence: Evidence, name: str, end: int, shown: str, figures: dict[str, object]) -> Finding:
    """The template's end is no stop token: do the sampled responses run past it?"""
    past = sum(end in rollout.response_ids for rollout in evidence.rollouts)
    share = past / max(1, len(evidence.rollouts))
    measured = f"the chat template ends answers with {name}, but sampling stops only at {shown}"
    measured += f"; {past} of {_count(len(evidence.rollouts), 'response')} run on past {name}"
    mend = f"add the id {end} to eos_token_id in the student's generation_config.json, and make {name} its tokenizer's "
    mend += "eos_token"
    return Finding(
        "endings", "stop" if past else "warning", measured, mend, figures=figures | {"run_on": share}
    )


def _ending_gaps(evidence: Evidence) -> dict[str, float]:
    """Mean of ℓ − ℓ_S at the last token of finished responses, by role."""
    gaps: dict[str, list[float]] = {}
    seen = zip(evidence.rollouts, evidence.own_logprobs, evidence.scores, strict=False)
    for rollout, own_R, scores in seen:
        if scores is None or not rollout.finished:
            continue
        route = scores.route
        named = {f"teacher {route}": scores.teacher_logprobs_R, "reference": scores.reference_logprobs_R}
        for role, logprobs_R in named.items():
            if logprobs_R is not None:
                gaps.setdefault(role, []).append(float(logprobs_R[-1] - own_R[-1]))
    return {role: sum(values) / len(values) for role, values in gaps.items()}


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
