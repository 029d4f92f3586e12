"""The command line: parsing only; everything heavy is imported when its command runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gopd import __version__
from gopd.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_RUN_FAILED,
    BadInput,
    Interrupted,
    RunFailed,
)
from gopd.supervise import supervise, supervised

TRAIN_EXAMPLES = """examples:
  gopd train recipes/quickstart.yaml
  gopd train recipes/quickstart.yaml objective.reward_scale=1.0 tracking.name=opd
  gopd train recipes/quickstart.yaml --resume

exit codes: 0 done, 1 the run failed, 2 bad input, 130 interrupted"""

GGUF_EXAMPLES = """example:
  gopd import-gguf models/SmolLM2-135M-Instruct.Q4_1.gguf smollm2"""


GENERATE_EXAMPLES = """examples:
  gopd generate recipes/quickstart.yaml --to runs/teachers
  gopd generate recipes/quickstart.yaml --to runs/teachers --samples 4 --keep-correct --resume

The file responses.parquet in the folder can be the data of a recipe of method sft."""

GO_ON = "a run goes on from its last checkpoint with --resume"

MERGE_EXAMPLES = """examples:
  gopd merge math-expert code-expert --to average
  gopd merge math-expert code-expert --base qwen3-4b --alpha 0.5 --to extrapolated"""

EVAL_EXAMPLES = """examples:
  gopd eval runs/mine/student --tasks aime24,aime25,hmmt25_feb,hmmt25_nov
  gopd eval student teacher --tasks humaneval+,mbpp+,livecodebench_v6 --to results
  gopd eval builtin:base --tasks gsm8k --data FOLDER --n 1 --limit 50 --max-tokens 128

The same command again goes on where an interrupted one was. Code is run in a sandbox (docs/evaluation.md)."""

PLAN_EXAMPLES = """examples:
  gopd plan recipes/paper/multi-teacher.yaml --gpus 8 --gpu h100-80gb
  gopd plan mine.yaml cluster.learner_ranks=16 --gpus 32 --gpu a100-80gb --mean-response-tokens 2500
  gopd plan mine.yaml --gpus 8 --gpu h200 --like math=Qwen/Qwen3-4B --json
  gopd plan recipes/quickstart.yaml --device cpu

exit codes: 0 it fits, 1 it does not, 2 bad input. What is counted, and how well: docs/plan.md"""

REPORT_EXAMPLES = """examples:
  gopd report runs/mine
  gopd report runs/exopd-seed0 runs/exopd-seed1 runs/opd-seed0 --to exopd-against-opd.html
  gopd report runs/mine --steps 1,40-45

