"""What `gopd report` takes from run folders, against the files and sums by hand; damaged and foreign folders."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import gopd
from conftest import MakeModel
from gopd import cli
from gopd.errors import BadInput
from gopd.recipe_file import parse_recipe
from gopd.report import rollouts as report_rollouts
from gopd.report import text
from gopd.report.command import parse_steps, write_report
from gopd.report.curves import groups_of, sections_of
from gopd.report.rollouts import Place, rollouts_json
from gopd.report.runs import read_runs
from runs import lines, rollouts, sft_tree

Tree = dict[str, Any]


def data_of(page: Path, name: str) -> Tree:
    """The data that a page holds."""
    found = re.search(f'<script type="application/json" id="data-{name}">(.*?)</script>', page.read_text())
    assert found
    data: Tree = json.loads(found[1])
    return data


def panel(page: Path, title: str) -> list[list[float]]:
    panels = [p for section in data_of(page, "curves")["sections"] for p in section["panels"]]
    (rows,) = [p["rows"] for p in panels if p["title"] == title]
    return list(rows)


def report(folder: Path, *runs: Path) -> Path:
    page = folder / "page.html"
    write_report(runs, page)
    return page


def copied(run: Path, folder: Path, name: str = "copy") -> Path:
    return Path(shutil.copytree(run, folder / name))


@pytest.fixture(scope="module")
def page(three_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(tmp_path_factory.mktemp("report"), *three_runs)


# --- curves ---------------------------------------------------------------------------------------------------------


def test_seeds_of_one_recipe_are_one_curve_with_a_band(page: Path, three_runs: list[Path]) -> None:
    assert [g["runs"] for g in data_of(page, "curves")["groups"]] == [2, 1]
    assert [g["label"] for g in data_of(page, "curves")["groups"]] == ["exopd (2 runs)", "opd-seed0"]
    metrics = [lines(run / "metrics.jsonl") for run in three_runs]
    for title, key, factor in (
        ("KL to target", "kl_to_target", 1),
        ("Truncated", "truncated", 100),
        ("Teacher − reference, math", "teacher/math/reference_gap", 1),
        ("Seconds, update", "seconds/update", 1),
    ):
        expected = []
        for step in range(6):
            pair = [factor * metrics[run][step][key] for run in (0, 1)]
            expected.append([0, step + 1, statistics.fmean(pair), min(pair), max(pair)])
        if key in metrics[2][0]:  # λ = 1 consults no reference
            expected += [[1, entry["step"], *3 * [factor * entry[key]]] for entry in metrics[2]]
        np.testing.assert_allclose(panel(page, title), expected, rtol=1e-5)


def test_held_out_figures_are_points_with_their_intervals(page: Path, three_runs: list[Path]) -> None:
    entries = [e for e in lines(three_runs[2] / "validation.jsonl") if e["model"] == "student"]
    expected = [
        [1, e["step"], *(e["domains"]["sums"][key] for key in ("kl_to_target", "kl_low", "kl_high"))]
        for e in entries
    ]
    assert len(expected) == 4
    found = [row for row in panel(page, "Exact KL, sums") if row[0] == 1]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_every_metric_is_on_some_panel_once(tmp_path: Path, three_runs: list[Path]) -> None:
    run = copied(three_runs[0], tmp_path)
    entry = {
        "step": 1,
        "correction/mean": 1.0,
        "correction/min": 0.5,
        "correction/max": 2.0,
        "novel/figure": 3.0,
    }
    (run / "metrics.jsonl").write_text(json.dumps(entry) + "\n")
    found = sections_of(groups_of(read_runs([run])))
    assert [p.title for p in found["Sampler against trainer"]] == ["Correction weight"]
    assert found["Sampler against trainer"][0].series == {0: {1: (1.0, 0.5, 2.0)}}
    assert [p.title for p in found["Other figures"]] == ["novel/figure"]


def test_long_runs_are_thinned_to_means(tmp_path: Path) -> None:
    run = tmp_path / "long"
    run.mkdir()
    values = [float(step % 7) for step in range(1, 1000)]
    entries = [{"step": step, "entropy": value} for step, value in enumerate(values, 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    rows = panel(report(tmp_path, run), "Entropy")
    assert len(rows) == 250  # four steps to a point, of 300 at most
    assert rows[0][1:3] == [4, statistics.fmean(values[:4])]
    assert rows[-1][1:3] == [999, statistics.fmean(values[996:])]
    assert data_of(tmp_path / "page.html", "curves")["stepsPerPoint"] == 4


def test_many_long_runs_stay_below_five_megabytes(tmp_path: Path) -> None:
    names = [f"figure/{i}" for i in range(60)]
    runs = [tmp_path / f"run-{i}" for i in range(12)]
    for run in runs:
        run.mkdir()
        entries = [{"step": s} | dict.fromkeys(names, 1 / (s + 0.123456)) for s in range(1, 400)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    page = report(tmp_path, *runs)
    assert page.stat().st_size + report_rollouts.MOST_BYTES < 5e6
    assert len(panel(page, "figure/7")) == 12 * 50


# --- rollouts -------------------------------------------------------------------------------------------------------


def test_rollouts_hold_the_numbers_of_the_parquet_files_to_the_bit(
    page: Path, three_runs: list[Path]
) -> None:
    data = data_of(page, "rollouts")
    assert data["logged"] == len(data["rows"])
    for row in data["rows"]:
        if row["source"] == "held-out":
            continue
        original = rollouts(three_runs[row["run"]], row["step"])
        (mine,) = [r for r in original if (r["row"], r["sample"]) == (row["row"], row["sample"])]
        assert data["prompts"][row["prompt"]] == mine["prompt"]
        assert (row["route"], row["reward"], row["finished"]) == (
            mine["route"],
            mine["reward"],
            mine["finished"],
        )
        assert [data["tokens"][row["run"]][str(i)] for i in row["ids"]] == mine["tokens"]
        assert row["scale"] == (1.0 if row["run"] == 2 else 1.25)
        for name in report_rollouts.NUMBERS:
            if mine[name] is None:
                assert name not in row["numbers"]
            else:
                found = np.frombuffer(base64.b64decode(row["numbers"][name]), "<f4")
                np.testing.assert_array_equal(found, np.array(mine[name], np.float32))


def test_where_rollouts_are_too_many_steps_apart_are_kept(
    three_runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = groups_of(read_runs(three_runs))
    everything = rollouts_json(groups, None)
    monkeypatch.setattr(report_rollouts, "MOST_BYTES", 30_000)
    part = rollouts_json(groups, None)
    assert len(text.script_json(part)) <= 30_000
    assert part["logged"] == everything["logged"] == len(everything["rows"]) > len(part["rows"]) > 10
    for run in range(3):
        steps = [row["step"] for row in part["rows"] if row["run"] == run and row["source"] == "training"]
        assert {1, 6} <= set(steps)
        assert max(steps.count(s) for s in steps) - min(steps.count(s) for s in steps) <= 1
    one = rollouts_json(groups, [range(3, 4)])
    assert {row["step"] for row in one["rows"]} == {3} and len(one["rows"]) == 12


def places(prompts: dict[int, str]) -> list[Place]:
    """Logged rollouts of one run: a letter for each prompt of a step."""
    file = Path("rollouts/step.parquet")
    return [
        Place(0, file, row, "training", "student", step, letter, 5)
        for step, letters in prompts.items()
        for row, letter in enumerate(letters)
    ]


def test_prompts_that_come_back_come_first() -> None:
    order = report_rollouts._in_order(places({1: "abc", 2: "dce", 3: "cfg"}))
    assert [(p.step, p.prompt) for p in order[:3]] == [(1, "c"), (3, "c"), (2, "c")]


def test_steps_are_taken_evenly_apart() -> None:
    order = report_rollouts._in_order(places(dict.fromkeys(range(1, 10), "ab")))
    assert [p.step for p in order[:5]] == [1, 9, 5, 3, 7]
    assert sorted(p.step for p in order[:9]) == list(range(1, 10))
    assert sorted((p.step, p.prompt) for p in order) == [(s, c) for s in range(1, 10) for c in "ab"]


def test_steps_are_parsed() -> None:
    assert [s for span in parse_steps("1,5,20-22") for s in span] == [1, 5, 20, 21, 22]
    for wrong in ("", "a", "1-", "-3", "1,,2", "1-x"):
        with pytest.raises(BadInput, match="as in 1,5,20-25"):
            parse_steps(wrong)


# --- text -----------------------------------------------------------------------------------------------------------


def test_invisible_and_reordering_characters_are_named() -> None:
    hostile = "a\x1b[31mred\u202egnp.exe\u2066x\u2069\u200b\u0007\ufeff\ud800\u2028\U000e0041"
    shown = text.visible(hostile)
    assert shown == (
        "a⟨U+001B⟩[31mred⟨U+202E⟩gnp.exe⟨U+2066⟩x⟨U+2069⟩⟨U+200B⟩⟨U+0007⟩⟨U+FEFF⟩⟨U+D800⟩⟨U+2028⟩⟨U+E0041⟩"
    )
    for plain in ("two\nlines\tand", "é 日本 λ ‖", "👩\u200d🚀", "עברית"):
        assert text.visible(plain) == plain


def test_json_in_a_script_is_the_value_and_ends_nothing() -> None:
    value = {"</script><!--": ["<script>", "&lt;", "\u2028\u2029", 'quote " \\ ', 1.5, None]}
    written = text.script_json(value)
    assert json.loads(written) == value
    assert not re.search("[<>&\u2028\u2029]", written)


SENTENCES = ["Hello, wörld 日本\n\tx = [1, 2]  # done", "plain", "naïve café 👩\u200d🚀"]


def test_byte_level_tokens_read_as_text() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    rows = [(tokenizer.encode(s).tokens, tokenizer.decode(tokenizer.encode(s).ids)) for s in SENTENCES]
    way = text.reading(rows)
    assert [b"".join(map(way, tokens)).decode() for tokens, _ in rows] == SENTENCES
    assert text.shown_vocabulary({7: "Ġhello", 8: "æĹ", 9: "<|im_end|>"}, way) == {
        7: " hello",
        8: "⟨E6 97⟩",
        9: "<|im_end|>",
    }


def test_sentence_piece_and_plain_tokens_read_as_text() -> None:
    pieces = text.reading([(["▁so", "▁it", "<0x0A>", "</s>"], "so it\n")])
    assert text.shown_vocabulary({0: "▁so", 1: "<0x0A>"}, pieces) == {0: " so", 1: "\n"}
    plain = text.reading([(["a", " ", "Ġ", "<eos>"], "a Ġ")])
    assert text.shown_vocabulary({0: "Ġ", 1: "▁"}, plain) == {0: "Ġ", 1: "▁"}


# --- folders --------------------------------------------------------------------------------------------------------


def problems(run: Path) -> str:
    (found,) = read_runs([run])
    rollouts_json(groups_of([found]), None)
    return "\n".join(found.problems)


def test_a_whole_run_has_no_problems_and_a_torn_line_is_none(three_runs: list[Path], tmp_path: Path) -> None:
    assert [problems(run) for run in three_runs] == ["", "", ""]
    run = copied(three_runs[0], tmp_path)
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole[:-30])
    assert problems(run) == ""
    assert read_runs([run])[0].last_step == 5
    shutil.rmtree(run / "student")
    assert "5 of 6 (unfinished)" in report(tmp_path, run).read_text()


def test_damage_is_named_and_the_rest_is_shown(three_runs: list[Path], tmp_path: Path) -> None:
    run = copied(three_runs[0], tmp_path)
    entries = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    entries[2] = b'{"step": 3, "lo\n'
    entries[4] = b'{"loss": 1}\n'
    (run / "metrics.jsonl").write_bytes(b"".join(entries))
    (run / "validation.jsonl").write_text('{"step": 0, "model": "student", "domains": 3}\n')
    (run / "versions.json").write_text("{")
    (run / "rollouts" / "step-00000002.parquet").write_bytes(b"PAR1 no")
    table = pq.read_table(run / "rollouts" / "step-00000003.parquet")
    wrong = pa.array(["not a number"] * len(table))
    pq.write_table(table.set_column(0, "step", wrong), run / "rollouts" / "step-00000003.parquet")
    (run / "failure-step-00000004.jsonl").write_text("{}\n")
    said = problems(run)
    for part in (
        "metrics.jsonl is damaged in line 3, 5 and shown without it",
        "validation.jsonl: the line of step 0 is no validation",
        "the recipe asks for validation, and validation.jsonl has none",
        "versions.json is damaged",
        "rollouts/step-00000002.parquet is damaged and left out",
        "rollouts/step-00000003.parquet is damaged and left out",
        "failure-step-00000004.jsonl",
    ):
        assert part in said
    page = report(tmp_path, run)
    assert [row[1] for row in panel(page, "KL to target")] == [1, 2, 4, 6]
    steps = {row["step"] for row in data_of(page, "rollouts")["rows"] if row["source"] == "training"}
    assert steps == {1, 4, 5, 6}
    assert "Missing or damaged" in page.read_text()


def test_runs_of_one_name_are_told_apart_by_their_folders(three_runs: list[Path], tmp_path: Path) -> None:
    runs = [copied(three_runs[0], tmp_path, f"{where}/run") for where in ("a", "b")]
    assert [run.name for run in read_runs(runs)] == ["a/run", "b/run"]
    assert [run.name for run in read_runs(runs[:1])] == ["run"]


def test_columns_of_other_versions(three_runs: list[Path], tmp_path: Path) -> None:
    run = copied(three_runs[0], tmp_path)
    for file in (run / "rollouts").glob("*.parquet"):
        table = pq.read_table(file).drop_columns(["versions", "log_partition"])
        pq.write_table(table.append_column("later", pa.array([1] * len(table))), file)
    assert problems(run) == ""
    rows = rollouts_json(groups_of(read_runs([run])), None)["rows"]
    assert all(row["versions"] == [] for row in rows)
    assert all("log_partition" not in row["numbers"] for row in rows)


def test_versions_of_tokens_are_told_by_their_changes(three_runs: list[Path], tmp_path: Path) -> None:
    run = copied(three_runs[0], tmp_path)
    (file, *others) = sorted((run / "rollouts").glob("*.parquet"))
    for other in others:
        other.unlink()
    table = pq.read_table(file)
    lengths = [len(ids) for ids in table["response_ids"].to_pylist()]
    assert max(lengths) > 2
    given = [[3] * min(2, n) + [5] * (n - 2) for n in lengths]
    place = table.column_names.index("versions")
    pq.write_table(table.set_column(place, "versions", pa.array(given)), file)
    rows = rollouts_json(groups_of(read_runs([run])), None)["rows"]
    found = [row["versions"] for row in rows if row["source"] == "training"]
    assert found == [[(0, 3), (2, 5)] if n > 2 else [(0, 3)] for n in lengths]


def test_a_foreign_recipe_and_a_bare_folder(three_runs: list[Path], tmp_path: Path) -> None:
    run = copied(three_runs[0], tmp_path)
    tree = yaml.safe_load((run / "recipe.yaml").read_text()) | {"novelty": {"x": 1}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    assert "unknown key novelty" in problems(run)
    page = report(tmp_path, run)
    assert "novelty.x" in page.read_text()
    assert {row["scale"] for row in data_of(page, "rollouts")["rows"]} == {None}
    (run / "recipe.yaml").write_text("a: [")
    assert "not valid YAML" in problems(run)
    bare = tmp_path / "bare"
    (bare / "rollouts").mkdir(parents=True)
    assert "recipe.yaml is missing" in problems(bare) and "no step is finished" in problems(bare)
    report(tmp_path, bare)


def test_runs_of_method_sft_have_no_rollouts(make_model: MakeModel, tmp_path: Path) -> None:
    run = gopd.train(parse_recipe(sft_tree(tmp_path, make_model(0), train={"steps": 2})))
    page = report(tmp_path, run)
    assert problems(run) == ""
    assert data_of(page, "rollouts")["rows"] == [] and len(panel(page, "Loss")) == 2


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_where_it_says(
    three_runs: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = copied(three_runs[0], tmp_path)
    (run / "versions.json").unlink()
    assert cli.main(["report", str(run)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"report: {run / 'report.html'} (") and (run / "report.html").exists()
    assert said.err == f"warning: {run}: versions.json is missing: hardware and versions are not known\n"
    assert cli.main(["report", *map(str, three_runs[:2])]) == 0
    assert (tmp_path / "report.html").stat().st_size < 5e6
    assert cli.main(["report", str(run), "--to", "new/place.html", "--steps", "1"]) == 0
    assert {row["step"] for row in data_of(tmp_path / "new" / "place.html", "rollouts")["rows"]} == {1}


def test_folders_that_are_no_runs(
    three_runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, expected in (
        ([tmp_path / "no"], "cannot read run folder"),
        ([tmp_path / "file"], "cannot read run folder"),
        ([tmp_path / "other"], "is not a run folder; one holds recipe.yaml (the resolved recipe), "),
        ([three_runs[0].parent], f"it holds runs: name them, as in {three_runs[0].parent / 'exopd-seed0'}"),
        ([three_runs[0], three_runs[0] / "."], "given twice"),
        ([three_runs[0], "--to", tmp_path], "is a folder; name a file"),
    ):
        assert cli.main(["report", *map(str, arguments)]) == 2
        assert expected in capsys.readouterr().err


def test_a_missing_plotting_library_is_said(
    three_runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"vl-convert-python is not installed.*pip install gopd\[report\]"):
        write_report(three_runs, tmp_path / "page.html")


def test_reports_need_no_torch(three_runs: list[Path], tmp_path: Path) -> None:
    script = "import sys; from gopd import cli; cli.main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", script, "report", str(three_runs[0]), "--to", str(tmp_path / "r.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_tables_show_recipes_validations_and_versions(page: Path, three_runs: list[Path]) -> None:
    shown = re.sub("<[^>]*>", " ", page.read_text().split("<script")[0])
    shown = " ".join(shown.split())
    assert "objective.reward_scale 1.25 1.25 1.0" in shown and "optim.lr 0.001 0.001" not in shown
    last = [e for e in lines(three_runs[0] / "validation.jsonl") if e["model"] == "student"][-1]
    sums = last["domains"]["sums"]
    assert f"student 6 2 {100 * sums['accuracy']:.1f}% [" in shown
    assert f"{sums['kl_to_target']:.4f} [{sums['kl_low']:.4f}, {sums['kl_high']:.4f}]" in shown
    assert json.loads((three_runs[0] / "versions.json").read_text())["platform"] in shown
