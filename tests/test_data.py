from __future__ import annotations

import gzip
import json
import re
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gopd import rows
from gopd.data import load_prompts
from gopd.errors import BadInput
from gopd.order import PromptOrder
from gopd.rows import resolve
from gopd.sections import Columns, SourceSection, ValidationSection

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

PUBLISHED = {
    "data_source": "DeepMath-103K",
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?"}],
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"opd_teacher": "math", "ref_solution": "Two and two is 4.", "split": None},
}


def write_jsonl(path: Path, rows: list[Any]) -> str:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def source(*files: str, **keys: Any) -> SourceSection:
    return SourceSection(files=files, **{"verifier": "none", **keys})


def problem(given: SourceSection, **keys: Any) -> str:
    with pytest.raises(BadInput) as caught:
        load_prompts(given, **keys)
    return str(caught.value)


# The published schema, and others by naming columns


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_the_published_schema_is_read_as_is(tmp_path: Path, name: str) -> None:
    write = write_parquet if name.endswith("parquet") else write_jsonl
    file = write(tmp_path / name, [PUBLISHED, PUBLISHED])
    _, prompt = load_prompts(source(file), routes=("math", "code"))
    assert [dict(message) for message in prompt.messages] == PUBLISHED["prompt"]
    assert (prompt.data_source, prompt.ground_truth, prompt.route) == ("DeepMath-103K", "4", "math")
    assert (prompt.index, prompt.verifier, prompt.response) == (1, "none", None)
    assert prompt.fields == PUBLISHED
    assert prompt.where == (f"{file}: row 2" if name.endswith("parquet") else f"{file}:2")


def test_files_are_read_in_the_order_given_and_numbered_through(tmp_path: Path) -> None:
    files = [write_jsonl(tmp_path / f"{n}.jsonl", [{"prompt": f"{n}{row}"} for row in "ab"]) for n in (2, 1)]
    prompts = load_prompts(source(*files))
    assert [prompt.messages[0]["content"] for prompt in prompts] == ["2a", "2b", "1a", "1b"]
    assert [prompt.index for prompt in prompts] == [0, 1, 2, 3]


def test_a_text_prompt_is_one_user_turn_and_columns_can_be_named(tmp_path: Path) -> None:
    row = {"task": {"text": "Wie viel? é\u2028!"}, "gold": 7, "kind": "k", "flat.name": "t"}
    file = write_jsonl(tmp_path / "rows.jsonl", [row])
    columns = Columns(prompt="task.text", ground_truth="gold", data_source="kind", route="flat.name")
    (prompt,) = load_prompts(source(file, columns=columns), routes=("t", "u"))
    assert prompt.messages == ({"role": "user", "content": "Wie viel? é\u2028!"},)
    assert (prompt.ground_truth, prompt.data_source, prompt.route) == ("7", "k", "t")


def test_nulls_that_parquet_adds_to_messages_are_not_part_of_them(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "a", "name": "Ann"}]},
        {"prompt": [{"role": "user", "content": "b"}]},
    ]
    prompts = load_prompts(source(write_parquet(tmp_path / "rows.parquet", rows)))
    assert prompts[0].messages == ({"role": "user", "content": "a", "name": "Ann"},)
    assert prompts[1].messages == ({"role": "user", "content": "b"},)


@pytest.mark.parametrize(
    ("value", "after", "expected"),
    [
        (70, None, "70"),
        ("  kept ", None, "  kept "),
        (["é", "b"], None, '["é", "b"]'),
        ({"inputs": ["1\n"], "outputs": ["2"]}, None, '{"inputs": ["1\\n"], "outputs": ["2"]}'),
        ("3 #### no\n#### 1,000 ", "####", "1,000"),
        (None, "####", None),
    ],
)
def test_ground_truths_become_text(
    tmp_path: Path, value: Any, after: str | None, expected: str | None
) -> None:
    row = {"prompt": "p", "reward_model": {"ground_truth": value}}
    file = write_jsonl(tmp_path / "rows.jsonl", [row])
    (prompt,) = load_prompts(source(file, ground_truth_after=after))
    assert prompt.ground_truth == expected


