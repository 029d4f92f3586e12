"""gopd: generalized on-policy distillation of language models.

What most programs need is here; the roles are in their own modules (`gopd.sampler`, `gopd.scorer`, `gopd.learner`)
and the mathematics in `gopd.objective`. Importing `gopd` imports neither torch nor pydantic.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gopd.errors import BadInput, Interrupted, RunFailed

if TYPE_CHECKING:
    from gopd.recipe import AnyRecipe

__all__ = ["BadInput", "Interrupted", "RunFailed", "load_recipe", "push_to_hub", "train"]

__version__ = "0.1.0"


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Reads a recipe file and applies `section.key=value` overrides; values are YAML.

    Raises BadInput when the file is missing, is not YAML, or does not describe a possible run.
    """
    from gopd import recipe_file

    return recipe_file.load_recipe(path, overrides)


def train(recipe: AnyRecipe, *, resume: bool = False, cluster: str | None = None) -> Path:
    """Runs a recipe and returns its run folder; the trained student is in `student/` inside.

    With `cluster` (`local`, `auto` or an address) the roles run on Ray, otherwise in this process.
    Raises BadInput before any work when the recipe cannot run, RunFailed when it cannot go on, and Interrupted
    after Ctrl-C, when the current step is finished and saved (in the main thread; elsewhere Ctrl-C is the caller's).
    """
    from gopd import loop

    return loop.train(recipe, resume=resume, cluster=cluster)


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload by gopd",
) -> str:
    """Uploads a run's student, or any model folder, to `OWNER/NAME` on the Hugging Face Hub; returns the commit's URL.

    A repository that is not there is made (`private` or public), and so is the branch `revision`. The token is the
    one that huggingface_hub finds (`HF_TOKEN`, `hf auth login`). Raises BadInput before anything is sent, RunFailed
    when the Hub refuses or cannot be reached; a commit arrives whole or not at all.
    """
    from gopd import publish

    return publish.push_to_hub(folder, repo_id, private=private, revision=revision, message=message)
