"""What is given to the Hugging Face hub. The key is that of `hf auth login`, or HF_TOKEN; it is shown nowhere."""

from collections.abc import Sequence
from pathlib import Path

from foundation.errors import DataError, masked
from foundation.stores import HUB_ID


def push(directory: Path, repo_id: str, kind: str, message: str, files: Sequence[str] = ("*",), private: bool = False) -> str:
    """Upload a directory's files as one commit, and return the address. What lay there before under these names goes.

    Args:
      repo_id: OWNER/NAME; the repository is made, if there is none.
      kind: "model" or "dataset".
      message: of the commit.
      files: patterns of their names.
      private: only the owner sees it; of one that is there already this is asked, and not changed.

    Raises:
      DataError: the name is none, the hub can't be asked or refuses, or a repository that should be private is public.
    """
    check_id(repo_id)
    import huggingface_hub  # here: it takes its time

    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True)
        public = private and not api.repo_info(repo_id, repo_type=kind).private
        if not public:
            api.upload_folder(
                repo_id=repo_id,
                folder_path=directory,
                repo_type=kind,
                commit_message=message,
                allow_patterns=list(files),
                delete_patterns=list(files),
            )
    except Exception as error:  # of the hub's own kinds, of its HTTP library's, of the disk's
        said = masked(" ".join(str(error).split()))
        if key := huggingface_hub.get_token():
            said = said.replace(key, "***")
        raise DataError(
            f"{repo_id}: the hub doesn't take it ({type(error).__name__}: {said[:300]}); log in with a key that may write (`hf auth login`, or HF_TOKEN), "
            "and choose an owner and name that are yours"
        ) from None
    if public:
        raise DataError(
            f"{repo_id} is there already, and public: make it private on the hub first, or choose another name; nothing was uploaded"
        )
    return str(url)


def check_id(name: str) -> None:
    """Raise DataError if a name is no repository's."""
    if not HUB_ID.fullmatch(name):
        raise DataError(f"{name!r} is no name on the hub: write OWNER/NAME")
