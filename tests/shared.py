"""Where the tests look for real models and data: the only place that knows."""

import os
from pathlib import Path

from train.places import Kind, variable

BESIDE = Path(__file__).resolve().parents[2] / "shared"
FOLDERS = {"model": BESIDE / "models/bge-small-en-v1.5", "data": BESIDE / "data/glue"}


def real(kind: Kind) -> Path:
    """The folder of a real encoder, or of GLUE: PLASLS_MODEL or PLASLS_DATA, or else the one beside this repository.

    It may not be there; then tests of it are skipped.
    """
    return Path(os.environ.get(variable(kind)) or FOLDERS[kind])
