"""A model on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, errors, get_token

from gopd.errors import BadInput, RunFailed


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool,
    revision: str | None,
    message: str,
) -> str:
    """As `gopd.push_to_hub`."""
    model = model_folder(Path(folder))
    if "/" not in repo_id:
        raise BadInput(f"{repo_id!r}: give owner and name, as in OWNER/{repo_id}")
    if get_token() is None:
        raise BadInput("no token for the Hub: set HF_TOKEN, or log in with `hf auth login`")
    hub = HfApi(library_name="gopd")
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        done = hub.upload_folder(
            repo_id=repo_id, folder_path=model, revision=revision, commit_message=message
        )
    except errors.HFValidationError as error:
        raise BadInput(f"{repo_id!r} cannot be the name of a repository: {error}") from error
    except (errors.HTTPError, errors.OfflineModeIsEnabled, OSError) as error:  # type: ignore[attr-defined]
        raise RunFailed(
            f"{repo_id}: {_reason(error)}; nothing was published in part, the same command can be given again"
        ) from error
    return str(done.commit_url)


def model_folder(folder: Path) -> Path:
    """The folder itself where it holds a model, or a run's student. Raises BadInput where there is neither."""
    if (folder / "student").is_dir():
        return folder / "student"
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return folder
    if (folder / "recipe.yaml").is_file():
        raise BadInput(f"{folder}: this run has no student yet; finish it with `gopd train … --resume`")
    raise BadInput(
        f"{folder}: neither a run folder nor a model folder (config.json and *.safetensors)"
        if folder.is_dir()
        else f"{folder}: there is no such folder"
    )


def _reason(error: Exception) -> str:
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if status == 401:
        return "the Hub does not accept the token (401); log in anew with `hf auth login`"
    if status == 403:
        return (
            "the token may not write there (403); it needs the role write, and the owner must be you or yours"
        )
    return f"the Hub cannot be reached or refuses: {str(error).strip() or type(error).__name__}"
