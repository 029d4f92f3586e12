"""`gopd import-gguf`."""

from __future__ import annotations

import argparse

from gopd.commands.command import Command, quiet_libraries
from gopd.errors import EXIT_DONE

EXAMPLES = """example:
  gopd import-gguf models/SmolLM2-135M-Instruct.Q4_1.gguf smollm2"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.gguf")
    parser.add_argument("folder", metavar="FOLDER", help="new folder for the model and its tokenizer")


def _run(options: argparse.Namespace) -> int:
    from gopd.gguf import import_gguf

    quiet_libraries()
    import_gguf(options.file, options.folder)
    return EXIT_DONE


IMPORT_GGUF = Command(
    "import-gguf",
    help="turn a GGUF file into a model folder",
    description="Writes a float32 safetensors copy of a GGUF model that Transformers can read.",
    examples=EXAMPLES,
    arguments=_arguments,
    run=_run,
)
