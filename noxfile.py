"""Try the wheel in new environments: `make wheel-check`. Each one holds the wheel, torch, NumPy and pytest, no more.

The tests run with this folder's pytest settings, but a warning is no error: each torch has warnings of its own code.
"""

import re
import shutil
from pathlib import Path

import nox

# Tests of the library that need nothing but these packages.
TESTS = """averaging closures contract criteria evaluation failures follow generic guard line_search move presets resume
rounding salsa search states step tensors turns twins_of_the_page written_weights"""
HELPERS = ["__init__", "contract", "reference", "searching", "small", "twins"]  # which they import
MODULES = [*HELPERS, *(f"test_{each}" for each in TESTS.split())]
OLDEST = nox.project.load_toml("pyproject.toml")["project"]["dependencies"][0].replace(">=", "==") + ".*"
HERE = Path(__file__).parent


def as_a_user_imports_it(code: str) -> str:
    """A test with `plasls`, the installed package, in the place of this folder's `optim`."""
    return re.sub(r"^(\s*)import optim$", r"\1import plasls as optim", code, flags=re.MULTILINE).replace(
        "from optim", "from plasls"
    )


@nox.session
def build(session: nox.Session) -> None:
    """The wheel and the sdist in dist/, and what PyPI would say of them."""
    session.install("build==1.6.1", "twine==7.0.0")
    for old in (HERE / "dist").glob("plasls-*"):
        old.unlink()
    session.run("python", "-m", "build", "--outdir", "dist")
    session.run("twine", "check", "--strict", *map(str, (HERE / "dist").glob("plasls-*")))


@nox.session(requires=["build"])
@nox.parametrize(
    "python,torch",
    [
        nox.param("3.11", OLDEST, id="3.11-oldest"),
        *(nox.param(python, "torch", id=f"{python}-newest") for python in ("3.11", "3.12", "3.13", "3.14")),
    ],
)
def wheel(session: nox.Session, torch: str) -> None:
    """The optimizer tests on the wheel, with the oldest torch that pyproject.toml allows and with the newest."""
    (built,) = (HERE / "dist").glob("plasls-*.whl")
    session.install(torch, "numpy", "pytest", "pytest-timeout", str(built))
    tests = Path(session.create_tmp()) / "tests"
    shutil.rmtree(tests, ignore_errors=True)  # an earlier call may have had other tests
    tests.mkdir()
    for name in MODULES:
        code = (HERE / "tests" / f"{name}.py").read_text(encoding="utf-8")
        (tests / f"{name}.py").write_text(as_a_user_imports_it(code), encoding="utf-8")
    session.chdir(tests.parent)  # away from optim/
    session.run("python", "-c", "import plasls, sys, torch; print(sys.version, torch.__version__, plasls.__file__)")
    session.run("python", "-m", "pytest", "-p", "no:cacheprovider", "-W", "default", "tests", *session.posargs)