def test_only_rows_of_the_sources_to_keep_are_used_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "data_source": ["a", "b", None][i % 3]} for i in range(9)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)

    def texts(**keys: Any) -> list[str]:
        return [prompt.messages[0]["content"] for prompt in load_prompts(source(file, **keys))]

    assert texts(keep_sources=("a",)) == ["p0", "p3", "p6"]
    assert texts(keep_sources=("a", "b"), limit=3) == ["p0", "p1", "p3"]
    assert texts(keep_sources=("rest",), data_source="rest") == ["p2", "p5", "p8"]
    assert [p.index for p in load_prompts(source(file, keep_sources=("b",)))] == [0, 1, 2]
    found = problem(source(file, keep_sources=("c",)))
    assert found == "data.keep_sources: no row is of c; there are: a, b, unknown"


def test_limit_takes_the_first_rows_and_reads_no_further(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\nnot JSON\n')
    prompts = load_prompts(source(str(file), limit=2))
    assert [prompt.where.rpartition(":")[2] for prompt in prompts] == ["1", "3"]


def test_demonstrations_are_read_only_when_needed(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "p", "response": "r"}])
    auto = source(file, verifier="auto")
    (prompt,) = load_prompts(auto, need_response=True)
    assert (prompt.response, prompt.verifier, prompt.route) == ("r", "none", None)
    assert prompt.data_source == "unknown"
    assert load_prompts(source(file))[0].response is None


def test_data_source_of_the_row_comes_before_that_of_the_recipe(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "p", "data_source": "own"}, {"prompt": "p"}])
    prompts = load_prompts(source(file, data_source="general"))
    assert [prompt.data_source for prompt in prompts] == ["own", "general"]


# Routes


def test_route_is_the_rows_then_the_sources_then_the_only_teacher(tmp_path: Path) -> None:
    file = write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": "p", "extra_info": {"opd_teacher": "code"}}, {"prompt": "p"}]
    )
    both = load_prompts(source(file, route="math"), routes=("math", "code"))
    assert [prompt.route for prompt in both] == ["code", "math"]
    assert load_prompts(source(file), routes=("code",))[1].route == "code"
    assert [prompt.route for prompt in load_prompts(source(file))] == [None, None]


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_bad_routes_are_collected_with_their_places(tmp_path: Path, write: Any) -> None:
    routes = ["math", "maht", "math", None, "", *["poetry"] * 7]
    rows = [{"prompt": "p", "extra_info": {"opd_teacher": route, "x": 1}} for route in routes]
    file = write(tmp_path / ("rows" + (".parquet" if write is write_parquet else ".jsonl")), rows)
    lines = problem(source(file), routes=("math", "code")).split("\n")
    place = f"  {file}: row " if write is write_parquet else f"  {file}:"
    assert lines[0] == "10 of 12 rows cannot be used:"
    assert lines[1] == f"{place}2: route 'maht' names no teacher; known: math, code; did you mean 'math'?"
    assert lines[2].startswith(
        f"{place}4: names no teacher: nothing in column 'extra_info.opd_teacher'; known: math, code"
    )
    assert lines[3] == f"{place}5: route '' names no teacher; known: math, code"
    assert lines[4:] == [
        ",".join(place.replace("  ", " ") + str(row) for row in (6, 7, 8, 9, 10)).replace(" ", "  ", 1)
        + " and 2 more rows: route 'poetry' names no teacher; known: math, code"
    ]


def test_of_many_different_problems_the_first_are_shown(tmp_path: Path) -> None:
    file = write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": "p", "extra_info": {"opd_teacher": f"t{n}"}} for n in range(8)]
    )
    lines = problem(source(file), routes=("math",)).split("\n")
    assert len(lines) == 1 + 5 + 1
    assert lines[-1] == "  and 3 more problems"


def test_the_only_teacher_does_not_take_rows_that_name_another(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [PUBLISHED])
    assert f"{file}:1: route 'math' names no teacher; known: code" in problem(source(file), routes=("code",))


def test_a_bad_route_of_the_source_is_one_error_whatever_the_rows() -> None:
    validation = ValidationSection(files=("nowhere.jsonl",), route="maths")
    message = problem(validation, routes=("math", "code"))
    assert (
        message == "validation.route: route 'maths' names no teacher; known: math, code; did you mean 'math'?"
    )


# Bad rows and files

