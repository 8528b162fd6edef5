"""Upload of a model folder to the Hugging Face Hub: which files, and one commit on top of what is there.

The token is that of `huggingface_hub` (HF_TOKEN, or `hf auth login`); it is in no message and in no file.
"""

import fnmatch
import logging
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caldera import __version__
from caldera.errors import InputError, ModelFormatError, UsageError
from caldera.export.model_card import CARD_FILE, HubCard
from caldera.files.hub_errors import HubError, http_error, hub_errors, reading_answer
from caldera.formats.safetensors_files import INDEX, weight_files
from caldera.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

log = logging.getLogger(__name__)

_MODEL_FILES = (
    "caldera.json", "config.json", "generation_config.json", "model*.safetensors", INDEX, "tokenizer.json",
    "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Files that make a model; those of an earlier upload are removed if the new model does not have them."""

_TEXTS = (CARD_FILE, "LICENSE*", "NOTICE*")
_TOKEN_PAGE = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True, slots=True)
class UploadFile:
    """File of an upload."""

    name: str
    content: Path | bytes
    size: int


@dataclass(frozen=True, slots=True)
class Upload:
    """Files to upload, and what stays behind."""

    files: tuple[UploadFile, ...]
    left_out: dict[str, str]
    """Reason by name."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Target:
    """Repository as it is before an upload."""

    repo_id: str
    commit: str | None
    """Its latest commit; None if it does not exist yet."""

    private: bool
    files: frozenset[str] = frozenset()

    def removed_by(self, upload: Upload) -> list[str]:
        """Return the files of an earlier model that the new one does not have."""
        names = {file.name for file in upload.files}
        top_level = {name for name in self.files if "/" not in name}
        return sorted(name for name in top_level - names if _matches(name, _MODEL_FILES))


def select_files(folder: Path, card: str) -> Upload:
    """Return the files of a model folder to upload: its model, license and card.

    Args:
        folder: A checked model folder.
        card: Text of README.md.

    Raises:
        ModelFormatError: A file of the model is a link out of the folder.
        InputError: A file contains the token.
    """
    weights = {file.name for file in weight_files(folder)}
    files, left_out = [UploadFile(CARD_FILE, card.encode(), len(card.encode()))], {}
    for path in sorted(folder.iterdir()):
        if reason := _why_left_out(path, weights):
            left_out[path.name] = reason
        elif not path.resolve().is_relative_to(folder.resolve()):
            raise ModelFormatError(
                f"{path} is a link out of the folder, which is not followed; copy the folder with its content: "
                f"cp -rL {folder} FOLDER"
            )
        elif path.name != CARD_FILE:
            files.append(UploadFile(path.name, path, path.stat().st_size))
    _reject_token(files)
    return Upload(tuple(files), left_out)


def _why_left_out(path: Path, weights: set[str]) -> str:
    """Return why a file is not uploaded; empty if it is."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_dir():
        return "a folder"
    if path.suffix == ".safetensors":
        return "" if path.name in weights else "not among the weights that are loaded"
    return "" if _matches(path.name, (*_MODEL_FILES, *_TEXTS)) else "no file of a model"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _reject_token(files: Sequence[UploadFile]) -> None:
    """Raise InputError if a file to upload contains the token."""
    from huggingface_hub import get_token

    token = (get_token() or "").encode(errors="replace")
    for file in files if token else ():
        if _contains(file, token):
            raise InputError(f"{file.name} contains your token of the Hub; remove it there")


