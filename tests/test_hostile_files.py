"""Files that are damaged or made to do harm: one message before any work, or they are read safely."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import shutil
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import gopd
from conftest import MakeModel
from gopd import cli, rows
from gopd.checkpoint import RunFolder
from gopd.data import load_prompts
from gopd.errors import BadInput, RunFailed
from gopd.evaluate.results import TaskResults
from gopd.files import atomic_write
from gopd.generate import generate
from gopd.recipe import Recipe
from gopd.recipe_file import load_recipe, parse_recipe
from gopd.report.command import write_report
from gopd.sections import SourceSection
from gopd.tracking import ROLLOUT_SCHEMA, Metrics
from gopd.types import Prompt
from gopd.verify import code
from gopd.verify.outputs import same_value
from gopd.verl.checkpoint import refuse_shards
from gopd.verl.script import read_script
from runs import lines, merged, opd_tree, saved_steps, student_weights, write_recipe

BARE = {
    "student": {"model": "s"},
    "teachers": {"a": {"model": "t"}},
    "data": {"files": ["x.jsonl"]},
    "train": {"steps": 4},
}


# --- checkpoints and run folders ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A run of two steps with a checkpoint of each, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    keep = {"every": 1, "keep_last": 2}
    tree = opd_tree(folder, make_model(0), {"a": make_model(1)}, train={"steps": 2}, checkpoint=keep)
    recipe = parse_recipe(tree)
    return recipe, gopd.train(recipe)


@pytest.fixture
def copied(trained: tuple[Recipe, Path], tmp_path: Path) -> Recipe:
    """The recipe of a copy of that run."""
    recipe, run = trained
    shutil.copytree(run, tmp_path / "run")
    tracking = recipe.tracking.model_copy(update={"folder": str(tmp_path)})
    moved = recipe.model_copy(update={"tracking": tracking})
    tree = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    tree["tracking"]["folder"] = str(tmp_path)
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    return moved


def damages(content: bytes, dice: random.Random) -> Iterator[bytes]:
    """The content with one bit flipped, cut off, emptied, and grown by a byte."""
    for _ in range(3):
        flipped = bytearray(content)
        flipped[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        yield bytes(flipped)
    for _ in range(2):
        yield content[: dice.randrange(len(content))]
    yield b""
    yield content + b"\0"


def test_a_checkpoint_damaged_anywhere_gives_way_to_the_one_before(copied: Recipe) -> None:
    dice, run = random.Random(0), RunFolder.open(copied, resume=True)
    before = run.checkpoint(1)
    files = sorted(path for path in run.checkpoint(2).rglob("*") if path.is_file())
    assert {path.name for path in files} >= {"checksums.json", "state.json", "weights.safetensors"}
    for path in files:
        content = path.read_bytes()
        for damaged in damages(content, dice):
            path.write_bytes(damaged)
            run.warnings.clear()
            found = run.latest()
            if path.name == "checksums.json" and found is not None and found[0] == 2:
                assert json.loads(damaged) == json.loads(content)  # what changed meant nothing
                continue
            assert found is not None and found[:2] == (1, before), (path, damaged[:50])
            (warning,) = run.warnings
            assert "skipped damaged: " in warning and "step-00000002" in warning and str(before) in warning
        path.unlink()
        assert run.latest() == found
        path.write_bytes(content)
    for text in (b"[]", b"[" * 10_000, b'{"state.json": 1}', b"\xff"):
        (run.checkpoint(2) / "checksums.json").write_bytes(text)
        assert (run.latest() or [0])[0] == 1
    (before / "state.json").write_bytes(b"{}")
    with pytest.raises(
        BadInput, match=r"every checkpoint is damaged.*step-00000002.*step-00000001.*restore one"
    ):
        run.latest()


def test_a_run_whose_last_checkpoint_is_damaged_ends_as_it_would_have(
    trained: tuple[Recipe, Path], copied: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    weights = run / "checkpoints" / "step-00000002" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    shutil.rmtree(run / "student")
    assert cli.main(["train", str(run / "recipe.yaml"), "--resume", "tracking.name=run"]) == 0
    said = capfd.readouterr()
    assert "skipped damaged" in said.out + said.err and "weights.safetensors" in said.out + said.err
    want, got = student_weights(trained[1]), student_weights(run)
    assert all(want[name].equal(got[name]) for name in want)
    assert [entry["step"] for entry in lines(run / "metrics.jsonl")] == [1, 2]
    assert saved_steps(run) == [1, 2]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"resumed_with": 3}', b"[" * 10_000])
def test_a_damaged_record_of_versions_is_said_and_begun_anew(copied: Recipe, content: bytes) -> None:
    path = Path(copied.tracking.folder) / "run" / "versions.json"
    path.write_bytes(content)
    run = RunFolder.open(copied, resume=True)
    assert [warning for warning in run.warnings if "versions.json is damaged" in warning]
    assert "python" in json.loads(path.read_text())


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"3", b'{"step": "1"}', b'{"loss": 1}', b"\xff", b"[" * 10_000]
)
def test_a_damaged_line_of_metrics_stops_a_resume(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(BadInput, match=r"metrics\.jsonl:2: not a line of metrics.*mend or remove"):
        Metrics(path).rewind(3)


NAMES = ("..", ".", "", "../up", "/tmp/else", "a/b", "a\0b", "a\nb", "a\x1b[2Jb", "x" * 300, "a\u202eb")


@pytest.mark.parametrize("name", NAMES)
def test_names_of_runs_stay_names(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    recipe = parse_recipe(merged(BARE, {"tracking": {"folder": str(home / "runs"), "name": name}}))
    with pytest.raises(BadInput, match=r"tracking\.name|cannot use") as caught:
        RunFolder.open(recipe, resume=False)
    assert len(str(caught.value).splitlines()) == 1 and "\0" not in str(caught.value)
    assert not home.exists() or not any(path.is_dir() for path in (home / "runs").iterdir())


def test_links_are_followed_to_write_in_and_never_replaced_where_they_point(tmp_path: Path) -> None:
    """A folder may be a link, as to a larger disk; what replaces a link replaces the link itself."""
    elsewhere, precious = tmp_path / "elsewhere", tmp_path / "precious"
    for folder in (elsewhere, precious):
        folder.mkdir()
        (folder / "note").write_text("mine")
    runs = tmp_path / "runs"
    recipe = parse_recipe(merged(BARE, {"tracking": {"folder": str(runs), "name": "run"}}))
    runs.mkdir()
    (runs / "run").symlink_to(elsewhere)
    with pytest.raises(BadInput, match="not a run folder"):
        RunFolder.open(recipe, resume=False)
    (elsewhere / "note").unlink()
    (elsewhere / ".recipe.yaml.tmp").symlink_to(precious / "note")
    run = RunFolder.open(recipe, resume=False)
    assert (elsewhere / "recipe.yaml").is_file() and run.path.is_symlink()
    run.checkpoints.rmdir()
    (tmp_path / "disk").mkdir()
    run.checkpoints.symlink_to(tmp_path / "disk")
    for step in (1, 2):
        run.checkpoint(step).symlink_to(precious)
        run.save(step, lambda folder: (folder / "weights").write_bytes(b"w") and None, {})
        assert not run.checkpoint(step).is_symlink()
    assert (tmp_path / "disk" / "step-00000002" / "weights").read_bytes() == b"w"
    (elsewhere / ".note.tmp").symlink_to(precious / "note")
    atomic_write(run.path / "note", "new")
    assert (precious / "note").read_text() == "mine" and sorted(precious.iterdir()) == [precious / "note"]
    (runs / "gone").symlink_to(tmp_path / "nowhere")
    gone = parse_recipe(merged(BARE, {"tracking": {"folder": str(runs), "name": "gone"}}))
    with pytest.raises(BadInput, match="cannot use"):
        RunFolder.open(gone, resume=False)


# --- recipes --------------------------------------------------------------------------------------------------------


def doubled(kind: str) -> str:
    """Nine aliases of the line before, on every line: 9^20 values."""
    before, items = "x: &a0 [1, 1]\n", []
    for n in range(1, 21):
        inside = ", ".join(f"*a{n - 1}" for _ in range(9))
        items.append(f"y{n}: &a{n} [{inside}]" if kind == "lists" else f"y{n}: &a{n} !!pairs [a: [{inside}]]")
    return before + "\n".join(items)


YAML = {
    "bomb": (doubled("lists"), "more than 100,000 values"),
    "bomb of pairs": (doubled("pairs"), "more than 100,000 values"),
    "bomb as method": ("method: &a [&b [*a]]", "without end"),
    "alias of itself": ("student: &s {model: *s}", "without end"),
    "merge": ("a: &a {x: 1}\nb: {<<: *a}", "merge"),
    "deep": ("a: " + "[" * 600, "too deep"),
    "deep maps": ("{a: " * 600, "too deep"),
    "huge integer": ("train: {steps: " + "9" * 5000 + "}", "4300 digits"),
    "no date": ("a: 2001-99-99", "not valid YAML"),
    "no timestamp": ("a: !!timestamp x", "not valid YAML"),
    "no integer": ("a: !!int x", "not valid YAML"),
    "no hexadecimal": ("a: 0x_", "not valid YAML"),
    "no float": ("a: !!float x", "not valid YAML"),
    "no truth": ("a: !!bool x", "not valid YAML"),
    "no character": ('a: "\\UFFFFFFFF"', "not valid YAML"),
    "half a character": ('student: {model: "\\ud800"}', "surrogates not allowed"),
    "code": ("a: !!python/object/apply:os.system [touch canary]", "not valid YAML"),
    "twice": ("train: {steps: 1, steps: 2}", "'steps' appears twice"),
    "list as key": ("? [1]\n: 2", "unhashable"),
    "control characters": ("a: \x07", "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2", "not valid YAML"),
    "a teacher named by two lines": (
        yaml.safe_dump(merged(BARE, {"teachers": {"a\nb": {"model": "t"}}})),
        "cannot be a teacher's name",
    ),
    "a teacher of a long name": (
        yaml.safe_dump(merged(BARE, {"teachers": {"a" * 300: {"model": "t"}}})),
        "cannot be a teacher's name",
    ),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_does_harm_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, expected = YAML[name]
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert expected in message and str(path) in message and len(message) < 6000
    assert not (tmp_path / "canary").exists()
    write_recipe(path, BARE)
    with pytest.raises(BadInput, match=r"override|r\.yaml"):
        load_recipe(path, [f"student.model={text}"])


@pytest.mark.parametrize("content", [b"\xff\xfes\0t\0", b"student: \xff", b"", b"- 1", b"\0"])
def test_other_bytes_are_no_recipe(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(BadInput, match=r"r\.yaml"):
        load_recipe(tmp_path / "r.yaml")


def test_a_byte_order_mark_and_many_keys_are_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(BARE).encode())
    assert load_recipe(path).train.steps == 4
    rest = ", ".join(f"a{n}: 1" for n in range(4000))
    path.write_text(f"{{{rest}}}")
    with pytest.raises(BadInput, match="unknown key a0"):
        load_recipe(path)


def test_an_override_changes_one_place_whatever_aliases_share(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "student: &m {model: same}\nteachers: {a: *m, b: *m}\ndata: {files: [x.jsonl]}\ntrain: {steps: 1}\n"
    )
    recipe = load_recipe(path, ["teachers.a.model=other"])
    assert recipe.student.model == "same"
    assert {n: t["model"] for n, t in recipe.model_dump()["teachers"].items()} == {"a": "other", "b": "same"}


# --- rows -----------------------------------------------------------------------------------------------------------

ROW: dict[str, Any] = {"data_source": "sums", "prompt": "1+1=", "reward_model": {"ground_truth": "2"}}


def load(path: Path, **keys: Any) -> list[Prompt]:
    return load_prompts(SourceSection(files=(str(path),), verifier="none", **keys))


LINES = {
    "deep": ('{"prompt": ' + "[" * 100_000, "cannot be read as JSON"),
    "deep elsewhere": (
        '{"prompt": "x", "more": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "cannot be read as JSON",
    ),
    "many digits": ('{"prompt": "x", "n": ' + "9" * 5000 + "}", "cannot be read as JSON"),
    "half a character": ('{"prompt": "a\\ud800b"}', "holds half a character, \\ud800"),
    "half a character elsewhere": ('{"prompt": "x", "hint": ["\\uDFFF"]}', "holds half a character, \\udfff"),
    "no number": ('{"prompt": NaN}', "prompt must be text or a list of chat messages, found a number"),
    "a number": ('{"prompt": 3}', "found a number"),
    "truth": ('{"prompt": [true]}', "prompt[0] must be a message"),
    "role": ('{"prompt": [{"role": 3, "content": "x"}]}', "prompt[0].role must be text"),
    "list": ("[1, 2]", "expected an object with columns"),
    "nul bytes": ("\0\0\0\0", "not JSON"),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_that_do_harm_are_named(tmp_path: Path, name: str) -> None:
    line, expected = LINES[name]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(BadInput) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:2: ") and expected in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_whole_characters_beyond_the_basic_plane_are_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "\\ud83d\\ude00 \\\\ud800", "more": "\\uD83D\\uDE00"}\n')
    assert load(path)[0].messages[0]["content"] == "\U0001f600 \\ud800"


def test_rows_of_ten_megabytes_load(tmp_path: Path) -> None:
    row = ROW | {"prompt": "1+1=" * 2_500_000, "extra_info": {"note": "é" * 5_000_000}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n" + json.dumps(ROW) + "\n")
    pq.write_table(pa.Table.from_pylist([row, ROW]), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        first, second = load(tmp_path / name)
        assert len(first.messages[0]["content"]) == 10_000_000 and second.messages[0]["content"] == "1+1="


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rows.LONGEST_LINE > 100_000_000
    monkeypatch.setattr(rows, "LONGEST_LINE", 1000)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROW).encode() + b"\n" + b" " * 5000))
    with pytest.raises(BadInput, match=r"gz:2: a line of 1,000 characters or more"):
        load(path)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: raw[:30] + b"\0" + raw[31:], lambda raw: b"x"]
)
def test_damaged_gzip_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(damage(gzip.compress((json.dumps(ROW) + "\n").encode() * 50)))
    with pytest.raises(BadInput, match=r"rows\.jsonl\.gz"):
        load(path)


def odd_tables() -> dict[str, pa.Table]:
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    far = pa.array([2**31 - 1], pa.int32()).cast(pa.date32())
    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])
    return {
        "text that is no UTF-8": pa.table({"prompt": bad}),
        "a date far off": pa.table({"prompt": ["x"], "day": far}),
        "a time zone of nowhere": pa.table(
            {"prompt": ["x"], "at": pa.array([1], pa.timestamp("s", "No/Where"))}
        ),
        "a field twice": pa.table({"prompt": ["x"], "s": twice}),
        "bytes for text": pa.table({"prompt": [b"x"]}),
        "numbers for text": pa.table({"prompt": [1.5]}),
        "a map": pa.table({"prompt": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))}),
        "a list of lists": pa.table({"prompt": [[["x"]]]}),
        "nulls": pa.table({"prompt": pa.nulls(2)}),
        "no rows": pa.table({"prompt": pa.array([], pa.string())}),
        "no columns": pa.table({}),
    }


@pytest.mark.parametrize("name", odd_tables())
def test_parquet_of_odd_types_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(odd_tables()[name], path)
    with pytest.raises(BadInput, match=r"rows\.parquet"):
        load(path)


def test_columns_that_nobody_reads_may_be_of_any_type(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    odd = {
        "raw": [b"\xff"],
        "day": [date(2020, 1, 1)],
        "m": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())),
    }
    pq.write_table(pa.table({"prompt": ["1+1="], **odd}), path)
    assert load(path)[0].messages[0]["content"] == "1+1="


def test_parquet_damaged_anywhere_gives_its_rows_or_a_message(tmp_path: Path) -> None:
    """With page checksums, which gopd's own files have, no changed byte of the data goes unseen."""
    path, dice = tmp_path / "rows.parquet", random.Random(0)
    table = pa.Table.from_pylist([ROW | {"prompt": f"{n}+1="} for n in range(200)])
    pq.write_table(table, path, write_page_checksum=True, row_group_size=50)
    whole, want = path.read_bytes(), [p.messages for p in load(path)]
    refused = 0
    for n in range(150):
        cut = dice.randrange(len(whole))
        damaged = bytearray(whole) if n % 3 else bytearray(whole[:cut])
        if n % 3:
            damaged[cut] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        found = None
        with contextlib.suppress(BadInput):
            found = [p.messages for p in load(path)]
        refused += found is None
        in_footer = cut >= len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
        assert found in (None, want) or in_footer, f"byte {cut}"
    assert refused > 75


