"""Scoring by servers: right numbers from one that knows nothing of gopd, and what happens with bad ones."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from conftest import VOCABULARY, MakeModel, tiny_tokenizer
from fake_server import FakeServer
from gopd import cli, loop, remote, views
from gopd.errors import BadInput, RunFailed
from gopd.generate import generate
from gopd.model import Description, describe
from gopd.recipe import OpdRecipe
from gopd.recipe_file import parse_recipe
from gopd.remote import Server
from gopd.scorer import Scorer
from gopd.sections import ModelSpec, RemoteSection, View
from gopd.setup import prepare
from gopd.types import Rollout
from runs import held_out, lines, merged, opd_tree, rollouts, student_weights, write_recipe
from tiny import CPU, Bench, assert_rows, load, make_rollouts, opd_recipe, plain64, row_logprobs

HINT = {"template": "{prompt} hint: {solution}"}
PROMPT, RESPONSE = [5, 9, 30, 7], [8, 63, 4, 22, 2]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BACKOFF", 0.01)


@pytest.fixture
def fake(teacher_folder: Path) -> Iterator[FakeServer]:
    with FakeServer(teacher_folder, "expert") as server:
        yield server


def section(fake: FakeServer, **keys: Any) -> dict[str, Any]:
    return {"url": fake.url, "name": "expert", "timeout": 20.0, "retries": 2} | keys


def server_of(fake: FakeServer, **keys: Any) -> Server:
    return Server(RemoteSection(**section(fake, **keys)), "unused", "teacher x")


def described(folder: Path) -> Description:
    return describe(ModelSpec(model=str(folder)), "teacher x")


def truth(folder: Path, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Log-probs of a response by a plain forward in float64."""
    with torch.no_grad():
        whole = row_logprobs(plain64(folder), prompt, response, 1.0)
    return whole.gather(-1, torch.tensor(response)[:, None])[:, 0]


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(fake: FakeServer, student_folder: Path, teacher_folder: Path, llama_folder: Path) -> dict[str, Any]:
    """Teachers here, there, with a reference there, and there twice."""
    there = {"model": str(teacher_folder), "server": section(fake)}
    return {
        "there": there | {"view": HINT},
        "reference": {"model": str(llama_folder), "reference": there},
        "alone": there | {"reward_scale": 1.0},
        "both": there | {"reference": there | {"view": HINT}, "reward_scale": 2.0},
        "here": {"model": str(llama_folder)},
    }


def test_servers_and_models_here_say_what_transformers_says(
    mixed: dict[str, Any], student_folder: Path, teacher_folder: Path, llama_folder: Path
) -> None:
    recipe = opd_recipe(student_folder, mixed, train={"tokens_per_micro_batch": 150})
    scorer = Scorer(recipe, None, device=CPU, dtype=torch.float32)
    rows = make_rollouts(recipe, load(student_folder), list(mixed), lengths=(5, 1, 9, 3, 14, 2, 7, 4, 6, 8))
    seen: list[int] = []
    scores = scorer.score(rows, temperature=1.0, done=seen.append)
    hinted, plain, tokenizer = View(**HINT), View(), tiny_tokenizer()
    sides = {
        "there": ((teacher_folder, hinted), (student_folder, plain)),
        "reference": ((llama_folder, plain), (teacher_folder, plain)),
        "alone": ((teacher_folder, plain), None),
        "both": ((teacher_folder, plain), (teacher_folder, hinted)),
        "here": ((llama_folder, plain), (student_folder, plain)),
    }
    for rollout, score in zip(rows, scores, strict=True):
        assert score is not None and score.route is not None
        for side, found in zip(
            sides[score.route], (score.teacher_logprobs_R, score.reference_logprobs_R), strict=True
        ):
            assert (side is None) == (found is None)
            if side is not None:
                (ids,) = views.render(side[1], [rollout.prompt], tokenizer)
                assert_rows([found], [truth(side[0], ids, rollout.response_ids)])
        assert (score.log_partition_R is None) == (score.route != "here")
        assert score.reward_scale == {"alone": 1.0, "both": 2.0}.get(score.route, 1.25)
    assert seen == sorted(seen) and seen[-1] == len(rows)
    assert len(scorer.models) == 2


