"""The wheel: what is in it, and that it works with torch alone."""

import ast
import re
import runpy
import subprocess
import sys
from email.parser import Parser
from pathlib import Path

import pytest

from optim import __version__

HERE = Path(__file__).parents[1]


TORCH_ONLY = """
import sys
from importlib.machinery import PathFinder

sys.path.insert(0, {installed!r})


class OnlyTorch(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {refused!r} else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyTorch

"""
AFTERWARDS = """
assert loss < 0.5, loss
assert optimizer.counts["searches"] > 1
assert not any(map(OnlyTorch.find_spec, ("transformers", "optim", "train")))
import plasls
print(plasls.__file__)
"""


OURS = [path for path in (HERE / "optim").rglob("*.*") if path.suffix in (".py", ".typed")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The installed wheel: a folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools writes beside what it builds
    for name in ("guard", "extras"):
        (source / "optim" / name).mkdir(parents=True)
    for file in (*(HERE / name for name in ("pyproject.toml", "README.md", "LICENSE")), *OURS):
        (source / file.relative_to(HERE)).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    common = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *common, "--wheel-dir", folder, source], check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *common, "--target", folder / "installed", built], check=True, capture_output=True)
    return folder / "installed"


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    info = wheel / f"plasls-{__version__}.dist-info"
    assert {path.name for path in wheel.iterdir()} == {"plasls", info.name}
    package = wheel / "plasls"
    files = {path.relative_to(package) for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert files == {path.relative_to(HERE / "optim") for path in OURS}
    assert Path("py.typed") in files
    metadata = Parser().parsestr((info / "METADATA").read_text("utf-8"))
    needed = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert needed == ["torch>=2.7"]
    assert metadata.get_all("Provides-Extra") == ["hf"]
    assert (metadata["Version"], metadata["License-Expression"]) == (__version__, "MIT")
    assert metadata.get_payload().strip() == (HERE / "README.md").read_text("utf-8").strip()
    assert (info / "licenses/LICENSE").read_bytes() == (HERE / "LICENSE").read_bytes()


def test_the_readmes_example_runs_from_the_wheel_with_torch_alone(wheel, tmp_path):
    readme = (HERE / "README.md").read_text("utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "print(" in block)
    pinned = re.findall(r"^([A-Za-z_\-]+)==", (HERE / "requirements.txt").read_text("utf-8"), re.MULTILINE)
    refused = {"optim", "yaml", *(name.replace("-", "_") for name in pinned)} - {"torch", "numpy"}
    script = TORCH_ONLY.format(installed=str(wheel), refused=refused) + example.rstrip() + AFTERWARDS
    ran = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.splitlines()[-1]).is_relative_to(wheel)


def test_without_transformers_the_trainer_says_what_to_install(wheel, tmp_path):
    script = TORCH_ONLY.format(installed=str(wheel), refused={"transformers", "optim"}) + "import plasls.hf"
    ran = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ran.stderr.splitlines()[-1].endswith("not installed: pip install transformers accelerate")


def test_the_tests_that_wheel_check_copies_import_nothing_that_is_not_copied_or_installed(monkeypatch):
    monkeypatch.chdir(HERE)
    copied = set(runpy.run_path("noxfile.py")["MODULES"])
    allowed = {"optim", "torch", "numpy", "pytest", *sys.stdlib_module_names}
    for name in copied:
        for node in ast.walk(ast.parse((HERE / "tests" / f"{name}.py").read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                package, _, module = f"tests.{node.module}".partition(".") if node.level else node.module.partition(".")
                assert package in allowed or (package == "tests" and module in copied), f"{name}: {node.module}"
            elif isinstance(node, ast.Import):
                assert {each.name.partition(".")[0] for each in node.names} <= allowed, name


def test_what_sweeps_install_is_pinned_and_is_enough_to_run_and_analyse_them():
    def names(file):
        return set(re.findall(r"^([A-Za-z_\-]+)", (HERE / file).read_text("utf-8"), re.MULTILINE))

    everything, for_sweeps = names("requirements.txt"), names("requirements-sweeps.txt")
    assert for_sweeps < everything
    refused = {"IPython", *(name.replace("-", "_") for name in everything - for_sweeps)} - {"setuptools", "sphinx"}
    script = f"""
import sys
sys.modules |= dict.fromkeys({sorted(refused)}, None)
import sweeps.__main__, sweeps.grid, train.run, train.builders, train.peers
import analysis.exhibits, analysis.sentences, analysis.sources.folder
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=HERE, check=False)
    assert ran.returncode == 0, ran.stderr