# --- what runs leave behind -----------------------------------------------------------------------------------------

ROLLOUT: dict[str, Any] = {
    "step": 1,
    "row": 0,
    "where": "x.jsonl:1",
    "route": "a",
    "data_source": "sums",
    "prompt": "1+1=",
    "response": "2",
    "reward": 1.0,
    "finished": True,
    "response_ids": [5],
    "tokens": ["2"],
}


def test_reports_of_odd_numbers_and_empty_responses(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    write_recipe(run / "recipe.yaml", BARE)
    digits = "9" * 400
    (run / "metrics.jsonl").write_text(f'{{"step": 1, "loss": {digits}, "lr": NaN}}\n{{"step": {digits}}}\n')
    (run / "versions.json").write_text("[" * 10_000)
    empty = ROLLOUT | {"response": "", "response_ids": [], "tokens": [], "student_logprobs": []}
    odd = ROLLOUT | {"reward": float("nan"), "student_logprobs": [float("inf")], "step": -(2**63)}
    for n, row in enumerate((empty, odd, ROLLOUT), 1):
        pq.write_table(
            pa.Table.from_pylist([row], ROLLOUT_SCHEMA),
            run / "rollouts" / f"step-{n:08d}.parquet",
            write_page_checksum=True,
        )
    broken = run / "rollouts" / "step-00000003.parquet"
    raw = bytearray(broken.read_bytes())
    raw[raw.index(b"1+1=")] ^= 1
    broken.write_bytes(raw)
    (found,) = write_report([run], tmp_path / "report.html")
    said = "\n".join(found.problems)
    assert (
        "versions.json is damaged" in said
        and "rollouts/step-00000003.parquet is damaged and left out" in said
    )


SAMPLE = {"problem": "1", "sample": 0, "prompt": "p", "response": "r"}
SETTINGS = {"task": "gsm8k", "model": "m", "weights": "w", "prompt": {}, "sampling": {}, "grading": {}}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("samples.jsonl", b"\xff\n"),
        ("samples.jsonl", b"[" * 10_000 + b"\n"),
        ("samples.jsonl", b"[]\n"),
        ("samples.jsonl", b'{"problem": "1", "sample": 0}\n'),
        ("samples.jsonl", json.dumps(SAMPLE | {"reason": "right"}).encode() + b"\n"),
        ("verdicts.jsonl", b'{"problem": "1", "sample": 0, "right": true}\n'),
        ("settings.json", b""),
        ("settings.json", b"[]"),
        ("settings.json", b"\xff"),
        ("settings.json", b'{"task": "gsm8k"}'),
        ("settings.json", json.dumps(SETTINGS | {"task": []}).encode()),
    ],
)
def test_damaged_results_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "samples.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    assert TaskResults(tmp_path).settings == SETTINGS
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=name.replace(".", r"\.")):
        TaskResults(tmp_path).check(SETTINGS)