The file opens in a browser from the disk, without a network: docs/report.md"""

COMPARE_EXAMPLES = """example:
  gopd compare results/student results/teacher"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parse(arguments)
    try:
        if options.command == "train":
            return _train(options)
        if options.command == "generate":
            _generate(options)
        elif options.command == "merge":
            _merge(options)
        elif options.command == "import-gguf":
            _import_gguf(options)
        elif options.command == "eval":
            _eval(options)
        elif options.command == "grade":
            _grade(options)
        elif options.command == "compare":
            _compare(options)
        elif options.command == "plan":
            return _plan(options)
        elif options.command == "report":
            _report(options)
        return EXIT_DONE
    except BadInput as error:
        return _complain(error, EXIT_BAD_INPUT)
    except RunFailed as error:
        return _complain(error, EXIT_RUN_FAILED)
    except Interrupted as error:
        return _complain(error, EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        again = "the same command goes on" if options.command in ("eval", "grade") else GO_ON
        return _complain(f"interrupted; {again}", EXIT_INTERRUPTED)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    with_recipe = options.command in ("train", "generate", "plan")
    if rest and (not with_recipe or any(argument.startswith("-") for argument in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if with_recipe:
        options.overrides += rest  # argparse ends a list at the first option, here --resume
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gopd", description="Generalized on-policy distillation of language models."
    )
    parser.add_argument("--version", action="version", version=f"gopd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a student by a recipe",
        description="Trains a student by a recipe (method opd, grpo or sft).",
        epilog=TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("recipe", metavar="RECIPE", help="YAML file; docs/recipe.md explains every key")
    train.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    train.add_argument("--resume", action="store_true", help="go on from the run folder's last checkpoint")
    train.add_argument(
        "--cluster",
        metavar="local|auto|ADDRESS",
        help="run on Ray: on this machine, on the cluster this runs in, or on the one at an address",
    )
    generate = commands.add_parser(
        "generate",
        help="let a recipe's teachers answer its prompts, as data for method sft",
        description="Every prompt of the recipe's data is answered by its own teacher, into a Parquet file.",
        epilog=GENERATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    generate.add_argument("recipe", metavar="RECIPE", help="YAML file of method opd")
    generate.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    generate.add_argument("--to", required=True, metavar="FOLDER", help="folder for the responses")
    generate.add_argument("--samples", type=int, default=1, help="responses to each prompt (1)")
    generate.add_argument("--keep-correct", action="store_true", help="keep only what the verifiers accept")
    generate.add_argument("--resume", action="store_true", help="go on with what is in the folder")
    merge = commands.add_parser(
        "merge",
        help="average checkpoints, or extrapolate beyond them (ExPO)",
        description="Writes θ + α(θ − θ_base), where θ is the average of the models; without a base the average.",
        epilog=MERGE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    merge.add_argument("models", nargs="+", metavar="MODEL", help="model folders, Hub names or builtin:NAME")
    merge.add_argument("--to", required=True, metavar="FOLDER", help="new folder for the merged model")
    merge.add_argument("--base", metavar="MODEL", help="what the models were trained from")
    merge.add_argument(
        "--alpha", type=float, default=0.0, help="how far beyond the average, from the base; 0.5 is half"
    )
    gguf = commands.add_parser(
        "import-gguf",
        help="turn a GGUF file into a model folder",
        description="Writes a float32 safetensors copy of a GGUF model that Transformers can read.",
        epilog=GGUF_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gguf.add_argument("file", metavar="FILE.gguf")
    gguf.add_argument("folder", metavar="FOLDER", help="new folder for the model and its tokenizer")
    _add_evaluation(commands)
    _add_plan(commands)
    _add_report(commands)
    return parser


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser(
        "report",
        help="show runs in one HTML file",
        description="Curves of all runs, their recipes and validations, and every token of logged rollouts.",
        epilog=REPORT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = report.add_argument
    add("runs", nargs="+", metavar="RUN", help="run folders, finished or not")
    add("--to", metavar="FILE", help="the file (report.html: of one run in its folder, of several here)")
    add("--steps", metavar="N,N-N", help="only rollouts of these steps, where all are too many for a page")


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plan = commands.add_parser(
        "plan",
        help="predict a recipe's memory and time on a cluster",
        description="Says what fits, what binds, and proposes the cluster section. Loads no weights.",
        epilog=PLAN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = plan.add_argument
    add("recipe", metavar="RECIPE", help="YAML file; its cluster section is judged if it has one")
    add("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    add("--gpus", type=int, metavar="N", help="devices of the cluster")
    add("--gpu", metavar="NAME", help="their kind, e.g. h100-80gb")
    add("--device", choices=("cpu",), help="instead: gopd train on this machine, whose rates are measured")
    add("--mean-prompt-tokens", type=int, metavar="N", help="expected (an eighth of the recipe's limit)")
    add("--mean-response-tokens", type=int, metavar="N", help="expected (a quarter of the recipe's limit)")
    add("--spread", type=float, default=1.0, help="deviation of the logarithm of response lengths (1)")
    add("--update-share", type=float, help="of the device's products, in update and scoring (GPUs 0.4)")
    add("--decode-share", type=float, help="of the device's memory bandwidth, in decoding (0.6)")
    add(
        "--like",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        help="a role's model has the sizes of this one",
    )
    add("--json", action="store_true", help="everything as JSON")


def _add_evaluation(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluation = commands.add_parser(
        "eval",
        help="measure models on mathematics and code suites",
        description="Answers, grades and sums up; docs/evaluation.md says what each number means.",
        epilog=EVAL_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = evaluation.add_argument
    add("models", nargs="+", metavar="MODEL", help="model folders, Hub names or builtin:NAME")
    add("--tasks", required=True, metavar="NAME,...", help="suites, e.g. aime24,math500,humaneval+")
    add("--n", type=int, help="samples per problem (mathematics 32, code 4)")
    add("--limit", type=int, metavar="N", help="only the first N problems of each suite")
    add("--to", default="runs/eval", metavar="FOLDER", help="results folder (runs/eval)")
    add("--temperature", type=float, default=1.0, help="(1)")
    add("--top-p", type=float, default=1.0, help="(1)")
    add("--top-k", type=int, default=0, help="(0: no limit)")
    add("--max-tokens", type=int, default=16384, help="of a response (16384)")
    add("--seed", type=int, default=0, help="(0)")
    add("--slots", type=int, default=64, help="responses drawn side by side (64)")
    add("--engine", choices=("torch", "vllm"), default="torch", help="what draws them")
    add("--system", metavar="TEXT", help="system text before the problem")
    add("--thinking", action=argparse.BooleanOptionalAction, help="the chat template's thinking switch")
    add("--completion", action="store_true", help="plain prompts, for models without a chat template")
    add("--pass-at", default="", metavar="K,...", help="also estimate pass@K")
    grade = commands.add_parser(
        "grade",
        help="grade the samples of a results folder again",
        description="Decides every saved sample anew; nothing is sampled.",
    )
    grade.add_argument("folder", metavar="FOLDER", help="results of gopd eval, of one model or several")
    for command in (evaluation, grade):
        add = command.add_argument
        add("--data", metavar="FOLDER", help="folder with the suites' files, instead of fetching them")
        golds = ("corrected", "as-published")
        add("--golds", choices=golds, default="corrected", help="with evident errors mended, or not")
        add("--lcb-compat", action="store_true", help="LiveCodeBench's own verdict rules where they differ")
        add(
            "--allow-unsandboxed",
            action="store_true",
            help="run programs even where nothing keeps them apart",
        )
    compare = commands.add_parser(
        "compare",
        help="compare two results, problem by problem",
        description="The paired difference B − A on every task that both results have.",
        epilog=COMPARE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("a", metavar="A", help="one model's folder of gopd eval")
    compare.add_argument("b", metavar="B", help="another's")


def _train(options: argparse.Namespace) -> int:
    from gopd.recipe_file import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    if options.cluster is not None and not supervised():
        return supervise(options.arguments, recipe.cluster.max_restarts)
    from gopd.loop import train

    _quiet_libraries()
    train(recipe, resume=options.resume, cluster=options.cluster)
    return EXIT_DONE


def _generate(options: argparse.Namespace) -> None:
    from gopd.recipe_file import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    from gopd.generate import generate

    _quiet_libraries()
    settings = {"samples": options.samples, "keep_correct": options.keep_correct}
    generate(recipe, options.to, **settings, resume=options.resume)


def _merge(options: argparse.Namespace) -> None:
    from rich.progress import Progress

    from gopd.merge import merge

    _quiet_libraries()
    with Progress(transient=True) as bars:
        task = bars.add_task("merging", total=None)
        merge(
            options.models,
            options.to,
            base=options.base,
            alpha=options.alpha,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    print(f"merged into {options.to}")


def _import_gguf(options: argparse.Namespace) -> None:
    from gopd.gguf import import_gguf

    _quiet_libraries()
    import_gguf(options.file, options.folder)


def _eval(options: argparse.Namespace) -> None:
    from gopd.evaluate.command import evaluate_command

    _quiet_libraries()
    evaluate_command(options)


def _grade(options: argparse.Namespace) -> None:
    from gopd.evaluate.command import grade_command

    _quiet_libraries()
    grade_command(options)


def _compare(options: argparse.Namespace) -> None:
    from gopd.evaluate.command import compare_command

    compare_command(options)


def _plan(options: argparse.Namespace) -> int:
    from gopd.plan.command import plan_command

    _quiet_libraries()
    return plan_command(options)


def _report(options: argparse.Namespace) -> None:
    from gopd.report.command import report_command

    report_command(options.runs, options.to, options.steps)


def _quiet_libraries() -> None:
    """Keeps Transformers' loading bars and advice off the screen: what the user sees is gopd's own."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _complain(message: object, code: int) -> int:
    print(f"gopd: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
