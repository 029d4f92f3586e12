"""How each model sees a prompt: rendering a view to token ids, and what must hold for it to be possible.

Only prompts are rendered. Response ids are appended to them unchanged, whoever scores them, so all models of
a run must have one vocabulary.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from jinja2.exceptions import TemplateError

from gopd.data import as_text, column_names, reach
from gopd.errors import BadInput
from gopd.sections import View
from gopd.types import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

SHOWN = 5
"""How many overlong prompts one message shows."""

RESERVED = frozenset(
    (
        "conversation",
        "tokenize",
        "add_generation_prompt",
        "continue_final_message",
        "return_dict",
        "return_tensors",
    )
)
"""What the renderer itself decides, and a view's `chat_template_kwargs` may not."""

_FIELD = re.compile(
    r"""
    (?P<open>\{\{) | (?P<close>\}\})
    | \{\s*(?P<name>[^\W\d][^{}]*?)\s*\}
    | \{[^{}]*\}   # {} or {2}: no name, stays as it is, as in \boxed{} and \frac{1}{2}
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class FitReport:
    """What the prompt limit did. `longest` is in tokens, before dropping or truncating."""

    kept: int
    """Prompts that go on, the truncated ones included."""
    dropped: int
    truncated: int
    longest: int


def render(
    view: View,
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool = True,
) -> list[list[int]]:
    """Token ids of each prompt as seen through a view; ragged, in the order of `prompts`.

    The text of the last user turn becomes `template + suffix`, joined with nothing in between. In the
    template `{prompt}` is the turn's own text and `{column}` or `{a.b}` a field of the row (text as it is,
    lists and objects as JSON); `{{` and `}}` are literal braces; braces that enclose no name (one starting
    with a letter or underscore), as in `\\boxed{}`, stay as they are. What is put in is not looked at again,
    and the suffix and the system text are never expanded. Special tokens come from the chat template alone.

    Raises BadInput when a row lacks a field the template names, or the chat template refuses a chat.
    """
    if not prompts:
        return []
    variables = dict(view.chat_template_kwargs)
    if view.enable_thinking is not None:
        variables["enable_thinking"] = view.enable_thinking
    texts = [_text(view, prompt, tokenizer, add_generation_prompt, variables) for prompt in prompts]
    ids = encode(tokenizer, texts)
    for prompt, row in zip(prompts, ids, strict=True):
        if not row:
            raise BadInput(
                f"{prompt.where}: the chat template makes no token of this chat; mend the template or the row"
            )
    return ids


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, without any added. Raises BadInput where the tokenizer breaks down over them."""
    try:
        ids: list[list[int]] = tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's, which is no Exception and cannot be imported
            raise
        raise BadInput(
            f"the tokenizer breaks down over these texts: {error}; its tokenizer.json has a pattern that takes too long"
        ) from error
    return ids


