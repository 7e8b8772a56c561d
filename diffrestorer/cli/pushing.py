"""`diffrestorer push`: a model folder to the Hugging Face hub, with a full card."""

from pathlib import Path

from diffrestorer.cli.job import EXIT_FAILURES, EXIT_USAGE, Run, StopError
from diffrestorer.config.installation import check_torchvision


def main(run: Run) -> int:
    """Upload the folder as one commit, or show what would be uploaded; return the exit status."""
    try:
        check_torchvision()
    except ValueError as error:
        raise StopError(str(error), EXIT_USAGE) from error

    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    from diffrestorer.inference.hub_card import full_card
    from diffrestorer.inference.model_folder import find_model
    from diffrestorer.models.components import check_model_folder

    # Everything that can be refused is refused before the hub is reached.
    arguments = run.arguments
    try:
        validate_repo_id(arguments.repo)
        if "/" not in arguments.repo:
            raise ValueError(f"{arguments.repo!r} is not of the form USER/NAME")
        if not Path(arguments.folder).is_dir():
            raise ValueError(
                f"{arguments.folder} is not a model folder or the output folder of a training"
            )
        folder = find_model(arguments.folder)
        check_model_folder(folder)
        card = full_card(folder, arguments.repo, arguments.license, arguments.scores)
    except ValueError as error:
        raise StopError(str(error), EXIT_USAGE) from error

    files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    if arguments.dry_run:
        run.write(card)
        for name, path in files.items():
            run.write(f"{path.stat().st_size:12,}  {name}")
        return 0
    address = _upload(arguments.repo, files, card, arguments.private)
    run.write(address)
    return 0


def _files(folder: Path) -> list[Path]:
    """Return the files of a model folder but its card, by name; hidden ones stay here."""
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path != folder / "README.md":
            found.append(path)
    return found


def _upload(repo: str, files: dict[str, Path], card: str, private: bool) -> str:
    """Upload files and card in one commit; return the address of the model.

    Raises:
        StopError: there is no token, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise StopError("the hub needs a token: hf auth login, or HF_TOKEN=...", EXIT_USAGE)
    operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    operations.append(CommitOperationAdd("README.md", card.encode()))
    api = HfApi()
    try:
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        api.create_commit(repo, operations, commit_message="Upload a Diff-Restorer model")
    except Exception as error:  # of the hub, of the connection to it, or of the upload
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StopError(f"{repo} could not be uploaded: {reason}", EXIT_FAILURES) from error
    return address