def test_rows_without_a_server_are_scored_as_if_there_were_none(
    mixed: dict[str, Any], student_folder: Path
) -> None:
    recipe = opd_recipe(student_folder, mixed)
    rows = make_rollouts(recipe, load(student_folder), list(mixed))
    scores = Scorer(recipe, None, device=CPU, dtype=torch.float32).score(rows, temperature=1.0)
    local = opd_recipe(student_folder, {"here": mixed["here"]})
    mine = [i for i, r in enumerate(rows) if r.prompt.route == "here"]
    alone = Scorer(local, None, device=CPU, dtype=torch.float32).score(
        [rows[i] for i in mine], temperature=1.0
    )
    for i, other in zip(mine, alone, strict=True):
        score = scores[i]
        assert score is not None and other is not None
        for name in ("teacher_logprobs_R", "reference_logprobs_R", "log_partition_R"):
            assert torch.equal(getattr(score, name), getattr(other, name))


def test_hidden_states_are_of_routes_here_only(mixed: dict[str, Any], student_folder: Path) -> None:
    recipe = opd_recipe(student_folder, mixed)
    rows = make_rollouts(recipe, load(student_folder), list(mixed))
    scorer = Scorer(recipe, None, device=CPU, dtype=torch.float32)
    scores = scorer.score(rows, temperature=1.0, keep_hidden=True)
    assert [s is not None for s in scores] == [r.prompt.route == "here" for r in rows]


def test_the_models_here_compute_while_the_server_is_at_work(
    fake: FakeServer, mixed: dict[str, Any], student_folder: Path
) -> None:
    recipe = opd_recipe(student_folder, mixed)
    scorer = Scorer(recipe, None, device=CPU, dtype=torch.float32)
    waited: list[bool] = []
    for model in scorer.models:
        model.body.register_forward_pre_hook(lambda *_: waited.append(fake.working.wait(20)))
    scorer.score(make_rollouts(recipe, load(student_folder), list(mixed)), temperature=1.0)
    assert waited and all(waited)


def test_a_token_that_cannot_be_is_minus_infinity(fake: FakeServer) -> None:
    fake.change = lambda at, token: remote.MINUS_INFINITY if at == 5 else token
    with server_of(fake) as server:
        found = server.logprobs(PROMPT, RESPONSE)
    assert found.isinf().tolist() == [False, True, False, False, False]


# --- trouble on the way ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [500, 503, 429, "reset", "slow"])
def test_what_may_pass_is_tried_again(trouble: int | str, fake: FakeServer, teacher_folder: Path) -> None:
    fake.troubles = [trouble] * 2
    with server_of(fake, timeout=0.5 if trouble == "slow" else 20.0) as server:
        assert_rows([server.logprobs(PROMPT, RESPONSE)], [truth(teacher_folder, PROMPT, RESPONSE)])
    assert fake.requests["/v1/completions"] == 3 and not fake.troubles


@pytest.mark.parametrize(("trouble", "said"), [(500, "status 500"), ("reset", "Remote"), ("slow", "Timeout")])
def test_after_the_retries_it_is_said_who_did_not_answer(
    trouble: int | str, said: str, fake: FakeServer
) -> None:
    fake.troubles = [trouble] * 9
    with (
        server_of(fake, timeout=0.3 if trouble == "slow" else 20.0) as server,
        pytest.raises(RunFailed) as error,
    ):
        server.submit(PROMPT, RESPONSE).result()
    assert all(part in str(error.value) for part in ("teacher x", fake.url, "3 attempts", said))
    assert fake.requests["/v1/completions"] == 3


