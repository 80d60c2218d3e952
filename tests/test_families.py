"""docs/families.md says what `split` makes of each family; small random models of them do it."""

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
    assert header == ["family", "layers here", "1", "4", "10", "qkv"]
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


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_takes_searched_steps_without_a_warning(family):
    model = made(family).train()
    optimizer = PLASLS(split(model, 4), first_steps=1, joint="never")
    before = weights(model)
    torch.manual_seed(1)
    np.random.seed(1)  # wav2vec2's masks
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=RuntimeWarning)
        for k in range(1 + len(optimizer.param_groups)):
            optimizer.step(closure_of(family, model, k))
    assert optimizer.counts["trials"] > 0
    assert not torch.equal(weights(model), before)
