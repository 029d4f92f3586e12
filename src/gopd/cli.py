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

TRAIN_EXAMPLES = """examples:
  gopd train recipes/quickstart.yaml
  gopd train recipes/quickstart.yaml objective.reward_scale=1.0 tracking.name=opd
  gopd train recipes/quickstart.yaml --resume

exit codes: 0 done, 1 the run failed, 2 bad input, 130 interrupted"""

GGUF_EXAMPLES = """example:
  gopd import-gguf models/SmolLM2-135M-Instruct.Q4_1.gguf smollm2"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parse(arguments)
    try:
        if options.command == "train":
            _train(options)
        elif options.command == "import-gguf":
            _import_gguf(options)
        return EXIT_DONE
    except BadInput as error:
        return _complain(error, EXIT_BAD_INPUT)
    except RunFailed as error:
        return _complain(error, EXIT_RUN_FAILED)
    except Interrupted as error:
        return _complain(error, EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        return _complain(
            "interrupted; a run goes on from its last checkpoint with --resume", EXIT_INTERRUPTED
        )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (options.command != "train" or any(argument.startswith("-") for argument in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "train":
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
        description="Trains a student by a recipe (method opd or sft).",
        epilog=TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("recipe", metavar="RECIPE", help="YAML file; docs/recipe.md explains every key")
    train.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    train.add_argument("--resume", action="store_true", help="go on from the run folder's last checkpoint")
    gguf = commands.add_parser(
        "import-gguf",
        help="turn a GGUF file into a model folder",
        description="Writes a float32 safetensors copy of a GGUF model that Transformers can read.",
        epilog=GGUF_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gguf.add_argument("file", metavar="FILE.gguf")
    gguf.add_argument("folder", metavar="FOLDER", help="new folder for the model and its tokenizer")
    return parser


def _train(options: argparse.Namespace) -> None:
    from gopd.recipe_file import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    from gopd.loop import train

    _quiet_libraries()
    train(recipe, resume=options.resume)


def _import_gguf(options: argparse.Namespace) -> None:
    from gopd.gguf import import_gguf

    _quiet_libraries()
    import_gguf(options.file, options.folder)


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
