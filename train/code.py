"""Which code runs: its commit. Nothing here imports torch."""

import functools
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


@functools.cache
def commit() -> str:
    """The commit of this repository when it was first asked for, and whether files differ from it."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git repository)"