def check_view(view: View, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Checks, before any row, that the model called `name` can be prompted through a view.

    Raises BadInput when there is no chat template, or the view sets what only the renderer may.
    """
    if taken := sorted(RESERVED & view.chat_template_kwargs.keys()):
        raise BadInput(f"{name}: view.chat_template_kwargs may not set {', '.join(taken)}; take it out")
    try:
        tokenizer.get_chat_template(view.chat_template_kwargs.get("chat_template"))
    except ValueError as error:
        raise BadInput(
            f"{name}: its tokenizer has no chat template; use the chat-tuned model, add chat_template.jinja "
            "to the model's folder, or set view.chat_template_kwargs.chat_template"
        ) from error


def fit(
    prompts: Sequence[Prompt],
    ids: Sequence[list[int]],
    limit: int,
    policy: Literal["drop", "truncate", "error"],
) -> tuple[list[Prompt], list[list[int]], FitReport]:
    """Applies the prompt limit, in tokens, to prompts and their ids (entry by entry the same length).

    drop: overlong prompts are left out, and those that stay are numbered anew (`Prompt.index`); truncate:
    only the last `limit` ids stay; error: any overlong prompt is one. Raises BadInput for that, and when
    nothing is left.
    """
    assert len(prompts) == len(ids)
    overlong = [(prompt, len(row)) for prompt, row in zip(prompts, ids, strict=True) if len(row) > limit]
    longest = max(map(len, ids), default=0)
    if overlong and policy == "error":
        shown = ", ".join(f"{prompt.where} ({length})" for prompt, length in overlong[:SHOWN])
        more = f" and {len(overlong) - SHOWN} more" if len(overlong) > SHOWN else ""
        raise BadInput(
            f"{len(overlong)} of {len(ids)} prompts have more than {limit} tokens: {shown}{more}; raise "
            f"max_prompt_tokens (the longest has {longest}), or set overlong to drop or truncate"
        )
    if policy == "truncate":
        cut = [row[-limit:] for row in ids]
        return list(prompts), cut, FitReport(len(cut), 0, len(overlong), longest)
    stay = [number for number, row in enumerate(ids) if len(row) <= limit]
    if not stay:
        shortest = min(map(len, ids), default=0)
        raise BadInput(
            f"no prompts are left: of {len(ids)}, {len(overlong)} were dropped for having more than {limit} "
            f"tokens (shortest {shortest}, longest {longest}); raise max_prompt_tokens, or set overlong to "
            "truncate"
        )
    kept = [replace(prompts[number], index=index) for index, number in enumerate(stay)]
    return kept, [ids[number] for number in stay], FitReport(len(kept), len(overlong), 0, longest)


def check_same_vocabulary(tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> None:
    """Checks that every model has the student's tokens (the first entry's) under the same ids.

    Keys are what messages call the models. Raises BadInput with the first id at which two models differ. Another
    end of sequence, as a chat model's base often has, is only warned of: the ids still mean the same.
    """
    (student, own), *others = tokenizers.items()
    vocabulary = own.get_vocab()
    for name, tokenizer in others:
        theirs = tokenizer.get_vocab()
        if vocabulary != theirs:
            first = min(index for _, index in vocabulary.items() ^ theirs.items())
            mine, other = _token_at(vocabulary, first), _token_at(theirs, first)
            raise BadInput(
                f"{student} and {name} have different vocabularies: id {first} is {mine} for {student}, "
                f"{other} for {name}; distillation scores the student's own token ids, so all models must "
                "share one vocabulary: choose models of one family"
            )
        if own.eos_token_id != tokenizer.eos_token_id:
            log.warning(
                "%s ends a response with %r, %s with %r: the latter may find the student's ending unlikely",
                student,
                own.eos_token,
                name,
                tokenizer.eos_token,
            )


def _text(
    view: View,
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
) -> str:
    chat = [dict(message) for message in _chat(view, prompt)]
    try:
        text = tokenizer.apply_chat_template(
            chat,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except TemplateError as error:
        raise BadInput(
            f"{prompt.where}: the chat template refuses this chat: {error}; change the row's roles or the "
            "view's system text"
        ) from error
    except Exception as error:  # a template is a program, and fails as one
        what = f"{type(error).__name__}: {error}"
        raise BadInput(f"{prompt.where}: the chat template fails: {what}; mend the template") from error
    assert isinstance(text, str)
    return text


def _chat(view: View, prompt: Prompt) -> list[Message]:
    *before, last = prompt.messages
    assert last["role"] == "user"
    if view.system is not None:
        others = [message for message in before if message["role"] != "system"]
        before = [{"role": "system", "content": view.system}, *others]
    return [*before, {**last, "content": _expand(view.template, prompt, last["content"]) + view.suffix}]


def _expand(template: str, prompt: Prompt, own_text: str) -> str:
    def replacement(match: re.Match[str]) -> str:
        if match["open"] or match["close"]:
            return match[0][0]
        name = match["name"]
        if name is None:
            return match[0]
        if name == "prompt":
            return own_text
        value = reach(prompt.fields, name)
        if value is None:
            raise BadInput(
                f"{prompt.where}: the view's template asks for {{{name}}}, which this row does not have; "
                f"columns: {column_names(prompt.fields)}; for literal braces write {{{{ and }}}}"
            )
        return as_text(value)

    return _FIELD.sub(replacement, template)


def _token_at(vocabulary: Mapping[str, int], index: int) -> str:
    return next((repr(token) for token, at in vocabulary.items() if at == index), "no token")
