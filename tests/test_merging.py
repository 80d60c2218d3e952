"""optim/merging.py: Algorithm 1, on hand-made cases."""

import torch
from optim.merging import merge_smallest


def groups(*sizes, **settings):
    return [
        {"name": name, "lr": size, "params": [torch.zeros(1)], **settings}
        for name, size in zip("abcdef", sizes, strict=False)
    ]


def test_the_two_smallest_merge_and_take_the_mean():
    made = groups(1e-3, 1e-13, 1e-5, 1e-4)
    parameters = [p for group in made for p in group["params"]]
    assert merge_smallest(made, 1e-12) == ("b", "c")
    assert [group["name"] for group in made] == ["a", "b+c", "d"]
    assert [group["lr"] for group in made] == [1e-3, (1e-13 + 1e-5) / 2, 1e-4]
    assert [p is q for p, q in zip(parameters, (p for g in made for p in g["params"]), strict=True)] == [True] * 4


def test_the_merged_component_stands_where_the_first_stood():
    made = groups(1e-5, 1e-3, 1e-13)
    assert merge_smallest(made, 1e-12) == ("a", "c")
    assert [group["name"] for group in made] == ["a+c", "b"]


def test_one_merge_a_step():
    made = groups(1e-13, 1e-14, 1e-15, 1e-3)
    merge_smallest(made, 1e-12)
    assert [group["name"] for group in made] == ["a", "b+c", "d"]


def test_a_step_size_at_the_threshold_merges_and_one_above_does_not():
    assert merge_smallest(groups(1e-12, 1e-3), 1e-12) is not None
    assert merge_smallest(groups(1.01e-12, 1e-3), 1e-12) is None


def test_a_threshold_of_zero_never_merges():
    assert merge_smallest(groups(0.0, 1e-3), 0.0) is None


def test_one_component_is_left_alone():
    assert merge_smallest(groups(1e-15), 1e-12) is None


def test_components_with_other_settings_are_not_merged():
    made = groups(1e-13, 1e-5, 1e-3, weight_decay=0.0)
    made[1]["weight_decay"] = 0.1
    assert merge_smallest(made, 1e-12) == ("a", "c")
