"""Downloads a model from the Hugging Face hub: the files of transformers' layout, and nothing else.

huggingface_hub reads HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE. It tries again if a connection breaks.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

from inference.interface.directories import check_config, check_directory
from inference.interface.errors import SourceError
from inference.interface.progress import Amount, follow
from inference.interface.weights import INDEX, SINGLE_FILE, check_file, describe_missing_weights, shards
from inference.models.conversion import size_of

_log = logging.getLogger("tiller.worker")

# No weights. Repositories have many other files, such as the same weights in other layouts.
_SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "chat_templates/*.jinja",
    INDEX,
    "LICENSE*",
]


def download(model_id: str, revision: str | None, cache_directory: Path) -> Path:
    """The directory of the model in the hub's cache. Downloads what is missing there.

    `revision`: a branch, a tag or a commit. None: the main branch. Raises SourceError.
    """
    disable_progress_bars()  # _logging_progress shows the progress
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log every request
    try:
        directory = _fetch(model_id, revision, cache_directory, _SMALL_FILES)
        check_config(directory)
        weights = shards(directory / INDEX) if (directory / INDEX).is_file() else [SINGLE_FILE]
        _drop_broken(directory, weights)
        # The directory's name is the commit. A branch may move meanwhile.
        with _logging_progress(model_id, cache_directory, _missing_bytes(model_id, directory, weights)):
            _fetch(model_id, directory.name, cache_directory, weights)
        if not (directory / weights[0]).is_file():
            raise SourceError(_describe_repository(model_id, directory.name))
    except SourceError:
        raise
    except (
        Exception
    ) as error:  # huggingface_hub raises errors of its HTTP library, which depends on its version
        raise SourceError(_describe(error, model_id, revision, cache_directory)) from error
    return check_directory(directory)


def find_cached(model_id: str, revision: str | None, cache_directory: Path) -> Path:
    """The directory of a complete model in the cache. Asks no hub. Raises SourceError if there is none."""
    try:
        directory = snapshot_download(
            model_id, revision=revision, cache_dir=cache_directory, local_files_only=True
        )
    except LocalEntryNotFoundError as error:
        raise SourceError(_describe(error, model_id, revision, cache_directory)) from None
    return check_directory(Path(directory))


def check_download(model_id: str, revision: str | None, cache_directory: Path) -> int:
    """The bytes that `download` would fetch from the hub. Fetches nothing.

    Raises SourceError if the hub does not give the model to this user, or cannot be reached.
    """
    disable_progress_bars()
    try:
        files = snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache_directory,
            allow_patterns=[*_SMALL_FILES, "*.safetensors"],
            dry_run=True,
        )
        # Everybody may list the files of a gated model, but not read them.
        get_hf_file_metadata(hf_hub_url(model_id, "config.json", revision=revision))
    except Exception as error:  # as in `download`
        raise SourceError(_describe(error, model_id, revision, cache_directory)) from error
    names = [file.filename for file in files]
    if INDEX not in names and SINGLE_FILE not in names:
        raise SourceError(describe_missing_weights(f"{model_id} on the Hugging Face hub", names))
    return sum(file.file_size or 0 for file in files if file.will_download and _is_wanted(file.filename))


def _is_wanted(name: str) -> bool:
    """Whether `download` fetches it. Other layouts of the same weights may lie beside it."""
    is_weights = name.endswith(".safetensors")
    return not is_weights or bool(re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", name))


def _fetch(model_id: str, revision: str | None, cache: Path, names: list[str]) -> Path:
    """Downloads the files that the cache lacks. Returns the directory of the snapshot."""
    return Path(snapshot_download(model_id, revision=revision, cache_dir=cache, allow_patterns=names))


def _missing_bytes(model_id: str, snapshot: Path, names: list[str]) -> int:
    """How many bytes have to be downloaded. 0 if the hub cannot be reached."""
    cache = snapshot.parents[2]
    try:
        files = snapshot_download(
            model_id, revision=snapshot.name, cache_dir=cache, allow_patterns=names, dry_run=True
        )
    except DryRunError:
        return 0
    return sum(file.file_size or 0 for file in files if file.will_download)


@contextmanager
def _logging_progress(model_id: str, cache: Path, total: int) -> Iterator[None]:
    """Logs how much has been downloaded, if there is anything to download."""
    if not total:
        yield
        return
    blobs = cache / repo_folder_name(repo_id=model_id, repo_type="model") / "blobs"
    before = size_of(blobs.glob("*"))  # a download that broke off has left a part of its files

    def measure() -> Amount:
        return min(max(0, size_of(blobs.glob("*")) - before), total), total

    start = time.monotonic()
    _log.info(
        "downloading %(model)s from the Hugging Face hub: %(total_bytes)d bytes",
        {"model": model_id, "total_bytes": total},
    )
    with follow(f"downloading {model_id}", measure, "bytes"):
        yield
    seconds = round(time.monotonic() - start, 1)
    _log.info("downloaded %(model)s in %(seconds)s seconds", {"model": model_id, "seconds": seconds})


def _drop_broken(directory: Path, names: list[str]) -> None:
    """Removes cached files that are not complete, so that they are downloaded again."""
    for name in names:
        file = directory / name
        if constants.HF_HUB_OFFLINE or not file.is_file():
            continue
        try:
            check_file(file)
        except SourceError as error:
            _log.warning("%s; it is downloaded again", error)
            file.resolve().unlink(missing_ok=True)
            file.unlink(missing_ok=True)


def _describe_repository(model_id: str, commit: str) -> str:
    """Says why a repository without the expected weights cannot be served."""
    place = f"{model_id} on the Hugging Face hub"
    if constants.HF_HUB_OFFLINE:
        return f"{place}: the cache has no weights, and HF_HUB_OFFLINE forbids to download them"
    names = HfApi().list_repo_files(model_id, revision=commit)
    return describe_missing_weights(place, names)


def _describe(error: Exception, model_id: str, revision: str | None, cache: Path) -> str:
    """The error in one line, for an operator who may not know the hub."""
    what = f"{model_id} at revision {revision}" if revision else model_id
    prefix = f"{what} is not a directory and cannot be downloaded from the Hugging Face hub"
    match error:
        case DryRunError(__cause__=HfHubHTTPError() as cause):
            return _describe(cause, model_id, revision, cache)
        case GatedRepoError():
            return f"{prefix}: its terms must be accepted there, and HF_TOKEN must be of that account"
        case RevisionNotFoundError():
            return f"{prefix}: {model_id} has no revision {revision} (model.revision)"
        case RepositoryNotFoundError():
            return f"{prefix}: it does not exist, or it is private and needs a valid HF_TOKEN"
        case LocalEntryNotFoundError() | DryRunError() if constants.HF_HUB_OFFLINE:
            return f"{prefix}: HF_HUB_OFFLINE is set, and {cache} does not have all of its files"
        case (
            LocalEntryNotFoundError(__cause__=Exception() as cause)
            | DryRunError(__cause__=Exception() as cause)
        ):
            return f"{prefix}: {constants.ENDPOINT} cannot be reached: {_first_line(cause)}"
        case HfHubHTTPError(response=response):
            return f"{prefix}: {constants.ENDPOINT} answers {response.status_code}: {_first_line(error)}"
    return f"{prefix}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