def test_pauses_grow_up_to_a_limit(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(pause: float) -> None:
        pauses.append(pause)

    monkeypatch.setattr(remote, "BACKOFF", 0.5)
    monkeypatch.setattr(remote.random, "uniform", lambda low, high: 1.0)
    fake.troubles = [500] * 99
    with server_of(fake, retries=9) as server:
        monkeypatch.setattr(remote.asyncio, "sleep", sleep)
        with pytest.raises(RunFailed, match="10 attempts"):
            server.logprobs(PROMPT, RESPONSE)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_what_will_not_pass_is_not_tried_again(fake: FakeServer) -> None:
    with server_of(fake) as server, pytest.raises(RunFailed, match=r"refused, status 400: .*vocabulary"):
        server.logprobs(PROMPT, [VOCABULARY])
    assert fake.requests["/v1/completions"] == 1


def test_one_failure_ends_the_batch_soon(
    fake: FakeServer, mixed: dict[str, Any], student_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for rows that wait for another attempt, nor for those whose answers are slow."""
    monkeypatch.setattr(remote, "BACKOFF", 60.0)
    recipe = opd_recipe(student_folder, mixed)
    rows = make_rollouts(recipe, load(student_folder), list(mixed))
    scorer = Scorer(recipe, None, device=CPU, dtype=torch.float32)
    fake.troubles, fake.slow = [400] + [503, "slow"] * 99, 60.0
    started = time.perf_counter()
    with pytest.raises(RunFailed, match="status 400"):
        scorer.score(rows, temperature=1.0)
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_requests_at_a_time_and_answers_in_order(
    concurrency: int, fake: FakeServer, teacher_folder: Path
) -> None:
    fake.delay = 0.2
    with server_of(fake, concurrency=concurrency) as server:
        responses = [RESPONSE[: 1 + n % 5] for n in range(6)]
        answers = [server.submit(PROMPT, response) for response in responses]
        found = [answer.result() for answer in answers]
    assert_rows(found, [truth(teacher_folder, PROMPT, response) for response in responses])
    assert fake.most_at_a_time == concurrency


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"choices": []}, "not an answer"),
        ({"choices": [{}]}, "no prompt_logprobs"),
        ({"choices": [{"prompt_logprobs": [None, {"9": {"logprob": -1.0}}]}]}, "2 tokens came back for 3"),
        ({"choices": [{"prompt_logprobs": [None] * 3}]}, "other tokens"),
    ],
)
def test_answers_in_another_form_are_refused(answer: dict[str, Any], said: str, fake: FakeServer) -> None:
    fake.answer = answer
    with server_of(fake) as server, pytest.raises(RunFailed, match=said):
        server.logprobs([5, 9], [7])


# --- the self-test --------------------------------------------------------------------------------------------------


def test_a_good_server_passes(fake: FakeServer, teacher_folder: Path) -> None:
    own = described(teacher_folder)
    found = server_of(fake, tolerance=0.0).check(own)
    assert found.context_length == 299 and found.tokenizer is own.tokenizer and fake.url in found.name
    assert server_of(fake, url=fake.url + "/v1/").check(own).context_length == 299
    assert fake.requests["/tokenize"] == 2


def refused(fake: FakeServer, folder: Path, *said: str, **keys: Any) -> None:
    with pytest.raises(BadInput) as error:
        server_of(fake, **keys).check(described(folder))
    assert all(part in str(error.value) for part in ("teacher x", *said)), str(error.value)


def test_a_server_that_is_not_there_is_refused(fake: FakeServer, teacher_folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        refused(fake, teacher_folder, url, "3 attempts", "ConnectError", url=url)


def test_a_server_with_another_model_is_refused(fake: FakeServer, teacher_folder: Path) -> None:
    refused(fake, teacher_folder, "no model 'other'", "'expert'", "server.name", name="other")


def test_another_vocabulary_is_refused(fake: FakeServer, make_model: MakeModel, teacher_folder: Path) -> None:
    larger, smaller = make_model(40, vocab_size=VOCABULARY + 8), make_model(41, vocab_size=VOCABULARY - 8)
    with FakeServer(larger, "expert") as server:
        refused(server, teacher_folder, "another vocabulary", f"it knows id {VOCABULARY}")
    with FakeServer(smaller, "expert") as server:
        refused(server, teacher_folder, "refused, status 400", f"ids up to {VOCABULARY - 1}")
    fake.decode = lambda index: "?" if index == 40 else tiny_tokenizer().decode([index])
    refused(fake, teacher_folder, "another vocabulary", "id 40 is '?'")


def test_another_tokenizer_is_refused_and_none_at_all_is_not(fake: FakeServer, teacher_folder: Path) -> None:
    fake.decode = None
    fake.tokens = [1, 2, 3]
    refused(fake, teacher_folder, "another vocabulary", "a text becomes [1, 2, 3]")
    fake.tokens = None
    assert server_of(fake).check(described(teacher_folder)).context_length == 299


@pytest.mark.parametrize("alone", [True, False])
def test_a_server_whose_answers_move_is_refused(alone: bool, fake: FakeServer, teacher_folder: Path) -> None:
    """From one time to the next, or only beside others."""
    times = Counter[int]()

    def moved(at: int, value: float) -> float:
        times[at] += 1
        return value + 0.03 * (times[at] % 2 if alone else fake.at_work > 1)

    fake.change, fake.delay = moved, 0.05
    refused(fake, teacher_folder, "moved by 0.03 nats", "server.tolerance (0.02)", tolerance=0.02)
    assert server_of(fake, tolerance=0.04).check(described(teacher_folder)).context_length == 299


def test_keys_come_from_the_environment(
    fake: FakeServer, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.key = "s3cret"
    monkeypatch.delenv("EXPERT_KEY", raising=False)
    refused(fake, teacher_folder, "EXPERT_KEY", "not set", api_key_env="EXPERT_KEY")
    refused(fake, teacher_folder, "status 401")
    monkeypatch.setenv("EXPERT_KEY", "wrong")
    refused(fake, teacher_folder, "status 401", api_key_env="EXPERT_KEY")
    monkeypatch.setenv("EXPERT_KEY", "s3cret")
    assert server_of(fake, api_key_env="EXPERT_KEY").check(described(teacher_folder)).context_length == 299


# --- recipes and runs -----------------------------------------------------------------------------------------------


CANNOT: list[tuple[dict[str, Any], str]] = [
    ({"sampler": {"temperature": 0.7}}, "teacher a is scored by a server.*sampler.temperature is 0.7"),
    ({"objective": {"estimator": "full"}}, "objective.estimator: full compares whole distributions"),
    ({"objective": {"estimator": "topk"}}, "objective.estimator: topk compares whole distributions"),
    ({"objective": {"control_variate": True}}, "objective.control_variate: it is a mean"),
    ({"validation": {"files": ["x.jsonl"], "teachers": True}}, "validation.teachers: it lets teachers"),
    ({"teachers": {"a": {"server": {"url": "host:8000"}}}}, "teachers.a.server.url"),
    ({"teachers": {"a": {"server": {"url": "http://h", "api_key": "x"}}}}, "unknown key .*api_key"),
]


@pytest.mark.parametrize(("change", "said"), CANNOT, ids=lambda v: str(v)[:40])
def test_recipes_that_servers_cannot_serve_are_refused(change: dict[str, Any], said: str) -> None:
    tree = {
        "student": {"model": "s"},
        "teachers": {"a": {"model": "t", "server": {"url": "http://h:1"}}},
        "data": {"files": ["x.jsonl"]},
        "train": {"steps": 1},
    }
    parse_recipe(tree)
    with pytest.raises(BadInput, match=said):
        parse_recipe(merged(tree, change))


def test_an_unused_reference_needs_no_server(student_folder: Path) -> None:
    there = {"model": str(student_folder), "server": {"url": "http://h:1"}}
    teachers = {"a": {"model": str(student_folder), "reward_scale": 1.0}}
    recipe = opd_recipe(student_folder, teachers, reference=there, objective={"estimator": "full"})
    assert not recipe.servers()
    with pytest.raises(BadInput, match="reference of a is scored by a server"):
        opd_recipe(
            student_folder,
            {"a": {"model": str(student_folder)}},
            reference=there,
            objective={"estimator": "full"},
        )


def test_a_server_without_room_is_refused_before_the_run(
    fake: FakeServer, student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    tree = opd_tree(tmp_path, student_folder, {"a": teacher_folder}, data={"max_response_tokens": 280})
    tree["teachers"]["a"]["server"] = section(fake)
    with pytest.raises(BadInput, match=r"teacher a \(expert at .*exceed its context of 299"):
        prepare(parse_recipe(tree))


def test_a_server_that_is_down_ends_with_exit_code_2(
    student_folder: Path, teacher_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tree = opd_tree(tmp_path, student_folder, {"a": teacher_folder})
    tree["teachers"]["a"]["server"] = {"url": "http://127.0.0.1:9", "retries": 0}
    assert cli.main(["train", str(write_recipe(tmp_path / "recipe.yaml", tree))]) == 2
    assert "no answer to /v1/models in 1 attempts" in " ".join(capfd.readouterr().err.split())
    assert not any((tmp_path / "runs").iterdir())


def test_a_remote_teacher_cannot_answer(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    tree = opd_tree(tmp_path, student_folder, {"a": teacher_folder})
    tree["teachers"]["a"]["server"] = {"url": "http://127.0.0.1:9"}
    with pytest.raises(BadInput, match="teacher a is behind a server"):
        generate(parse_recipe(tree), tmp_path / "out")


def test_without_log_z_no_kl_is_reported(
    fake: FakeServer, mixed: dict[str, Any], student_folder: Path
) -> None:
    bench = Bench.of(opd_recipe(student_folder, mixed))
    rows = make_rollouts(bench.recipe, bench.student, list(mixed))
    reports = bench.update(rows).reports
    assert [r.kl_R is not None for r in reports] == [r.prompt.route in ("alone", "here") for r in rows]


@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_a_run_with_a_server_is_the_run_without(
    scale: float,
    fake: FakeServer,
    student_folder: Path,
    teacher_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    teachers = {"a": teacher_folder, "b": teacher_folder}
    tree = opd_tree(
        tmp_path,
        student_folder,
        teachers,
        objective={"reward_scale": scale},
        validation=held_out(tmp_path, 4, tuple(teachers)),
    )
    found = [loop.train(parse_recipe(tree))]
    tree["teachers"]["a"]["server"], tree["tracking"]["name"] = section(fake), "remote"
    found.append(loop.train(parse_recipe(tree)))
    assert [r.levelno for r in caplog.records if "scored by servers" in r.message] == [logging.WARNING]
    here, there = (student_weights(run) for run in found)
    assert all(torch.allclose(weight, there[name], atol=1e-5) for name, weight in here.items())
    for row in rollouts(found[1], 1):
        unknown = row["route"] == "a" and scale != 1
        assert (row["kls"] is None) == unknown and (row["log_partition"] is None) == (unknown or scale == 1)
    metrics = [lines(run / "metrics.jsonl")[0] for run in found]
    for name in ("loss", "teacher/a/advantage_mean", "teacher/b/advantage_mean"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], abs=1e-4)
    entries = [lines(run / "validation.jsonl")[0]["domains"] for run in found]
    kls = [{source: figures["kl_to_target"] for source, figures in entry.items()} for entry in entries]
    assert kls[1] == {"sums": None, "more sums": pytest.approx(kls[0]["more sums"], abs=1e-5)}


def test_grpo_takes_a_reference_behind_a_server(fake: FakeServer, student_folder: Path) -> None:
    recipe = parse_recipe(
        {
            "method": "grpo",
            "student": {"model": str(student_folder)},
            "reference": {"model": str(student_folder), "server": section(fake)},
            "grpo": {"kl_weight": 0.1},
            "data": {"files": ["rows.jsonl"]},
            "train": {"steps": 1},
        }
    )
    assert not isinstance(recipe, OpdRecipe)
    rows: list[Rollout] = make_rollouts(recipe, load(student_folder), [None])  # type: ignore[arg-type]
    scorer = Scorer(recipe, None, device=CPU, dtype=torch.float32)  # type: ignore[arg-type]
    scores = scorer.score(rows, temperature=1.0)
    expected = [truth(fake.folder, r.prompt_ids, r.response_ids) for r in rows]
    assert_rows([s.reference_logprobs_R for s in scores if s is not None], expected)
    assert all(s is not None and s.route is None and s.teacher_logprobs_R is None for s in scores)


# --- the real thing -------------------------------------------------------------------------------------------------


@contextmanager
def vllm(folder: Path, log: Path) -> Iterator[str]:
    """`vllm serve` with one CPU model, called `expert`; ended with all its processes whatever happens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = [
        "--served-model-name",
        "expert",
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        "256",
    ]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *options]
    settings = {
        "VLLM_CPU_OMP_THREADS_BIND": "0-1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "fork",  # half the time to start
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", port],
            stdout=output,
            stderr=output,
            env=os.environ | settings,
            start_new_session=True,
        )
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while not _healthy(url):
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.2)
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _healthy(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/health").is_success
    return False


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_vllm_server_agrees_with_the_model_here(tmp_path: Path) -> None:
    base, expert = (Path(cli.__file__).parent / "tiny" / name for name in ("base", "math"))
    with vllm(expert, tmp_path / "log") as url:
        here = {"model": str(expert)}
        there = here | {"server": {"url": url, "name": "expert", "tolerance": 1e-3, "retries": 2}}
        own = describe(ModelSpec(model=str(expert)), "teacher a")
        recipe = opd_recipe(base, {"a": there})
        assert isinstance(recipe, OpdRecipe) and recipe.teachers["a"].server is not None
        found = Server(recipe.teachers["a"].server, "unused", "teacher a").check(own)
        assert found.context_length == 255
        rows = make_rollouts(recipe, load(base), ["a"], lengths=(40, 1, 17, 80))
        scores = [
            Scorer(r, None, device=CPU, dtype=torch.float32).score(rows, temperature=1.0)
            for r in (recipe, opd_recipe(base, {"a": here}))
        ]
        for mine, theirs in zip(*scores, strict=True):
            assert mine is not None and theirs is not None
            assert mine.teacher_logprobs_R is not None and theirs.teacher_logprobs_R is not None
            torch.testing.assert_close(mine.teacher_logprobs_R, theirs.teacher_logprobs_R, rtol=0, atol=1e-4)
