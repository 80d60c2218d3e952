"""docs/families.md says what `split` and trials of a suffix make of each family; small random models of them do it."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import optim
from optim import split
from tests.small import classic

from .families import FAMILIES, closure_of
from .small import weights

PLASLS = classic(optim.PLASLS)

DOCUMENT = Path(__file__).parent.parent / "docs/families.md"


def table():
    """The rows of the document's table: family, then its cells."""
    rows = [line.strip("| \n").split("|") for line in DOCUMENT.read_text().splitlines() if line.startswith("|")]
    header, _, *body = [[cell.strip() for cell in row] for row in rows]
    assert header == ["family", "layers here", "1", "4", "10", "qkv", "suffix trials"]
    return {row[0].split(" (")[0]: row for row in body}


def made(family):
    torch.manual_seed(0)
    return FAMILIES[family]()


def shown(groups):
    """A component's name as the table has it: "decoder 2-3" is decoder_layers_2-3."""
    return ", ".join(re.sub(r"_?layers?_", " ", group["name"]).replace("- ", "-").strip() for group in groups)


def test_the_table_has_every_family():
    assert list(table()) == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_components_are_those_of_the_table(family):
    model, row = made(family), table()[family]
    found = []
    for components in (1, 4, 10, "qkv"):
        try:
            groups = split(model, components)
        except ValueError as error:
            most = re.search(r"at most (\d+)", str(error))
            found.append(f"at most {most.group(1)}" if most else "one weight" if "one weight" in str(error) else "none")
            continue
        found.append(shown(groups))
        assert len(groups) == (components if isinstance(components, int) else 4)
    assert found == row[2:6]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("components", [2, 3, 4, 5, 7, 10, 13, "qkv"])
def test_every_trainable_parameter_is_in_one_component_in_order_and_under_its_layers_name(family, components):
    model = made(family)
    try:
        groups = split(model, components)
    except ValueError:  # which the table's test holds against the document
        return
    grouped = [id(p) for group in groups for p in group["params"]]
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(trainable)
    assert len(groups) == (4 if components == "qkv" else components)
    if components in (2, "qkv"):
        return
    names = [group["name"] for group in groups]
    assert names[0] == "embeddings" or "embeddings" not in names
    assert names[-1] == "head" or "head" not in names
    for group in groups:
        of_layers = re.findall(r"(\w+_)?layers?_(\d+)[af]?(?:-(\d+))?", group["name"])
        if of_layers:
            stacks = {stack for stack, *_ in of_layers}
            within = [trainable[id(p)] for p in group["params"]]
            for stack in ("encoder_", "decoder_", "text_", "vision_") if len(stacks) == 1 else ():
                if stacks == {stack}:
                    assert all(re.search(rf"(^|\.){stack[:-1]}(_model)?\.", name) for name in within)
        else:
            assert group["name"] in ("embeddings", "head")
    # Numbers of layers rise within each stack.
    ends = [re.match(r"(.*?)layers?_(\d+)", name) for name in names]
    by_stack: dict[str, list[int]] = {}
    for end in filter(None, ends):
        by_stack.setdefault(end.group(1), []).append(int(end.group(2)))
    assert all(numbers == sorted(numbers) for numbers in by_stack.values())


def run(family, suffix):
    """Weights after three cycles, calls of modules without parts in each component's last search, and warnings."""
    model = made(family).train()
    called = 0

    def counted(forward):
        def call(*args, **kwargs):
            nonlocal called
            called += 1
            return forward(*args, **kwargs)

        return call

    for module in model.modules():
        if next(module.children(), None) is None:
            module.forward = counted(module.forward)
    optimizer = PLASLS(split(model, 4), first_steps=1, joint="never", suffix=suffix)
    calls = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(1)
        np.random.seed(1)  # wav2vec2's masks
        for k in range(1 + 3 * len(optimizer.param_groups)):
            called = 0
            optimizer.step(closure_of(family, model, k))
            calls[optimizer.search.component] = called
    del calls["all"]
    return weights(model), calls, [str(warning.message) for warning in caught if "trials" in str(warning.message)]


@pytest.mark.parametrize("family", FAMILIES)
def test_trials_of_a_suffix_give_the_bits_of_the_whole_and_are_run_where_the_table_says_so(family):
    in_full, calls, _ = run(family, suffix=False)
    with_suffix, fewer, warned = run(family, suffix=True)
    assert torch.equal(in_full, with_suffix)
    assert not warned
    assert suffixes(calls, fewer) == table()[family][6]


def suffixes(calls, fewer):
    """In words, for which components the trials have left modules out; nothing precedes the first one."""
    first, *others = calls
    assert list(fewer) == [first, *others]
    exact = [{"name": name} for name in others if fewer[name] < calls[name]]
    return "exact" if len(exact) == len(others) else f"exact for {shown(exact)}" if exact else "off"
