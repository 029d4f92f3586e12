"""The command line: finds the command, runs it, and turns what goes wrong into a line and an exit code."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence

from gopd.commands import whole_parser
from gopd.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_RUN_FAILED, BadInput, Interrupted, RunFailed
from gopd.masking import mask


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parse(arguments)
    try:
        return int(options.command.run(options))
    except BadInput as error:
        return _complain(options, error, EXIT_BAD_INPUT)
    except RunFailed as error:
        return _complain(options, error, EXIT_RUN_FAILED)
    except Interrupted as error:
        again = [word for word in options.words if word != "--resume"]
        return _complain(options, f"{error}: gopd {shlex.join(again)} --resume", EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        return _complain(options, f"interrupted; {options.command.again}", EXIT_INTERRUPTED)
    except Exception as error:
        return _complain(options, _unexpected(error), EXIT_RUN_FAILED)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser, _ = whole_parser()
    options, rest = parser.parse_known_args(arguments)
    options.words = sys.argv[1:] if arguments is None else arguments
    kept = options.command.rest
    if rest and (kept is None or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if kept is not None:
        vars(options)[kept] += rest  # argparse ends a list at the first option, e.g. --resume
    return options


def _complain(options: argparse.Namespace, message: object, code: int) -> int:
    if options.debug:
        print(mask(traceback.format_exc()), end="", file=sys.stderr)
    print(f"gopd: {mask(str(message))}", file=sys.stderr)
    return code


def _unexpected(error: Exception) -> str:
    """What to say of an error that nobody foresaw; where it happened is kept in a file."""
    what = "".join(traceback.format_exception_only(error)).strip()
    try:
        with tempfile.NamedTemporaryFile("w", prefix="gopd-", suffix=".txt", delete=False) as file:
            file.write(mask("".join(traceback.format_exception(error))))
        where = f"{file.name}, which says where"
    except OSError:  # a full disk
        where = "what --debug shows"
    return f"this should not have happened: {what}; please report it with {where}"


if __name__ == "__main__":
    sys.exit(main())
