from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gopd.data import load_prompts
from gopd.errors import BadInput
from gopd.sections import Columns, SourceSection, View
from gopd.types import Prompt
from gopd.views import FitReport, check_same_vocabulary, check_view, fit, render

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    "{% if mood is defined %}({{ mood }}){% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHATML
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."


def byte_tokenizer(
    *, template: str | None = CHATML, special: tuple[str, ...] = SPECIAL, swap: tuple[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """One token a byte, so that decoding gives the text back; its post-processor adds a first token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    if swap is not None:
        a, b = map(letters.index, swap)
        letters[a], letters[b] = letters[b], letters[a]
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    first = core.token_to_id(special[0])
    core.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], first)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=special[2], pad_token=special[0])
    tokenizer.chat_template = template
    return tokenizer


def prompt(text: str = "What is 2+2?", *, before: tuple[dict[str, str], ...] = (), **fields: Any) -> Prompt:
    return Prompt(
        index=0,
        where="rows.jsonl:17",
        messages=(*before, {"role": "user", "content": text}),
        data_source="math",
        verifier="math",
        ground_truth="4",
        route=None,
        response=None,
        fields=fields,
    )


def seen(view: View, row: Prompt, tokenizer: PreTrainedTokenizerFast | None = None, **keys: Any) -> str:
    """The text that the ids of a rendered prompt stand for."""
    tokenizer = tokenizer or byte_tokenizer()
    (ids,) = render(view, [row], tokenizer, **keys)
    text = tokenizer.decode(ids)
    assert isinstance(text, str)
    return text


def last_turn(view: View, row: Prompt) -> str:
    text = seen(view, row)
    head, foot = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    assert text.endswith(foot)
    return text.removesuffix(foot).rpartition(head)[2]


# Rendering


def test_a_plain_view_is_the_chat_template_and_nothing_else() -> None:
    tokenizer = byte_tokenizer()
    (ids,) = render(View(suffix=BOXED), [prompt("π?")], tokenizer)
    text = f"<|im_start|>user\nπ?{BOXED}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == text
    names = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    assert [ids.count(names[token]) for token in SPECIAL] == [0, 2, 1]
    marks = "<|im_start|><|im_start|><|im_end|>"
    assert len(ids) == 3 + len(text.encode()) - len(marks)


def test_without_generation_prompt_the_chat_ends_with_the_users_turn() -> None:
    assert seen(View(), prompt("a"), add_generation_prompt=False) == "<|im_start|>user\na<|im_end|>\n"


def test_template_takes_the_prompt_and_nested_fields() -> None:
    row = prompt(
        "Q", extra_info={"ref_solution": "S", "tags": ["é", 1], "n": 7}, **{"a column": "C", "a.b": "D"}
    )
    template = (
        "{prompt}|{extra_info.ref_solution}|{extra_info.n}|{extra_info.tags}|{a column}|{ a.b }|{prompt}"
    )
    assert last_turn(View(template=template, suffix="!"), row) == 'Q|S|7|["é", 1]|C|D|Q!'


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{prompt} in \\boxed{}.", "Q in \\boxed{}."),
        ("{prompt} {{prompt}}", "Q {prompt}"),
        ("{{{prompt}}}", "{Q}"),
        ("\\boxed{{{answer}}}", "\\boxed{42}"),
        ("\\frac{1}{2} \\boxed{\\frac{1}{2}}", "\\frac{1}{2} \\boxed{\\frac{1}{2}}"),
        ("x^{ 2 } {} { } } {", "x^{ 2 } {} { } } {"),
        ('{{"a": {answer}}}', '{"a": 42}'),
        ("no fields", "no fields"),
    ],
)
def test_braces_of_latex_and_json_survive(template: str, expected: str) -> None:
    assert last_turn(View(template=template), prompt("Q", answer=42)) == expected


def test_what_is_put_in_is_not_expanded_again_nor_is_suffix_or_system() -> None:
    row = prompt("{answer} {{x}} \\1 \\g<0> \\boxed{}", answer="{prompt}{{}}")
    view = View(template="{prompt}/{answer}", suffix="{answer} {{}} \\boxed{}", system="{answer} {{}}")
    own = "{answer} {{x}} \\1 \\g<0> \\boxed{}/{prompt}{{}}{answer} {{}} \\boxed{}"
    assert last_turn(view, row) == own
    assert seen(view, row).startswith("<|im_start|>system\n{answer} {{}}<|im_end|>\n")


@pytest.mark.parametrize("fields", [{"answer": "4"}, {"answer": "4", "extra_info": {"ref_solution": None}}])
def test_a_field_the_row_lacks_is_an_error_with_its_place(fields: dict[str, Any]) -> None:
    view = View(template="{prompt} {extra_info.ref_solution}")
    with pytest.raises(BadInput) as caught:
        render(view, [prompt(**fields)], byte_tokenizer())
    message = str(caught.value)
    assert message.startswith(
        "rows.jsonl:17: the view's template asks for {extra_info.ref_solution}, which this row"
    )
    assert "columns: answer" in message
    assert "write {{ and }}" in message


def test_system_is_put_first_and_replaces_the_rows() -> None:
    own = ({"role": "system", "content": "Old."},)
    turns = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    for before in ((), own):
        assert (
            seen(View(system="New."), prompt("a", before=before))
            == f"<|im_start|>system\nNew.<|im_end|>\n{turns}"
        )
    assert seen(View(), prompt("a", before=own)) == f"<|im_start|>system\nOld.<|im_end|>\n{turns}"
    asked = (*own, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"})
    start = "<|im_start|>system\nNew.<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n"
    assert seen(View(system="New."), prompt("a", before=asked)) == start + turns


def test_only_the_last_turn_goes_through_the_template() -> None:
    before = ({"role": "user", "content": "one"}, {"role": "assistant", "content": "two"})
    text = seen(View(template="<{prompt}>"), prompt("three", before=before))
    assert text == (
        "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
        "<|im_start|>user\n<three><|im_end|>\n<|im_start|>assistant\n"
    )


def test_thinking_switch_and_further_variables_reach_the_chat_template() -> None:
    plain = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert seen(View(enable_thinking=True), prompt("a")) == plain
    assert seen(View(enable_thinking=False), prompt("a")) == plain + "<think>\n\n</think>\n\n"
    assert seen(View(chat_template_kwargs={"mood": "calm"}), prompt("a")) == plain + "(calm)"


def test_each_row_has_its_own_ids_whatever_the_others_and_whatever_the_tokenizer_file_says() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    tokenizer.model_max_length = 5
    rows = [prompt("a"), prompt("b" * 300), prompt("")]
    together = render(View(), rows, tokenizer)
    assert together == [render(View(), [row], byte_tokenizer())[0] for row in rows]
    assert len(together[1]) - len(together[2]) == 300
    assert render(View(), [], tokenizer) == []


def test_a_chat_the_template_refuses_is_an_error_with_its_place() -> None:
    tokenizer = byte_tokenizer(template=NO_SYSTEM)
    assert seen(View(), prompt("a"), tokenizer).startswith("<|im_start|>user")
    with pytest.raises(
        BadInput, match=r"^rows\.jsonl:17: the chat template refuses .*System role not supported"
    ):
        render(View(system="s"), [prompt("a")], tokenizer)


def test_rendering_leaves_the_row_as_it_was() -> None:
    row = prompt("a", answer="4")
    render(View(system="s", template="{prompt}{answer}", suffix="!"), [row], byte_tokenizer())
    assert row == prompt("a", answer="4")


# Checks


def test_a_view_needs_a_chat_template() -> None:
    check_view(View(), byte_tokenizer(), "student")
    with pytest.raises(BadInput, match=r"^teacher math: its tokenizer has no chat template; "):
        check_view(View(), byte_tokenizer(template=None), "teacher math")


def test_a_view_can_bring_the_chat_template() -> None:
    view = View(chat_template_kwargs={"chat_template": "{{ messages[0]['content'] }}!"})
    tokenizer = byte_tokenizer(template=None)
    check_view(view, tokenizer, "student")
    assert seen(view, prompt("a"), tokenizer) == "a!"


def test_a_view_may_not_set_what_the_renderer_decides() -> None:
    view = View(chat_template_kwargs={"tokenize": True, "mood": "calm"})
    with pytest.raises(BadInput, match=r"^student: view.chat_template_kwargs may not set tokenize;"):
        check_view(view, byte_tokenizer(), "student")


def test_tokenizers_of_one_vocabulary_pass() -> None:
    check_same_vocabulary({"student": byte_tokenizer()})
    check_same_vocabulary({"student": byte_tokenizer(), "teacher": byte_tokenizer(template=None)})


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (byte_tokenizer(swap=("b", "x")), "id {b} is 'b' for student, 'x' for teacher math"),
        (
            byte_tokenizer(special=(*SPECIAL, "<tool>")),
            "id {end} is no token for student, '<tool>' for teacher math",
        ),
        (
            byte_tokenizer(special=("<|endoftext|>", "<s>", "<|im_end|>")),
            "id {start} is '<|im_start|>' for student, '<s>' for teacher math",
        ),
    ],
)
def test_the_first_differing_token_is_named(other: PreTrainedTokenizerFast, expected: str) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = expected.format(b=letters.index("b"), start=257, end=259)
    with pytest.raises(BadInput) as caught:
        check_same_vocabulary({"student": byte_tokenizer(), "twin": byte_tokenizer(), "teacher math": other})
    assert known in str(caught.value)
    assert "must share one vocabulary" in str(caught.value)


def test_another_end_of_sequence_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    other = byte_tokenizer()
    other.eos_token = "<|endoftext|>"
    check_same_vocabulary({"student": byte_tokenizer(), "teacher": other})
    assert "student ends a response with '<|im_end|>', teacher with '<|endoftext|>'" in caplog.text


# The limit


def four() -> tuple[list[Prompt], list[list[int]]]:
    prompts = [
        Prompt(n, f"rows.jsonl:{n + 1}", (), "math", "math", "4", None, None, {"row": n}) for n in range(4)
    ]
    return prompts, [[1, 2], [1, 2, 3, 4, 5], [3], [1, 2, 3, 4]]


def test_drop_leaves_overlong_prompts_out_and_numbers_the_rest_anew() -> None:
    prompts, ids = four()
    kept, kept_ids, report = fit(prompts, ids, 3, "drop")
    assert [(row.index, row.fields["row"]) for row in kept] == [(0, 0), (1, 2)]
    assert kept_ids == [[1, 2], [3]]
    assert report == FitReport(kept=2, dropped=2, truncated=0, longest=5)


def test_truncate_keeps_the_last_ids() -> None:
    prompts, ids = four()
    kept, kept_ids, report = fit(prompts, ids, 3, "truncate")
    assert kept == prompts
    assert kept_ids == [[1, 2], [3, 4, 5], [3], [2, 3, 4]]
    assert report == FitReport(kept=4, dropped=0, truncated=2, longest=5)


def test_error_names_the_overlong_prompts() -> None:
    prompts, ids = four()
    with pytest.raises(
        BadInput, match=r"^2 of 4 prompts have more than 3 tokens: rows.jsonl:2 \(5\), rows.jsonl:4 \(4\); "
    ):
        fit(prompts, ids, 3, "error")
    many = fit(prompts, ids, 5, "error")
    assert many == (prompts, ids, FitReport(kept=4, dropped=0, truncated=0, longest=5))
    with pytest.raises(
        BadInput, match=r"rows.jsonl:1 \(2\) and 2 more; raise max_prompt_tokens \(the longest has 2\)"
    ):
        fit(prompts + prompts[:3], [[1, 2]] * 7, 1, "error")


def test_nothing_left_is_an_error_with_the_counts() -> None:
    prompts, ids = four()
    with pytest.raises(BadInput, match=r"left: of 3, 3 were .* than 1 tokens \(shortest 2, longest 5\)"):
        fit(prompts[:2] + prompts[3:], ids[:2] + ids[3:], 1, "drop")


# A real row: the self-distillation teacher's view of GSM8K


def test_a_teachers_view_of_a_real_row_holds_the_worked_solution() -> None:
    file = SHARED / "gsm8k_train.jsonl"
    if not file.is_file():
        pytest.skip(f"the shared data file {file.name} is not here")
    columns = Columns(prompt="question", ground_truth="answer")
    source = SourceSection(
        files=(str(file),), columns=columns, verifier="none", ground_truth_after="####", limit=50
    )
    tokenizer = byte_tokenizer()
    view = View(template="{prompt}\n\nA worked solution:\n{answer}", suffix=BOXED)
    raw = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:50]]
    for row, ids in zip(raw, render(view, load_prompts(source), tokenizer), strict=True):
        body = f"{row['question']}\n\nA worked solution:\n{row['answer']}{BOXED}"
        assert tokenizer.decode(ids) == f"<|im_start|>user\n{body}<|im_end|>\n<|im_start|>assistant\n"
