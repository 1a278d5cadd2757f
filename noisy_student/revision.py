"""Which revision of the code is at work."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any


@cache  # of the code that was imported, whatever is committed while it runs
def git_revision() -> str | None:
    """The code's revision, with "+" if files were changed since; None where git lacks this file.

    ``git describe --dirty`` would rewrite the index, and a commit made at the same moment would
    fail.
    """
    git = ["git", "-C", os.fspath(Path(__file__).parent)]
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "timeout": 10}
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], **options)
        revision = subprocess.run(
            [*git, "describe", "--always", "--abbrev=12"], **options
        ).stdout.strip()
        changed = subprocess.run(
            [
                *git,
                "--no-optional-locks",
                "status",
                "--porcelain",
                "--untracked-files=no",
                "--",
                ".",
            ],
            **options,
        ).stdout
        return f"{revision}+" if changed else revision
    except (OSError, subprocess.SubprocessError):
        return None
