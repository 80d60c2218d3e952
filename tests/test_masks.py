"""optim/masks.py: trials with kept dropout masks are those that draw them, bit for bit, or are given up."""

import pytest
import torch
from torch.nn.functional import dropout, scaled_dot_product_attention

from optim import AdamSLS

from .test_suffix import CASES, run


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("joint", ["never", "always"])
@pytest.mark.parametrize("case", CASES)
def test_kept_masks_change_no_bit(case, joint):
    kind, settings = CASES[case]
    kept, its_state, optimizer = run(kind, True, joint=joint, keep_masks=True, **settings)
    drawn, state, _ = run(kind, True, joint=joint, **settings)
    assert [step[:5] for step in kept] == [step[:5] for step in drawn]
    assert all(torch.equal(a, b) for a, b in zip(its_state, state, strict=True))
    drops = kind not in ("Skipping",)
    assert (optimizer._mask_trust.verified, optimizer._mask_trust.off) == (drops, not drops)


def network():
    torch.manual_seed(0)
    return torch.nn.Linear(8, 8)


def attention(x):
    x = x.view(1, 2, -1, 8)
    return scaled_dot_product_attention(x, x, x, dropout_p=0.2).view(-1, 8)


def steps_of(evaluate, steps=6, **settings):
    """(losses at trial points, weights, random state, optimizer, where the generator was after each evaluation)."""
    model = network()
    optimizer = AdamSLS(model.parameters(), **settings)
    found, after = [], []
    for k in range(steps):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(k))

        def closure(x=x):
            loss = evaluate(model, x)
            after.append(torch.get_rng_state())
            return loss

        start = len(after)
        optimizer.step([closure, closure])
        found.append((optimizer.search.base, optimizer.search.trial, optimizer.search.trials, len(after) - start))
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return [step[:3] for step in found], weights, torch.get_rng_state(), optimizer, after


def mixed(model, x):
    """Dropout and attention among random numbers of other kinds."""
    y = dropout(model(x), 0.3) + torch.rand(4, 1)
    y = y + attention(y) * (torch.randperm(4) > 0).float()[:, None] + 0.1 * torch.randn(4, 8)
    return (dropout(y, 0.5) ** 2).mean()


def test_other_random_numbers_between_the_masks_are_the_same():
    kept, drawn = steps_of(mixed, keep_masks=True), steps_of(mixed)
    assert kept[0] == drawn[0]
    assert torch.equal(kept[1], drawn[1])
    assert torch.equal(kept[2], drawn[2])
    assert kept[3]._mask_trust.verified


def test_a_trial_draws_no_mask():
    def evaluate(model, x):
        return (dropout(model(x), 0.3) ** 2).mean()

    *_, optimizer, after = steps_of(evaluate, keep_masks=True)
    assert optimizer.search.trials > 0
    first_of_step, last_trial = after[-2 * (optimizer.search.trials + 1)], after[-1]
    assert not torch.equal(first_of_step, last_trial)
    assert torch.equal(after[-1], after[-2])  # of the two closures of a trial, neither has moved the generator


def test_a_trial_that_draws_otherwise_draws_for_itself():
    """One mask more, of another shape, in the trials of the last step."""

    def run_of(**settings):
        model = network()
        optimizer = AdamSLS(model.parameters(), **settings)
        for k in range(5):
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(k))

            def closure(x=x, k=k):
                y = dropout(model(x), 0.3)
                if k == 4 and not torch.is_grad_enabled():
                    y = dropout(y[:, :4], 0.5)
                return (y**2).mean()

            optimizer.step(closure)
        return optimizer.search.trial, torch.cat([p.detach().flatten() for p in model.parameters()])

    (loss, weights), (plain_loss, plain_weights) = run_of(keep_masks=True), run_of()
    assert loss == plain_loss
    assert torch.equal(weights, plain_weights)


def test_a_loss_that_reads_the_generator_itself_is_given_up_and_said_once():
    def evaluate(model, x):
        y = dropout(model(x), 0.3)
        return (y**2).mean() * (1 + torch.get_rng_state()[:64].float().mean())

    with pytest.warns(RuntimeWarning, match="draw dropout masks again") as caught:
        kept = steps_of(evaluate, keep_masks=True)
    assert len(caught) == 1
    assert kept[3]._mask_trust.off
    drawn = steps_of(evaluate)
    assert kept[0] == drawn[0]
    assert torch.equal(kept[1], drawn[1])
