"""Launch scripts as recipes: words as bash makes them, meanings as verl has them, recipes that run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import gopd
from gopd import cli
from gopd.errors import BadInput
from gopd.recipe import GrpoRecipe, OpdRecipe
from gopd.sections import ModelSpec
from gopd.setup import prepare
from gopd.tracking import read_metrics
from gopd.verl import flags
from gopd.verl.convert import Converted, convert
from gopd.verl.overrides import read_overrides
from gopd.verl.script import Argument, read_script
from gopd.verl.show import recipe_yaml

SCRIPTS = Path(__file__).parent / "verl"


def test_values_are_read_as_hydra_does() -> None:
    texts = {
        "a=1": 1, "a=-1": -1, "a=1e-5": 1e-5, "a=.5": 0.5, "a=True": True, "a=false": False, "a=null": None,
        "a=x y": "x y", "a='1'": "1", 'a="it\'s"': "it's", "a=[]": [], "a=['x', y,3]": ["x", "y", 3],
        "a=[[1],[2]]": [[1], [2]], "a=": "", "a='a\\'b'": "a'b", "a=p/q=r": "p/q=r", "a=~/x": "~/x",
    }  # fmt: skip
    for text, value in texts.items():
        (override,) = read_overrides([Argument(text, "x:1")]).settings.values()
        assert (override.value, type(override.value)) == (value, type(value)), text
    mapping = read_overrides([Argument("a={b: {c: 1}, 'd': [x]}", "x:1")]).settings
    assert {key: override.value for key, override in mapping.items()} == {"a.b.c": 1, "a.d": ["x"]}


def test_later_overrides_win_and_deletions_take_back() -> None:
    found = read_overrides([Argument(t, f"x:{n}") for n, t in enumerate(["a.b=1", "+a.b=2", "c.d=1", "~c"])])
    assert {key: override.value for key, override in found.settings.items()} == {"a.b": 2}
    assert "x:1: a.b=2 replaces 1 of x:0" in found.warnings[0]
    assert found.other == [("~c", "takes back c.d")]


OPD = (
    "actor_rollout_ref.actor.policy_loss.only_reverse_kl_advantages=True",
    "actor_rollout_ref.actor.use_kl_loss=True",
    "actor_rollout_ref.actor.kl_loss_coef=0",
    "actor_rollout_ref.model.path=s",
    "actor_rollout_ref.ref.model.path=t",
    "data.train_files=x.parquet",
    "actor_rollout_ref.actor.ppo_mini_batch_size=1024",
)
BOTH = ("actor_rollout_ref.model.base_model_path=b", "actor_rollout_ref.ref.model.base_model_path=c")
GRPO = (
    "algorithm.adv_estimator=grpo",
    "actor_rollout_ref.model.path=s",
    "actor_rollout_ref.rollout.n=8",
    "data.train_files=[x.parquet,y.jsonl]",
)


def converted(*overrides: str) -> Converted:
    """Of one command line."""
    return convert(
        read_overrides([Argument(text, f"run.sh:{n}") for n, text in enumerate(overrides, 1)]), "run.sh:1"
    )


def opd(*overrides: str) -> OpdRecipe:
    recipe = converted(*OPD, *overrides).recipe
    assert isinstance(recipe, OpdRecipe)
    return recipe


def grpo(*overrides: str) -> GrpoRecipe:
    recipe = converted(*GRPO, *overrides).recipe
    assert isinstance(recipe, GrpoRecipe)
    return recipe


def test_lambda_counts_only_where_the_published_code_uses_it() -> None:
    scale = "actor_rollout_ref.actor.policy_loss.lambda_vals=1.25"
    alone = converted(*OPD, scale)
    assert isinstance(alone.recipe, OpdRecipe)
    assert alone.recipe.objective.reward_scale == 1.0 and alone.recipe.reference is None
    assert any("has no effect in the published code" in note for note in alone.conversion.notes)
    both = opd(scale, *BOTH)
    assert both.objective.reward_scale == 1.25
    assert both.reference is not None and both.reference.model == "b"
    assert opd(scale, BOTH[0].replace("=b", "=s"), BOTH[1]).reference is None
    assert opd("actor_rollout_ref.actor.policy_loss.lambda_vals=1.0", *BOTH).reference is None


def test_two_teachers_are_math_and_code_and_one_ignores_the_rows_route() -> None:
    two = "actor_rollout_ref.actor.policy_loss.multi_teacher_distill=true"
    recipe = opd(two, *BOTH, "actor_rollout_ref.actor.policy_loss.lambda_vals=1.25")
    assert {name: teacher.model for name, teacher in recipe.teachers.items()} == {"math": "t", "code": "c"}
    assert recipe.data.columns.route == "extra_info.opd_teacher"
    one = opd(two)
    assert list(one.teachers) == ["teacher"]
    assert one.data.columns.route == "-"


def test_verls_defaults_are_set_where_ours_are_others() -> None:
    done = converted(*OPD)
    assert {default.key: default.value for default in done.defaults} == {
        "objective.reward_scale": 1.0,
        "objective.aggregation": "token-mean",
        "correction.mode": "off",
        "student.gradient_checkpointing": True,
        "optim.lr": 1e-6,
        "data.max_prompt_tokens": 512,
        "data.max_response_tokens": 512,
        "data.overlong": "error",
        "checkpoint.every": 0,
        "train.epochs": 30,
        "cluster.learner_ranks": 8,
        "cluster.sampler_replicas": 8,
    }
    recipe = grpo()
    assert recipe.train.prompts_per_step == 1024 and recipe.train.mini_batches == 4
    assert recipe.grpo.kl_weight == 0.0 and recipe.data.files == ("x.parquet", "y.jsonl")


def test_token_mean_over_micro_batches_of_one_row_is_the_mean_of_rows() -> None:
    mean = "actor_rollout_ref.actor.loss_agg_mode=token-mean"
    rows = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu="
    assert opd(mean, rows + "1").objective.aggregation == "seq-mean-token-mean"
    several = converted(*OPD, mean, rows + "2")
    assert isinstance(several.recipe, OpdRecipe)
    assert several.recipe.objective.aggregation == "token-mean"
    assert several.recipe.train.tokens_per_micro_batch == 2 * 1024
    assert any("lies between" in note for note in several.conversion.notes)
    packed = (
        rows + "1",
        "actor_rollout_ref.actor.use_dynamic_bsz=True",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=999",
    )
    assert grpo(*packed).grpo.aggregation == "token-mean"
    assert grpo(*packed).train.tokens_per_micro_batch == 999


def test_kl_is_the_teachers_business_in_opd_and_the_references_in_grpo() -> None:
    coefficient = "actor_rollout_ref.actor.kl_loss_coef=0.01"
    lost = converted(*OPD, coefficient).conversion.lost
    assert ("actor_rollout_ref.actor.kl_loss_coef", "0.01") in [(entry.flag, entry.text) for entry in lost]
    assert grpo("actor_rollout_ref.actor.use_kl_loss=True").grpo.kl_weight == 0.001
    assert grpo("actor_rollout_ref.actor.use_kl_loss=True", coefficient).grpo.kl_weight == 0.01
    assert grpo(coefficient).grpo.kl_weight == 0
    with_reference = grpo(
        "actor_rollout_ref.actor.use_kl_loss=True", "actor_rollout_ref.ref.model.path=other"
    )
    assert with_reference.reference is not None and with_reference.reference.model == "other"


def test_correction_needs_the_samplers_log_probs() -> None:
    level = (
        "algorithm.rollout_correction.rollout_is=sequence",
        "algorithm.rollout_correction.rollout_is_threshold=3",
    )
    known = "actor_rollout_ref.rollout.calculate_log_probs=true"
    recipe = opd(*level, known)
    assert (recipe.correction.mode, recipe.correction.level, recipe.correction.cap) == (
        "auto",
        "sequence",
        3.0,
    )
    assert opd(*level).correction.mode == "off"
    assert opd(level[0], known).correction.cap == 2.0
    assert opd("actor_rollout_ref.actor.ppo_mini_batch_size=512").correction.mode == "auto"


def test_warm_up_counts_optimizer_steps_here() -> None:
    ratio, total = (
        "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.1",
        "trainer.total_training_steps=50",
    )
    assert opd(ratio, total).optim.warmup_steps == 5
    assert grpo(ratio, total).optim.warmup_steps == 5 * 4
    assert opd("actor_rollout_ref.actor.optim.lr_warmup_steps=7", ratio, total).optim.warmup_steps == 7
    account = converted(*OPD, ratio, "actor_rollout_ref.actor.optim.lr_warmup_steps=-1").conversion
    (lost,) = account.lost
    assert ("lr_warmup_steps", "settled by a flag that is listed elsewhere") in [
        (entry.flag.rpartition(".")[2], entry.note) for entry in account.idle
    ]
    assert lost.flag in ratio and "set optim.warmup_steps" in lost.note
    assert opd(total).train.steps == 50


def test_validation_is_greedy_unless_the_script_draws() -> None:
    rows, val = "data.val_files=v.parquet", "actor_rollout_ref.rollout.val_kwargs."
    greedy = opd(rows).validation
    assert greedy is not None and greedy.every == 0 and greedy.before_training
    assert (greedy.sampling.top_k, greedy.samples_per_prompt) == (1, 1)
    drawn = opd(
        rows,
        "trainer.test_freq=5",
        val + "do_sample=True",
        val + "temperature=0.6",
        val + "top_p=0.9",
        val + "n=4",
    ).validation
    assert drawn is not None and drawn.every == 5
    assert (
        drawn.sampling.temperature,
        drawn.sampling.top_p,
        drawn.sampling.top_k,
        drawn.samples_per_prompt,
    ) == (0.6, 0.9, 0, 4)
    assert opd(rows, "trainer.val_before_train=False").validation is None
    assert opd().validation is None


def test_batches_that_cannot_be_cut_are_refused_at_their_flag() -> None:
    with pytest.raises(
        BadInput, match=r"run\.sh:8: .*ppo_mini_batch_size=300: data\.train_batch_size \(1024\)"
    ):
        converted(*OPD, "actor_rollout_ref.actor.ppo_mini_batch_size=300")
    with pytest.raises(BadInput, match=r"8 × .*|3 devices cannot be shared out to engines of 2"):
        converted(*OPD, "actor_rollout_ref.rollout.name=vllm", "trainer.n_gpus_per_node=3")
    with pytest.raises(BadInput, match=r"adv_estimator=gae: no method here is that"):
        converted(*GRPO, "algorithm.adv_estimator=gae")
    with pytest.raises(BadInput, match=r"names no student"):
        converted(*[text for text in GRPO if "path" not in text])
    with pytest.raises(BadInput, match=r"samples_per_prompt is 1.*rollout\.n \(run\.sh:5\)"):
        converted(*GRPO, "actor_rollout_ref.rollout.n=1")
    with pytest.raises(
        BadInput, match=r"optim\.lr.*come from actor_rollout_ref\.actor\.optim\.lr \(run\.sh:8\)"
    ):
        converted(*OPD, "actor_rollout_ref.actor.optim.lr=fast")


def test_values_may_be_other_keys() -> None:
    assert opd("actor_rollout_ref.actor.ppo_mini_batch_size=${data.train_batch_size}").train.mini_batches == 1
    with pytest.raises(BadInput, match=r"refers to no\.such, which is not worked out"):
        converted(*OPD, "data.train_batch_size=${no.such}")


def test_unknown_flags_and_values_are_said_to_be_lost() -> None:
    given = (
        "actor_rollout_ref.rollout.temprature=0.5",
        "actor_rollout_ref.actor.entropy_coeff=0.01",
        "my.own=1",
    )
    lost = {entry.flag: entry.note for entry in converted(*OPD, *given).conversion.lost}
    assert lost == {
        "actor_rollout_ref.rollout.temprature": "not known here; did you mean actor_rollout_ref.rollout.temperature?",
        "actor_rollout_ref.actor.entropy_coeff": "an entropy bonus, which is not supported",
        "my.own": "not known here",
    }


SAMPLES = {
    "actor_rollout_ref.model.lora_rank": 8,
    "actor_rollout_ref.model.lora_alpha": 8,
    "actor_rollout_ref.model.target_modules": "all-linear",
    "data.apply_chat_template_kwargs.*": 1,
    "actor_rollout_ref.rollout.name": "vllm",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 1,
    "actor_rollout_ref.actor.optim.warmup_style": "cosine",
    "data.train_max_samples": 5,
    "data.val_max_samples": 5,
    "data.seed": 1,
    "trainer.total_training_steps": 9,
    "trainer.max_actor_ckpt_to_keep": 3,
    "algorithm.adv_estimator": "grpo",
    "data.truncation": "left",
    "actor_rollout_ref.actor.use_kl_loss": True,
    "actor_rollout_ref.actor.policy_loss.multi_teacher_distill": True,
    "algorithm.use_ref_solution_distillation": True,
    "data.apply_chat_template_kwargs.enable_thinking": True,
    "trainer.logger": "[console]",
    "trainer.project_name": "p",
    "trainer.experiment_name": "e",
    "trainer.default_local_dir": "d",
    "actor_rollout_ref.actor.policy_loss.only_reverse_kl_advantages": True,
    "actor_rollout_ref.rollout.n": 2,
    "actor_rollout_ref.rollout.val_kwargs.temperature": 0.5,
    "actor_rollout_ref.actor.use_dynamic_bsz": True,
}
VAL, LOSS = flags.VAL, flags.LOSS
CONTEXTS = (
    (
        *(*OPD, *BOTH, "data.val_files=v.parquet", flags.ROLLOUT + "name=vllm"),
        *(VAL + "do_sample=True", VAL + "temperature=1"),
        *(LOSS + "multi_teacher_distill=True", LOSS + "lambda_vals=2"),
    ),
    (
        *(*GRPO, flags.ACTOR + "use_kl_loss=True", flags.ACTOR + "use_dynamic_bsz=True"),
        flags.MODEL + "lora_rank=4",
    ),
    (*OPD, flags.CORRECTION + "rollout_is=token", flags.ROLLOUT + "calculate_log_probs=True"),
    (*OPD, "data.filter_overlong_prompts=False", LOSS + "lambda_vals=1"),
)


@pytest.mark.parametrize("row", flags.MAPPED, ids=lambda row: row.flag)
def test_every_line_of_the_table_is_mapped_to_its_key_somewhere(row: flags.Mapped) -> None:
    value = SAMPLES.get(row.flag, row.default)
    sample = [] if value in (flags.ABSENT, None) else [f"{row.flag.replace('*', 'x')}={value}"]
    keys = []
    for context in CONTEXTS:
        kept = [text for text in context if not sample or not text.startswith(row.flag + "=")]
        account = converted(*kept, *sample).conversion
        keys += [entry.key for entry in account.mapped if entry.flag == row.flag.replace("*", "x")]
    wanted = row.key.replace("*", "x").rpartition("[")[0] or row.key.replace("*", "x")
    assert any(key is not None and (key == wanted or wanted.startswith(key)) for key in keys), keys


@pytest.mark.parametrize("name", ["single.sh", "several.sh"])
def test_every_flag_is_in_exactly_one_list(name: str) -> None:
    for launch in read_script(SCRIPTS / name, ["foo.bar=1"], {}).launches:
        overrides = read_overrides(launch.arguments)
        account = convert(overrides, launch.where).conversion
        listed = [entry.flag for entry in (*account.mapped, *account.idle, *account.lost)]
        assert sorted(listed) == sorted(overrides.settings)
        assert [entry.flag for entry in account.lost] == ["foo.bar"]


def test_the_documented_tables_are_those_of_the_code() -> None:
    page = (Path(__file__).parents[1] / "docs/import-verl.md").read_text(encoding="utf-8")
    assert flags.as_markdown() in page, "put gopd.verl.flags.as_markdown() into docs/import-verl.md"
    known = [row.flag for row in (*flags.MAPPED, *flags.IDLE)]
    assert len(known) == len(set(known))


TRUTH = {"inputs": [[[1]]], "outputs": [[2]], "fn_name": "f"}


def write_published_rows(path: Path) -> None:
    """Parquet in the published schema."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [
        {
            "data_source": "zwhe99/DeepMath-103K" if number % 2 == 0 else "codecontests",
            "prompt": [{"role": "user", "content": f"what is {number}+4?"}],
            "ability": "math" if number % 2 == 0 else "code",
            "reward_model": {"style": "rule", "ground_truth": "7" if number % 2 == 0 else json.dumps(TRUTH)},
            "extra_info": {
                "index": number,
                "split": "train",
                "ref_solution": "Add them.",
                "opd_teacher": "math" if number % 2 == 0 else "code",
            },
        }
        for number in range(8)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