USER = {"role": "user", "content": "u"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": "p"', "not JSON: Expecting ',' delimiter at column"),
        ('["p"]', "expected an object with columns, found a list"),
        ("null", "expected an object with columns, found null"),
        (
            '{"question": "q", "info": {"id": 3}}',
            "nothing in column 'prompt'; columns: question, info.id; set col",
        ),
        ({"prompt": None}, "nothing in column 'prompt'"),
        ({"prompt": 5}, "prompt must be text or a list of chat messages, found a number"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": [USER, "hello"]}, "prompt[1] must be a message with role and content, found text"),
        ({"prompt": [{"content": "u"}]}, "prompt[0] has no role;"),
        ({"prompt": [{"from": "u"}]}, "prompt[0] has no role and no content;"),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt[0] has no content;"),
        ({"prompt": [{"role": "user", "content": [USER]}]}, "prompt[0].content must be text, found a list"),
        ({"prompt": [USER, {"role": "assistant", "content": "a"}]}, "the last one is from 'assistant'"),
        ({"prompt": "p", "data_source": 3}, "data_source must be text, found a number"),
        ({"prompt": "p", "extra_info": {"opd_teacher": True}}, "opd_teacher must be text, found true/false"),
        (
            {"prompt": "p", "reward_model": {"ground_truth": "1"}},
            "reward_model.ground_truth has nothing after '####'",
        ),
        (
            {"prompt": "p", "reward_model": {"ground_truth": "1 #### "}},
            "ground_truth has nothing after '####'",
        ),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, line: Any, expected: str) -> None:
    file = tmp_path / "rows.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    file.write_text('{"prompt": "good"}\n' + text + "\n")
    message = problem(source(str(file), ground_truth_after="####"), routes=("math",))
    assert message.startswith(f"{file}:2: ")
    assert expected in message


def test_a_missing_demonstration_is_an_error(tmp_path: Path) -> None:
    file = write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": "p", "answer": "a"}, {"prompt": "p", "response": ""}]
    )
    message = problem(source(file), need_response=True)
    assert "nothing in column 'response'; columns: prompt, answer; set columns.response" in message
    assert message.startswith("2 of 2 rows cannot be used:")


def test_a_verifier_wants_a_ground_truth(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "p", "answer": "4"}])
    message = problem(source(file, verifier="math"))
    assert message.startswith(
        f"{file}:1: nothing in column 'reward_model.ground_truth'; columns: prompt, answer; "
    )


def test_no_verifier_can_be_chosen_without_a_data_source(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "p"}])
    message = problem(source(file, verifier="auto"))
    assert "no verifier can be chosen: there is no column 'data_source'" in message
    assert "set verifier (math, code or none)" in message


