"""The rooms of train/ and sweeps/: imports go one way, the ground floor is light, each name is spelt in one place."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from train.candidates import CANDIDATES
from train.folder import RunFolder, SweepFolder

ROOT = Path(__file__).parents[1]
GROUND_FLOOR = {
    f"train.{name}"
    for name in (
        "arguments",
        "candidates",
        "code",
        "config",
        "errors",
        "folder",
        "imports",
        "offline",
        "places",
        "stopping",
        "tasks",
    )
}


def modules(*packages: str) -> dict[str, ast.Module]:
    """Name -> syntax tree."""
    files = [path for package in packages for path in sorted((ROOT / package).glob("*.py"))]
    return {f"{path.parent.name}.{path.stem}": ast.parse(path.read_text()) for path in files}


ALL = modules("train", "sweeps")


def imports(name: str, tree: ast.Module) -> Iterator[str]:
    """The modules of these packages that a module imports anywhere, be it within a function."""
    package = name.partition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, [package if node.level else "", node.module]))
            found = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (each for each in found if each in ALL)


def test_imports_go_one_way() -> None:
    graph = {name: set(imports(name, tree)) for name, tree in ALL.items()}
    assert graph["train.run"] >= {"train.checkpoint", "train.parallel", "train.config"}  # it is read as it should be
    tuple(graphlib.TopologicalSorter(graph).static_order())  # a CycleError names the circle
    assert not any("TYPE_CHECKING" in ast.unparse(tree) for tree in ALL.values())


@pytest.mark.parametrize("name", [*modules("sweeps"), *sorted(GROUND_FLOOR)])
def test_sweeps_and_the_ground_floor_stand_on_the_ground_floor(name: str) -> None:
    assert {each for each in imports(name, ALL[name]) if each.startswith("train.")} <= GROUND_FLOOR


def test_sweeps_and_the_ground_floor_are_had_without_torch() -> None:
    names = [*(name for name in modules("sweeps") if name != "sweeps.__init__"), *sorted(GROUND_FLOOR)]
    script = (
        f"import sys, {', '.join(names)}\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def spelt(tree: ast.Module) -> set[str]:
    """Words and file names in a module's texts, but for those in docstrings."""
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {word for node in texts if id(node) not in told for word in str(node.value).replace("/", " ").split()}


def test_a_run_folders_names_are_spelt_in_one_module() -> None:
    files = [path.name for folder in (RunFolder("r"), SweepFolder("s")) for path in vars(folder).values()]
    ours = set(files) - {"r", "s", "lock", "model", "figures", "config.json"}  # the last one is also a model's
    assert ours <= spelt(ALL["train.folder"])
    assert {name: found for name, tree in ALL.items() if (found := spelt(tree) & ours)}.keys() == {"train.folder"}


def test_a_candidates_name_is_spelt_in_its_row_and_nowhere_else() -> None:
    names = {name for row in CANDIDATES.values() for name in (row.key, row.name.split()[0])}
    names -= {"plasls", "handover"}  # the project's and a function's as well
    assert names <= spelt(ALL["train.candidates"])
    assert {name for name, tree in ALL.items() if spelt(tree) & names} == {"train.candidates"}


OPTIM = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted((ROOT / "optim").rglob("*.py"))
}


def absolute(tree: ast.Module) -> set[str]:
    """The packages that a module imports by their own names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


def relative(name: str, tree: ast.Module) -> Iterator[str]:
    """The modules of optim/ that a module of it imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = name.split(".")[: -node.level]
            origin = ".".join([*package, *filter(None, [node.module])])
            modules = [each for alias in node.names if (each := f"{origin}.{alias.name}") in OPTIM]
            yield from modules or [each for each in (origin, f"{origin}.__init__") if each in OPTIM]


@pytest.mark.parametrize("name", OPTIM)
def test_optim_imports_torch_and_the_standard_library_only_and_itself_by_relative_names(name: str) -> None:
    """So the wheel ships it under another name. The Trainer's part asks for transformers beside."""
    allowed = {"torch", *sys.stdlib_module_names} | ({"transformers"} if name == "optim.extras.hf" else set())
    assert absolute(OPTIM[name]) <= allowed


def test_imports_within_optim_go_one_way() -> None:
    graph = {name: set(relative(name, tree)) for name, tree in OPTIM.items()}
    assert graph["optim.line_search"] >= {"optim.move", "optim.search", "optim.turns", "optim.guard.__init__"}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # a CycleError names the circle


def test_numbers_know_no_model() -> None:
    """Criteria, searches, presets and turns work on numbers."""
    numbers = {f"optim.{name}" for name in ("criteria", "search", "presets", "turns", "overruled", "extras.drift")}
    for name in numbers:
        assert "torch" not in absolute(OPTIM[name])
        assert set(relative(name, OPTIM[name])) <= numbers | {"optim.extras.__init__"}
