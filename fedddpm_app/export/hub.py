"""The push of an exported folder to the Hugging Face hub."""

from pathlib import Path

import httpx
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # it is public

from fedddpm_app.config import ConfigError, first_line

_NO_ANSWER = (httpx.TransportError, OfflineModeIsEnabled, OSError)
_CONFLICT = 409


class PushError(RuntimeError):
    """A push failed; the folder is complete. The message is one sentence with the fix."""


def check_push(repo: str) -> None:
    """Raise ``ConfigError`` for what can be known before the work: a name that is none, a missing token."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(
            f"--push {repo!r} is not the name of a repository ({first_line(error)}): use NAME/MODEL."
        ) from (error)
    if get_token() is None:
        raise ConfigError(f"--push {repo} needs a token of the hub: run `hf auth login`, or set HF_TOKEN.")


def push(folder: Path, repo: str, *, public: bool, endpoint: str | None = None) -> str:
    """Make a repository, and upload a folder to it; return its address.

    Parameters
    ----------
    folder : Path
        An exported folder.
    repo : str
        ``name/model``, which must not exist: what is in a repository is not replaced.
    public : bool
        Whether everyone can read it.
    endpoint : str, optional
        The address of another hub; by default that of ``HF_ENDPOINT``.

    Raises
    ------
    PushError
        When the hub refuses it or does not answer.
    """
    api = HfApi(endpoint=endpoint)
    try:
        made = api.create_repo(repo, private=not public)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload a model of fedddpm-app")
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == _CONFLICT:
            raise PushError(
                f"--push {repo}: there is such a repository already; give another name, or upload the folder yourself "
                f"by `hf upload {repo} {folder}`."
            ) from error
        raise PushError(
            f"--push {repo}: the hub refuses it ({first_line(error)}); check the name and the rights of your token, "
            f"then upload the folder by `hf upload {repo} {folder}`."
        ) from error
    except _NO_ANSWER as error:
        raise PushError(
            f"--push {repo}: the hub does not answer ({first_line(error)}); upload the folder by "
            f"`hf upload {repo} {folder}` when it does."
        ) from error
    return str(made)