def _contains(file: UploadFile, text: bytes) -> bool:
    """Return whether a file of any size contains a text."""
    if isinstance(file.content, bytes):
        return text in file.content
    if file.size == 0:
        return False
    with (
        file.content.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(text) >= 0


def check_repo_id(text: str) -> str:
    """Return the name of a repository, ORG/NAME.

    Raises:
        UsageError: It is none.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # not in its __all__

    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise UsageError(f"{text!r} is no name of a repository: {error}") from None
    if "/" not in text:
        raise UsageError(f"{text!r} lacks the user or organization; give ORG/{text}")
    return text


def read_hub_card(repo_id: str, revision: str) -> HubCard:
    """Return what the card of a model on the Hub states; empty, with a warning, if it cannot be read."""
    try:
        with hub_errors(f"read the license of {repo_id}", repo_id), reading_answer(repo_id):
            card: Any = _api().model_info(repo_id, revision=revision).card_data
            data = card.to_dict() if card else {}
            languages = data.get("language") or ()
            return HubCard(
                license=data.get("license_name") or data.get("license"),
                languages=(languages,) if isinstance(languages, str) else tuple(languages),
            )
    except HubError as error:
        log.warning("%s; so the card calls it unknown", error)
        return HubCard()


def find_target(repo_id: str, *, private: bool) -> Target:
    """Return the repository to upload to, after checking that the token may write there.

    Args:
        repo_id: ORG/NAME.
        private: Whether nobody else may see it.

    Raises:
        HubError: There is no token, or it is invalid or may only read; the name belongs to others; or the repository is
            public, and `private` is requested.
    """
    from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError

    api = _api()
    with hub_errors(f"upload to {repo_id}", repo_id):
        try:
            with reading_answer("the owner of the token"):
                _check_account(repo_id, api.whoami())
            with reading_answer(repo_id):
                info = api.model_info(repo_id)
                names = frozenset(sibling.rfilename for sibling in info.siblings or ())
        except LocalTokenNotFoundError:
            raise HubError(
                f"cannot upload to {repo_id}: there is no token; create one that may write on {_TOKEN_PAGE}, and set "
                "HF_TOKEN or run: hf auth login"
            ) from None
        except RepositoryNotFoundError:
            return Target(repo_id, None, private)
    if private and not info.private:
        raise HubError(
            f"cannot upload to {repo_id} as private: it exists and is public; make it private in its settings first"
        )
    return Target(repo_id, info.sha, bool(info.private), names)


def _check_account(repo_id: str, account: dict[str, Any]) -> None:
    """Raise HubError if an account's token may only read, or a name belongs to others."""
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise HubError(
            f"cannot upload to {repo_id}: the token may only read; create one that may write on {_TOKEN_PAGE}"
        )
    owner = repo_id.split("/")[0]
    names = [account["name"], *(org["name"] for org in account.get("orgs") or ())]
    if owner not in names:
        raise HubError(
            f"cannot upload to {repo_id}: the token is of {account['name']}, who is not in {owner}; names that it may "
            f"use: {', '.join(names)}"
        )


def upload_files(upload: Upload, target: Target, message: str, progress: Progress) -> str:
    """Upload files in one commit, and return its address; large files that the Hub has already are not sent again.

    Args:
        upload: The files.
        target: The repository; it is created if it does not exist.
        message: Title of the commit.
        progress: Reports the megabytes.

    Raises:
        HubError: The Hub rejects the upload, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api, repo_id = _api(), target.repo_id
    additions = [
        CommitOperationAdd(
            file.name, str(file.content) if isinstance(file.content, Path) else file.content
        )
        for file in upload.files
    ]
    removals = [CommitOperationDelete(name) for name in target.removed_by(upload)]
    with _upload_errors(repo_id):
        if target.commit is None:
            # One that somebody has created since may be public, and is not written to.
            api.create_repo(repo_id, private=target.private)
        _send_weights(api, repo_id, additions, progress)
        commit = api.create_commit(
            repo_id, [*additions, *removals], commit_message=message, parent_commit=target.commit
        )
    return commit.commit_url


def _send_weights(
    api: "HfApi", repo_id: str, additions: "Sequence[CommitOperationAdd]", progress: Progress
) -> None:
    """Send the weights, one file after the other, before the commit that names them."""
    weights = [addition for addition in additions if addition.path_in_repo.endswith(".safetensors")]
    ends = [
        -(-size // 1_000_000)
        for size in accumulate(addition.upload_info.size for addition in weights)
    ]
    with progress.task(f"MB to {repo_id}", ends[-1]) as advance:
        for addition, start, end in zip(weights, [0, *ends], ends, strict=False):
            api.preupload_lfs_files(repo_id, [addition], free_memory=False)
            advance(end - start, detail=addition.path_in_repo)


@contextmanager
def _upload_errors(repo_id: str) -> Iterator[None]:
    """Turn errors of an upload into a HubError with advice."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    with hub_errors(f"upload to {repo_id}", repo_id), reading_answer(repo_id):
        try:
            yield
        except (OfflineModeIsEnabled, JSONDecodeError):
            raise
        except (http_error(), OSError, RuntimeError, ValueError) as error:
            # huggingface_hub wraps what a thread of an upload raises; hf_xet has no exceptions of its own.
            cause = (
                error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            )
            if reason := _describe_rejection(cause):
                raise HubError(f"cannot upload to {repo_id}: {reason}") from None
            raise cause from None


def _describe_rejection(error: BaseException) -> str:
    """Return why the Hub takes no upload, and what to do; empty for what may happen to a download, too."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if error.response.request.method == "PUT" and status < 500:
            return f"its storage answers {status}; run again, files that it has are not sent again"
        if status == 403:
            return f"the token may not write there; create one that may on {_TOKEN_PAGE}"
        if status in (409, 412):
            return "it was changed meanwhile; run again"
        return f"{status} {error.server_message}" if status in (400, 402, 413, 422) else ""
    if isinstance(error, http_error()):
        return ""
    text = " ".join(str(error).split())
    again = (
        "" if isinstance(error, ValueError) else "; run again, files that it has are not sent again"
    )
    return f"{text}{again}"


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(library_name="caldera", library_version=__version__)
