"""The commands of the command line, a module for each: what they are called, what they take, what they start.

Only parsing happens at import; what is heavy is imported when a command runs.
"""

from gopd.commands.command import Command
from gopd.commands.doctor import DOCTOR
from gopd.commands.evaluate import COMPARE, EVAL, GRADE
from gopd.commands.generate import GENERATE
from gopd.commands.import_gguf import IMPORT_GGUF
from gopd.commands.import_verl import IMPORT_VERL
from gopd.commands.merge import MERGE
from gopd.commands.plan import PLAN
from gopd.commands.report import REPORT
from gopd.commands.train import TRAIN
from gopd.commands.watch import WATCH

__all__ = ["COMMANDS", "Command"]

COMMANDS: tuple[Command, ...] = (
    TRAIN,
    GENERATE,
    MERGE,
    EVAL,
    GRADE,
    COMPARE,
    PLAN,
    DOCTOR,
    REPORT,
    WATCH,
    IMPORT_GGUF,
    IMPORT_VERL,
)
"""In the order of the help."""
