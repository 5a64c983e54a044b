"""What a command may write over: nothing, unless it was told to."""

from pathlib import Path


def refuse_existing(path: str | Path, overwrite: bool, flag: str) -> Path:
    """The path, if nothing is there: no file, and no folder with something in it.

    Args:
        path: file or folder that is about to be written.
        overwrite: write all the same.
        flag: the command's flag for the path, for the message.

    Raises:
        FileExistsError: names the path and both ways out.
    """
    path = Path(path)
    exists = any(path.iterdir()) if path.is_dir() else path.exists()
    if exists and not overwrite:
        raise FileExistsError(f"{path} exists and is not empty: name another {flag}, or give --overwrite.")
    return path
