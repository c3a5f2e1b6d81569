"""Push a student's folder to a hub repository."""

from pathlib import Path

from rankdistillm.errors import InputError


def push(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload the folder to the model repository ``USER/NAME``; returns its address.

    The repository is made if it does not exist; ``private`` counts only then. Files that the folder
    lacks stay in the repository. The token is the one that huggingface_hub finds: ``HF_TOKEN``, or
    that of its login. Hidden files are not uploaded.

    Raises `InputError` for a folder without a model, an impossible name, a missing or refused
    token, and without a connection.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    folder = Path(folder)
    if not any(folder.glob("*.safetensors")) and not any(folder.rglob("*.onnx")):
        raise InputError(f"{folder}: no folder with a model (*.safetensors or *.onnx); give one")
    api = HfApi(token=check_repository(repo))
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repo,
            commit_message="Upload a student of rankdistillm",
            ignore_patterns=[".*", "**/.*"],
        )
    except OfflineModeIsEnabled as error:
        raise InputError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise InputError(
            f"{repo}: {_refusal(status, error.server_message, api.endpoint)}"
        ) from error
    except ValueError as error:  # huggingface_hub's word for metadata that the hub refuses
        raise InputError(f"{repo}: {' '.join(str(error).split())}") from error
    except HTTPError as error:
        raise InputError(
            f"{api.endpoint}: no connection ({error}); run the same command again"
        ) from error
    except RuntimeError as error:  # what huggingface_hub makes of an error in a large file
        reason = " ".join(f"{error} {error.__cause__}".split())
        raise InputError(f"{repo}: {reason}; run the same command again") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error})") from error
    return str(address)


def check_repository(repo: str) -> str:
    """Return the token for the repository, without asking the hub.

    Raises `InputError` for an impossible name and a missing token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"repo={repo}: {error}") from error
    if repo.count("/") != 1:
        raise InputError(f"repo={repo} is not a repository; write USER/NAME")
    token = get_token()
    if token is None:
        raise InputError(
            "no token for the hub; set HF_TOKEN to one that may write, or run `hf auth login`"
        )
    return token


def _refusal(status: int, message: str | None, endpoint: str) -> str:
    said = f"{endpoint} says {status}" + (f", {message}" if message else "")
    if status == 401:
        return f"the token was refused ({said}); set HF_TOKEN to a valid one"
    if status in (403, 404):
        return f"the token may not write there ({said}); choose a repository of its owner"
    return f"not pushed ({said})"