def test_teachers_names_are_no_paths_and_damaged_parts_are_said(
    make_model: MakeModel, tmp_path: Path
) -> None:
    name = "../../../escaped"
    recipe = parse_recipe(opd_tree(tmp_path, make_model(0), {name: make_model(1)}, data={"limit": 2}))
    home = tmp_path / "deep" / "down" / "out"
    before = {*tmp_path.rglob("*")}
    generate(recipe, home)
    assert pq.read_table(home / "responses.parquet")["extra_info"][0]["opd_teacher"].as_py() == name
    new = {path for path in tmp_path.rglob("*") if path not in before}
    assert {path for path in new if path.is_file()} == {home / "responses.parquet", home / "settings.json"}
    (home / "responses.parquet").unlink()
    (home / "parts").mkdir()
    (home / "parts" / "..%2F..%2F..%2Fescaped-000000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunFailed, match=r"escaped-000000000\.parquet is damaged.*remove it.*--resume"):
        generate(recipe, home, resume=True)


# --- what models answer ---------------------------------------------------------------------------------------------


def test_values_of_any_size_and_kind_are_only_wrong(run: Any) -> None:
    assert (
        not same_value(1.5, 10**400)
        and not same_value([1.5], [-(10**400)])
        and same_value(1e400, float("inf"))
    )
    assert not same_value({"a": 1}, {b"a": 1}) and not same_value({"a": 1}, {(b"a",): 1, 10**5000: 2})
    truth = json.dumps({"inputs": [[1]], "outputs": [{"a": 1.5}], "fn_name": "f"})
    for value in (
        "{b'a': 1.5}",
        "{'a': 10**400}",
        "{10**5000: 1}",
        "{(1, b'x'): 1}",
        "{None: 1}",
        "[[]] * 10",
    ):
        program = f"```python\ndef f(x):\n    return {value}\n```"
        assert code.grade(truth, program) is False
    for text in ("[" * 100_000, '{"inputs": [' + "9" * 5000 + '], "outputs": ["1"]}'):
        with pytest.raises(BadInput, match="not JSON"):
            code.parse_ground_truth(text)


# --- scripts and checkpoints of others ------------------------------------------------------------------------------

LAUNCH = "python3 -m verl.trainer.main_ppo data.seed=$x\n"
SCRIPTS = {
    "operator in an array": ("x=(a;b)\n", "cannot stand in an array"),
    "bracket in an array": ("x=(a (b))\n", "cannot stand in an array"),
    "open redirection in an array": ("x=(<)\n", "cannot stand in an array"),
    "doubling": ("x=ab\n" + "x=$x$x\n" * 60, "grow without end"),
    "doubling in an array": ("x=(a b)\n" + "x=(${x[@]} ${x[@]})\n" * 60, "grow without end"),
    "doubling in arithmetic": (
        "a0=1\n" + "".join(f"a{n}='a{n - 1}+a{n - 1}'\n" for n in range(1, 60)) + "x=$((a59))\n",
        "grow without end",
    ),
    "a number of itself": ("x=x\nx=$((x))\n", "is more than"),
    "towers": ("x=$((9**64))\n", "is more than"),
    "deep parameters": ("x=" + "${a:-" * 5000 + "}" * 5000 + "\n", "too deep"),
    "deep arithmetic": ("x=$((" + "(" * 3000 + "1" + ")" * 3000 + "))\n", "is more than"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_that_do_harm_are_refused(tmp_path: Path, name: str) -> None:
    text, expected = SCRIPTS[name]
    path = tmp_path / "run.sh"
    path.write_text(text + LAUNCH)
    with pytest.raises(BadInput, match=expected):
        read_script(path, [], {})


@pytest.mark.parametrize("content", [b"\xff\xfe", b"../../..", b"a\0b", b"", b"7" * 5000])
def test_what_says_which_checkpoint_of_verl_is_last_may_be_anything(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_bytes(content)
    refuse_shards(tmp_path, "student")
