"""`gopd eval`, `gopd grade` and `gopd compare`."""

from __future__ import annotations

import argparse

from gopd.commands.command import Command, quiet_libraries
from gopd.errors import EXIT_DONE

EVAL_EXAMPLES = """examples:
  gopd eval runs/mine/student --tasks aime24,aime25,hmmt25_feb,hmmt25_nov
  gopd eval student teacher --tasks humaneval+,mbpp+,livecodebench_v6 --to results
  gopd eval builtin:base --tasks gsm8k --data FOLDER --n 1 --limit 50 --max-tokens 128

The same command again goes on where an interrupted one was. Code is run in a sandbox (docs/evaluation.md)."""

GRADE_EXAMPLES = """example:
  gopd grade results --golds as-published"""

COMPARE_EXAMPLES = """example:
  gopd compare results/student results/teacher"""


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
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
    _grading_arguments(parser)


def _grade_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="results of gopd eval, of one model or several")
    _grading_arguments(parser)


def _grading_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="FOLDER", help="folder with the suites' files, instead of fetching them")
    golds = ("corrected", "as-published")
    add("--golds", choices=golds, default="corrected", help="with evident errors mended, or not")
    add("--lcb-compat", action="store_true", help="LiveCodeBench's own verdict rules where they differ")
    add("--allow-unsandboxed", action="store_true", help="run programs even where nothing keeps them apart")


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="one model's folder of gopd eval")
    parser.add_argument("b", metavar="B", help="another's")
    parser.add_argument("--json", action="store_true", help="everything as JSON")


def _eval(options: argparse.Namespace) -> int:
    from gopd.evaluate.command import evaluate_command

    quiet_libraries()
    evaluate_command(options)
    return EXIT_DONE


def _grade(options: argparse.Namespace) -> int:
    from gopd.evaluate.command import grade_command

    quiet_libraries()
    grade_command(options)
    return EXIT_DONE


def _compare(options: argparse.Namespace) -> int:
    from gopd.evaluate.command import compare_command

    compare_command(options)
    return EXIT_DONE


EVAL = Command(
    "eval",
    help="measure models on mathematics and code suites",
    description="Answers, grades and sums up; docs/evaluation.md says what each number means.",
    examples=EVAL_EXAMPLES,
    arguments=_eval_arguments,
    run=_eval,
    again="the same command goes on",
)
GRADE = Command(
    "grade",
    help="grade the samples of a results folder again",
    description="Decides every saved sample anew; nothing is sampled.",
    examples=GRADE_EXAMPLES,
    arguments=_grade_arguments,
    run=_grade,
    again="the same command goes on",
)
COMPARE = Command(
    "compare",
    help="compare two results, problem by problem",
    description="The paired difference B − A on every task that both results have.",
    examples=COMPARE_EXAMPLES,
    arguments=_compare_arguments,
    run=_compare,
)