TINY = ("student.model=builtin:base", "sampler.engine=torch", "tracking.trackers=[]", "train.device=cpu")
LAUNCHES = {
    "one teacher": ("single.sh", 0, ("teachers.teacher.model=builtin:math", "reference.model=builtin:base")),
    "two teachers": (
        "several.sh",
        0,
        ("teachers.math.model=builtin:math", "teachers.code.model=builtin:code"),
    ),
    "context": ("several.sh", 1, ("teachers.teacher.model=builtin:base",)),
    "grpo": ("several.sh", 2, ()),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_converted_recipes_run_with_tiny_models(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, number, overrides = LAUNCHES[name]
    monkeypatch.chdir(tmp_path)
    for file in ("train", "held"):
        write_published_rows(tmp_path / f"rows/{file}.parquet")
    target = tmp_path / "made.yaml"
    command = ["import-verl", str(SCRIPTS / script), "--to", str(target)]
    assert cli.main([*command, "--command", str(number + 1), "--strict"]) == 0
    length = ("train.epochs=null", "train.steps=1", "tracking.folder=runs", "train.allow_unsandboxed=true")
    recipe = gopd.load_recipe(target, [*TINY, *length, *overrides])
    assert prepare(recipe).total_steps == 1
    run = gopd.train(recipe)
    (entry,) = read_metrics(run / "metrics.jsonl")
    assert entry["response_tokens/max"] <= 8
    if name == "two teachers":
        assert {"teacher/math/advantage_mean", "teacher/code/advantage_mean"} <= entry.keys()
    if name in ("one teacher", "context"):
        assert entry["teacher/teacher/advantage_mean"] != 0


def test_the_written_file_is_the_recipe_with_its_account(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "made.yaml"
    command = ["import-verl", str(SCRIPTS / "single.sh"), "--json"]
    assert cli.main([*command, "--to", str(target), "+foo.bar=1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [entry["flag"] for entry in told["not_mapped"]] == ["foo.bar"]
    text = target.read_text(encoding="utf-8")
    assert told["yaml"] == text
    assert "# Not mapped: foo.bar=1: not known here" in text
    recipe = gopd.load_recipe(target)
    assert isinstance(recipe, OpdRecipe)
    assert recipe.reference is not None
    assert (recipe.student.model, recipe.teachers["teacher"].model, recipe.reference.model) == (
        "small/student",
        "large/after-rl",
        "large/before-rl",
    )
    assert recipe.objective.reward_scale == 1.5
    assert recipe.student.view.enable_thinking is False
    assert (recipe.train.prompts_per_step, recipe.sampler.samples_per_prompt) == (4, 2)
    assert (recipe.data.max_prompt_tokens, recipe.data.max_response_tokens) == (128, 8)
    assert (recipe.cluster.learner_ranks, recipe.cluster.sampler_replicas, recipe.cluster.colocate) == (
        16,
        4,
        True,
    )
    assert recipe.tracking.trackers == ("wandb",) and recipe.tracking.name == "one-teacher"
    assert recipe.validation is not None and recipe.validation.sampling.temperature == 0.7
    assert cli.main([*command, "--to", str(target)]) == 2
    assert "there is such a file already" in capsys.readouterr().err


def test_the_recipe_goes_to_the_output_and_the_account_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    script = str(SCRIPTS / "single.sh")
    assert cli.main(["import-verl", script]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("# From ") and "\nmethod: opd\n" in printed.out
    assert "No meaning here (" in printed.err and "Not mapped (0)" in printed.err
    assert "behind the backslash" in printed.err
    assert "data.files: rows/train.parquet is not here" in printed.err
    assert cli.main(["import-verl", script, "--strict", "+foo.bar=1"]) == 1


def test_one_of_several_launches_must_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    script = str(SCRIPTS / "several.sh")
    assert cli.main(["import-verl", script]) == 2
    assert "starts the trainer 3 times; choose one: --command 1: " in capsys.readouterr().err
    assert cli.main(["import-verl", script, "--command", "4"]) == 2
    assert "--command 3: " in capsys.readouterr().err


def test_the_account_stands_on_top_in_short_lines(tmp_path: Path) -> None:
    script = read_script(SCRIPTS / "single.sh", [], {})
    done = convert(read_overrides(script.launches[0].arguments), script.launches[0].where)
    text = recipe_yaml(done, script, script.launches[0])
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    "named", ["", "global_step_3", "global_step_3/actor", "global_step_3/actor/huggingface"]
)
def test_checkpoints_of_verl_are_recognised(named: str, tmp_path: Path) -> None:
    from gopd.model import describe

    plain = tmp_path / "global_step_3/actor/huggingface"
    base = Path(gopd.__file__).parent / "tiny/base"
    shutil.copytree(base, plain, ignore=shutil.ignore_patterns("*.safetensors"))
    (plain.parent / "model_world_size_2_rank_0.pt").write_bytes(b"\x80")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3\n", encoding="utf-8")
    folder = tmp_path / named
    merge = f"--backend fsdp --local_dir {plain.parent} --target_dir {tmp_path}/global_step_3_merged`"
    with pytest.raises(BadInput) as refused:
        describe(ModelSpec(model=str(folder)), "student")
    assert "python -m verl.model_merger merge " + merge in str(refused.value)
    shutil.copy(base / "model.safetensors", plain)
    if folder == plain:
        assert describe(ModelSpec(model=str(folder)), "student").logits > 0
    else:
        with pytest.raises(BadInput, match=r"the model in it is .*/actor/huggingface: name that folder"):
            describe(ModelSpec(model=str(folder)), "student")
