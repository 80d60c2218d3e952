"""optim/settings.py: each setting is written once, checked, and shown."""

import inspect
from dataclasses import fields

import pytest
import torch
from optim.settings import AdamSettings, ComponentSettings, Settings

from optim import PLASLS, SGDSLS, AdamSLS

OF = {SGDSLS: (Settings,), AdamSLS: (AdamSettings, Settings), PLASLS: (ComponentSettings, AdamSettings, Settings)}


def weight():
    return [torch.nn.Parameter(torch.ones(2))]


@pytest.mark.parametrize("optimizer", OF)
def test_help_and_signature_show_every_setting_with_its_default(optimizer):
    signature, shown = inspect.signature(optimizer), " ".join(optimizer.__doc__.split())
    for kind in OF[optimizer]:
        for setting in fields(kind):
            assert signature.parameters[setting.name].default == setting.default
            assert f"{setting.name} ({setting.default!r}): {setting.metadata['meaning']}" in shown
    assert {"params", "grad_scaler"} < set(signature.parameters)


@pytest.mark.parametrize("kind", [Settings, AdamSettings, ComponentSettings])
def test_every_default_is_allowed(kind):
    for setting in fields(kind):
        assert setting.metadata["allowed"].holds(setting.default)


def test_a_setting_keeps_working_under_its_old_name_and_says_so():
    with pytest.warns(FutureWarning, match="the setting magnitude is called loss_scale now"):
        optimizer = AdamSLS(weight(), magnitude=0.5)
    assert optimizer.settings.loss_scale == 0.5


def test_a_setting_that_was_taken_out_is_named():
    with pytest.raises(TypeError, match="keep_masks was taken out"):
        AdamSLS(weight(), keep_masks=True)


def test_a_text_where_a_number_belongs_is_one_line():
    with pytest.raises(ValueError, match=r"c is '0.1'; allowed: between 0 and 1"):
        AdamSLS(weight(), c="0.1")


@pytest.mark.parametrize("betas", [0.9, None, "0.9", (0.9,), (1.0, 0.999), (0.0, "0.999")])
def test_betas_that_are_not_two_shares_are_one_line(betas):
    with pytest.raises(ValueError, match=r"betas is .*; allowed: two numbers from 0, below 1"):
        AdamSLS(weight(), betas=betas)