def test_the_verifier_follows_the_data_source(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [PUBLISHED])
    assert load_prompts(source(file, verifier="auto"))[0].verifier == "math"
    general = source(file, verifier="auto", columns=Columns(data_source="kind"), data_source="openai/gsm8k")
    assert load_prompts(general)[0].verifier == "math"
    unknown = write_jsonl(tmp_path / "unknown.jsonl", [{**PUBLISHED, "data_source": "no such source"}])
    assert problem(source(unknown, verifier="auto")).startswith(f"{unknown}:1: ")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none.jsonl", None, "no such file"),
        ("rows.csv", b"prompt\np\n", "unknown kind of file; rows are read from .parquet, .jsonl, .jsonl.gz"),
        ("rows.jsonl", b"\n \n", "holds no rows"),
        ("rows.jsonl", b'{"prompt": "\xff"}', "cannot be read"),
        ("rows.jsonl.gz", b'{"prompt": "p"}', "cannot be read"),
        ("rows.jsonl.gz", gzip.compress(b'{"prompt": "p"}\n' * 99)[:-9], "cannot be read"),
        ("rows.parquet", b'{"prompt": "p"}', "cannot be read as Parquet"),
    ],
)
def test_a_file_that_gives_no_rows_is_an_error(
    tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    good = write_jsonl(tmp_path / "good.jsonl", [{"prompt": "p"}])
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    message = problem(source(good, str(file)))
    assert message.startswith(f"{file}: ")
    assert expected in message


def test_an_empty_parquet_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows.parquet", [{"prompt": "p"}])
    import pyarrow
    import pyarrow.parquet

    empty = pyarrow.parquet.read_table(tmp_path / "rows.parquet").slice(0, 0)
    pyarrow.parquet.write_table(empty, tmp_path / "empty.parquet")
    assert "holds no rows" in problem(source(str(tmp_path / "empty.parquet")))
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a folder; name the files in it" in problem(source(str(tmp_path / "folder.jsonl")))


def test_one_of_files_and_hub_must_be_given() -> None:
    assert problem(SourceSection()) == "data: give one of files and hub; it has neither"
    assert problem(SourceSection(files=("a.jsonl",), hub="a/b")).endswith("it has both")


# Hub datasets: a local folder goes the same way through `datasets`


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_dataset_gives_the_same_prompts_as_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    file = write_jsonl(folder / "train.jsonl", [PUBLISHED, PUBLISHED])
    prompts = load_prompts(SourceSection(hub=str(folder), verifier="none"), routes=("math",))
    plain = load_prompts(source(file), routes=("math",))
    assert [(p.messages, p.ground_truth, p.fields) for p in prompts] == [
        (p.messages, p.ground_truth, p.fields) for p in plain
    ]
    assert prompts[1].where == f"{folder} (train): row 2"
    message = problem(SourceSection(hub=str(folder), split="test", verifier="none"))
    assert message.startswith(f"{folder}: cannot be loaded from the Hub: ")
    assert "name them in files" in message


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_dataset_that_is_not_there_says_what_to_pass_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = problem(SourceSection(hub="nobody/no-such-rows", verifier="none"))
    assert message.startswith("nobody/no-such-rows: cannot be loaded from the Hub: ")
    assert "download the rows and name them in files" in message


# Paths


def test_builtin_names_are_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("some/rows.jsonl") == Path("some/rows.jsonl")
    monkeypatch.setattr(rows, "BUILTIN_FOLDER", tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "rows").mkdir()
    write_jsonl(tmp_path / "rows" / "train.jsonl", [{"prompt": "p"}])
    assert resolve("builtin:base") == tmp_path / "base"
    assert load_prompts(source("builtin:rows/train.jsonl"))[0].where == "builtin:rows/train.jsonl:1"
    with pytest.raises(BadInput, match=r"what does: builtin:base, builtin:rows$"):
        resolve("builtin:nothing")
    with pytest.raises(BadInput, match=re.escape("what does: builtin:rows/train.jsonl")):
        resolve("builtin:rows/trian.jsonl")


# Order


@pytest.mark.parametrize(("count", "per_step"), [(12, 4), (10, 4), (7, 5), (5, 5), (9, 8), (1, 1), (30, 7)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_takes_every_prompt_once_and_no_step_takes_one_twice(
    count: int, per_step: int, shuffle: bool
) -> None:
    for seed in range(20):
        order = PromptOrder(count, per_step, shuffle, seed)
        steps = [order.indices(step) for step in range(order.steps(6))]
        taken = [index for step in steps for index in step]
        for epoch in range(6):
            assert sorted(taken[epoch * count : (epoch + 1) * count]) == list(range(count))
        assert all(len(set(step)) == per_step for step in steps)


def test_steps_are_rounded_up_once_over_all_epochs() -> None:
    order = PromptOrder(10, 4, True, 0)
    assert (order.steps_per_epoch, order.steps(2), order.steps(3)) == (3, 5, 8)
    seen = Counter(index for step in range(order.steps(3)) for index in order.indices(step))
    assert min(seen.values()) == 3
    assert sum(seen.values()) == 32


def test_a_step_is_the_same_whatever_was_asked_before() -> None:
    forward = PromptOrder(23, 5, True, 3)
    steps = [forward.indices(step) for step in range(40)]
    backward = PromptOrder(23, 5, True, 3)
    assert [backward.indices(step) for step in reversed(range(40))] == steps[::-1]
    assert PromptOrder(23, 5, True, 3).indices(31) == steps[31]


def test_epochs_that_are_over_take_no_memory() -> None:
    order = PromptOrder(10_000, 7, True, 0)
    order.indices(0)
    tracemalloc.start()
    try:
        order.indices(order.steps(2))
        before = tracemalloc.get_traced_memory()[0]
        order.indices(order.steps(50))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 10_000 * 8


def test_seeds_and_epochs_give_different_orders_and_no_shuffle_is_file_order() -> None:
    orders = {
        tuple(PromptOrder(50, 50, True, seed).indices(epoch)) for seed in range(5) for epoch in range(5)
    }
    assert len(orders) == 25
    plain = PromptOrder(5, 3, False, 0)
    assert [plain.indices(step) for step in range(3)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]


def test_shuffled_orders_are_uniform() -> None:
    # 6 orders of 3 prompts, 6000 epochs: chi-square with 5 degrees of freedom is above 25.7 once in 10,000.
    order = PromptOrder(3, 3, True, 1)
    seen = Counter(tuple(order.indices(step)) for step in range(6000))
    assert sum((count - 1000) ** 2 / 1000 for count in seen.values()) < 25.7


def test_fewer_prompts_than_a_step_takes_is_an_error() -> None:
    with pytest.raises(BadInput, match=r"prompts_per_step is 1024, but there are only 30 prompts"):
        PromptOrder(30, 1024, True, 0)


# Real rows


REAL = {
    "gsm8k_train.jsonl": (7473, {"prompt": "question", "ground_truth": "answer"}, "72"),
    "gsm8k_test.jsonl": (1319, {"prompt": "question", "ground_truth": "answer"}, "18"),
    "aime24.jsonl": (30, {"prompt": "problem", "ground_truth": "answer"}, "204"),
    "aime25.jsonl": (30, {"prompt": "problem", "ground_truth": "answer"}, "70"),
    "hmmt25_feb.jsonl": (30, {"prompt": "problem", "ground_truth": "answer"}, "103"),
    "hmmt25_nov.jsonl": (30, {"prompt": "problem", "ground_truth": "answer"}, "3"),
    "math500.jsonl": (500, {"prompt": "problem", "ground_truth": "answer"}, None),
    "math_cases.jsonl": (79, {"prompt": "prediction", "ground_truth": "gold", "data_source": "source"}, "25"),
    "HumanEvalPlus.jsonl.gz": (164, {"prompt": "prompt", "ground_truth": "test"}, None),
    "MbppPlus.jsonl.gz": (378, {"prompt": "prompt", "ground_truth": "plus_input"}, None),
    "lcb_synthetic.jsonl": (2, {"prompt": "question_content", "ground_truth": "public_test_cases"}, None),
    "apps_sample.jsonl": (5, {"prompt": "question", "ground_truth": "input_output"}, None),
    "eurus_code_sample.jsonl": (2, {"prompt": "solution"}, None),  # the sample has no prompts
}


def real(name: str) -> str:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"the shared data file {name} is not here")
    return str(path)


@pytest.mark.parametrize("name", REAL)
def test_real_rows_load(name: str) -> None:
    rows, columns, first = REAL[name]
    after = "####" if name.startswith("gsm8k") else None
    prompts = load_prompts(source(real(name), columns=Columns(**columns), ground_truth_after=after))
    assert len(prompts) == rows
    assert all(prompt.ground_truth and prompt.messages[0]["content"] for prompt in prompts)
    assert first is None or prompts[0].ground_truth == first


@pytest.mark.parametrize(
    ("name", "verifier", "keys"),
    [
        ("gsm8k_train.jsonl", "math", {"data_source": "openai/gsm8k", "ground_truth_after": "####"}),
        ("aime25.jsonl", "math", {"data_source": "aime25"}),
        ("eurus_code_sample.jsonl", "code", {}),
        ("apps_sample.jsonl", "code", {"verifier": "code"}),
    ],
)
def test_verifiers_take_the_ground_truths_of_real_rows(
    name: str, verifier: str, keys: dict[str, Any]
) -> None:
    columns = Columns(**REAL[name][1])
    prompts = load_prompts(source(real(name), **{"columns": columns, "verifier": "auto", **keys}))
    assert {prompt.verifier for prompt in prompts} == {verifier}


def test_gsm8k_golds_are_what_follows_the_mark_counted_from_the_raw_text() -> None:
    file = real("gsm8k_test.jsonl")
    columns = Columns(prompt="question", ground_truth="answer")
    prompts = load_prompts(source(file, columns=columns, ground_truth_after="####"))
    golds = re.findall(r'#### ([^"]*)"\}$', Path(file).read_text(encoding="utf-8"), re.MULTILINE)
    assert [prompt.ground_truth for prompt in prompts] == golds


@pytest.mark.parametrize("name", ["apps_sample.jsonl", "eurus_code_sample.jsonl"])
def test_ground_truths_of_real_code_rows_are_json(name: str) -> None:
    columns = (
        {"prompt": "question", "ground_truth": "input_output"}
        if name.startswith("apps")
        else {"prompt": "solution"}
    )
    for prompt in load_prompts(source(real(name), columns=Columns(**columns))):
        assert prompt.ground_truth is not None
        assert {"inputs", "outputs"} <= json.loads(prompt.ground_truth).keys()
