"""optim/suffix.py: trials that start at the searched component are the full ones, bit for bit, or are given up."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn.functional import cross_entropy

import optim
from optim import split
from optim.evaluation.replay import Randomness
from tests.small import classic

PLASLS = classic(optim.PLASLS)

STEPS = 12


def blocks(name):
    """Components of all the models below: what precedes the blocks, each block, what follows."""
    parts = name.split(".")
    number = next((part for part in parts if part.isdigit()), None)
    return f"{parts[0]} {parts[1]} {number}" if number else "rest"


def projections(name):
    """The attention's output projections, a component each."""
    return blocks(name) if "out_proj" in name else "rest"


class Residual(torch.nn.Module):
    """A ResNet's block as torchvision has it: in-place activations, an in-place sum."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = torch.nn.BatchNorm2d(width)
        self.relu = torch.nn.ReLU(inplace=True)
        self.conv2 = torch.nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(width)

    def forward(self, x):
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += x
        return self.relu(out)


class ResNet(torch.nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(width)
        self.relu = torch.nn.ReLU(inplace=True)
        self.stages = torch.nn.Sequential(*(torch.nn.Sequential(Residual(width), Residual(width)) for _ in range(3)))
        self.dropout = torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(width, 3)

    def forward(self, images):
        x = self.stages(self.relu(self.norm(self.conv(images))))
        return self.head(self.dropout(x.mean((2, 3))))


class Attention(torch.nn.Module):
    """Torch's own blocks, whose attention reads the output projection's weight without calling it; drop path."""

    def __init__(self, width=16):
        super().__init__()
        self.words = torch.nn.Embedding(50, width)
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(width, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
            for _ in range(3)
        )
        self.head = torch.nn.Linear(width, 3)

    def forward(self, tokens):
        x = torch.nn.functional.dropout(self.words(tokens), 0.1)
        for block in self.blocks:
            x = x + (torch.rand(len(x), 1, 1) < 0.9) * (block(x) - x)
        return self.head(x[:, 0])


class Skipping(torch.nn.Module):
    """Long skip connections: the head reads what the first block has returned, beside the last one's output."""

    def __init__(self, width=8):
        super().__init__()
        self.words = torch.nn.Embedding(50, width)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh()) for _ in range(4)
        )
        self.head = torch.nn.Linear(2 * width, 3)

    def forward(self, tokens):
        x = first = self.blocks[0](self.words(tokens).mean(1))
        for block in self.blocks[1:]:
            x = block(x)
        return self.head(torch.cat([first, x], 1))


class Hidden(torch.nn.Module):
    """A side channel: the last block reads the weights of the first one, which is no call of it."""

    def __init__(self, width=8):
        super().__init__()
        self.words = torch.nn.Embedding(50, width)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(3))
        self.head = torch.nn.Linear(width, 3)

    def forward(self, tokens):
        x = self.words(tokens).mean(1) * self.blocks[-1].bias.exp().mean().detach()
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


def transformer(kind, **settings):
    import transformers as hf

    small = {"vocab_size": 50, "num_labels": 3}
    if kind == "BERT":
        shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
        return hf.BertForSequenceClassification(hf.BertConfig(**small, **shape, **settings))
    if kind == "GPT-2":
        config = hf.GPT2Config(
            vocab_size=50, n_positions=32, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0, **settings
        )
        return hf.GPT2LMHeadModel(config)
    config = hf.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0, **settings
    )
    return hf.T5ForConditionalGeneration(config)


def tokens_of(k):
    return torch.randint(1, 50, (8, 6), generator=torch.Generator().manual_seed(k))


def closure_of(model, kind, k, autocast):
    tokens = tokens_of(k)
    if kind == "ResNet":
        images = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(k))
        evaluate = lambda: cross_entropy(model(images), tokens[:, 0] % 3)  # noqa: E731
    elif kind in ("BERT", "GPT-2", "T5"):
        mask = torch.ones_like(tokens)
        mask[::2, 4:] = 0
        labels = {"BERT": tokens[:, 1] % 3, "GPT-2": tokens, "T5": tokens[:, :3].contiguous()}[kind]
        evaluate = lambda: model(input_ids=tokens, attention_mask=mask, labels=labels).loss  # noqa: E731
    else:
        evaluate = lambda: cross_entropy(model(tokens), tokens[:, 1] % 3)  # noqa: E731

    def closure():
        with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
            return evaluate()

    return closure


OWN = {"ResNet": ResNet, "Attention": Attention, "Skipping": Skipping, "Hidden": Hidden}


def run(
    kind, suffix, *, rule=blocks, steps=STEPS, autocast=False, checkpoint=False, several=1, before_step=None, **settings
):
    """(what each step found, the weights and the random state at the end, the optimizer, forwards of each module)."""
    torch.manual_seed(0)
    model = OWN[kind]() if kind in OWN else transformer(kind)
    model.train()
    if checkpoint:
        model.activation_checkpointing_enable({"use_reentrant": checkpoint == "reentrant"})
        model.enable_input_require_grads()  # which the reentrant kind needs
    optimizer = PLASLS(split(model, rule), suffix=suffix, **{"first_steps": 1, "joint": "never", **settings})
    found, ran = [], []
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, args: ran.append(module))
    for k in range(steps):
        if before_step:
            before_step(model, optimizer, k)
        ran.clear()
        optimizer.step([closure_of(model, kind, k * several + j, autocast) for j in range(several)])
        s = optimizer.search
        found.append((s.component, s.base, s.trial, s.trials, s.after, len(ran)))
    state = [*(p.detach().clone() for p in model.parameters()), *(b.clone() for b in model.buffers())]
    return found, [*state, torch.get_rng_state()], optimizer


def assert_same_in_full(part, its_state, kind, **settings):
    """A run with suffixes has found what one with full evaluations finds, to the bit; returns the steps of that one."""
    full, full_state, _ = run(kind, False, **settings)
    assert [step[:5] for step in part] == [step[:5] for step in full]
    assert all(torch.equal(a, b) for a, b in zip(its_state, full_state, strict=True))
    return full


def counting(monkeypatch, owner, name):
    """Calls of owner.name from one call of the function returned to the next, in the list returned."""
    called, counts = [], []
    function = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: (called.append(1), function(*args))[1])

    def count(*_):
        counts.append(len(called))
        called.clear()

    return count, counts


CASES = {
    "BERT": ("BERT", {}),
    "BERT, bf16": ("BERT", {"autocast": True}),
    "BERT, recomputed in the backward pass": ("BERT", {"checkpoint": "plain"}),
    "BERT, recomputed, reentrant": ("BERT", {"checkpoint": "reentrant"}),
    "BERT, accumulated": ("BERT", {"several": 2}),
    "GPT-2, tied weights and a cache": ("GPT-2", {}),
    "T5": ("T5", {}),
    "ResNet": ("ResNet", {}),
    "ResNet, bf16": ("ResNet", {"autocast": True}),
    "torch's blocks": ("Attention", {}),
    "torch's blocks, a weight that is read without a call": ("Attention", {"rule": projections}),
    "long skip connections": ("Skipping", {}),
}


# The reentrant kind says so wherever gradients are off, as they are in trials.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("case", CASES)
def test_trials_from_the_component_on_give_the_bits_of_the_full_ones_and_run_fewer_modules(case):
    kind, settings = CASES[case]
    rule = settings.get("rule", blocks)
    components = len(split(OWN[kind]() if kind in OWN else transformer(kind), rule))
    steps = 3 * components + 1
    part, its_state, _ = run(kind, True, steps=steps, **settings)
    full = assert_same_in_full(part, its_state, kind, steps=steps, **settings)
    # The first searches evaluate both ways, once more where all outputs have to be kept. Afterwards all components
    # but those of the first modules are spared something.
    last = range(steps - components, steps)
    assert all(part[k][-1] <= full[k][-1] for k in last)
    assert sum(part[k][-1] < full[k][-1] for k in last) >= components - 2


def test_a_block_is_not_run_again_for_a_component_behind_it():
    part, _, _ = run("BERT", True, steps=9)
    ran = {component: modules for component, *_, modules in part[5:]}
    assert ran["bert encoder 0"] - ran["bert encoder 1"] == ran["bert encoder 1"] - ran["bert encoder 2"] > 10


def test_random_states_are_taken_at_the_boundary_only(monkeypatch):
    """Not at each of the dozens of modules inside the blocks before it."""
    count, counts = counting(monkeypatch, Randomness, "get")
    part, _, _ = run("BERT", True, steps=14, before_step=count)
    (last,) = (k for k in range(9, 13) if part[k][0] == "bert encoder 2")
    assert counts[last + 1] <= 3 + 2 + part[last][3]  # the embeddings and two blocks; around the step; in each trial


class Wrapped:
    def __init__(self, tensor):
        self.tensor = tensor


class Wrapping(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        return Wrapped(torch.nn.functional.dropout(self.linear(x).tanh(), 0.1))


class Opaque(torch.nn.Module):
    """Its blocks hand out what nobody can copy; what is inside them can be known all the same."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(50, 8)
        self.blocks = torch.nn.ModuleList(Wrapping() for _ in range(3))
        self.head = torch.nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.words(tokens).mean(1)
        for block in self.blocks:
            x = block(x).tensor
        return self.head(x)


def test_modules_inside_one_whose_output_is_no_tensor_are_spared(monkeypatch):
    monkeypatch.setitem(OWN, "Opaque", Opaque)
    count, counts = counting(monkeypatch, torch.nn.Linear, "forward")
    part, its_state, optimizer = run("Opaque", True, steps=14, before_step=count)
    assert len(optimizer.evaluator.suffix_check.opaque) == 2  # the last one is never before the searched component
    assert_same_in_full(part, its_state, "Opaque", steps=14)
    last = max(k for k in range(13) if part[k][0] == "blocks 2 2")
    assert counts[last + 1] == 4 + 2 * part[last][3]  # a trial runs the linear layer of that block, and the head


class Borrowing(torch.nn.Module):
    """A block calls a module that is not a part of it, and that is called later, too."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(50, 8)
        self.blocks = torch.nn.ModuleList([Wrapping(), Wrapping()])
        self.other = torch.nn.ModuleList([torch.nn.Linear(8, 8)])
        self.blocks[1].borrowed = [self.other[0]]
        self.blocks[1].forward = self.borrow
        self.head = torch.nn.Linear(8, 3)

    def borrow(self, x):
        return self.blocks[1].linear(x) + self.blocks[1].borrowed[0](x).tanh()

    def forward(self, tokens):
        x = self.blocks[1](self.blocks[0](self.words(tokens).mean(1)).tensor)
        return self.head(self.other[0](x))


def test_a_module_that_is_called_inside_one_that_does_not_hold_it_is_seen(monkeypatch):
    monkeypatch.setitem(OWN, "Borrowing", Borrowing)
    part, its_state, optimizer = run("Borrowing", True, steps=14)
    assert not optimizer.evaluator.suffix_check.keep_all
    assert_same_in_full(part, its_state, "Borrowing", steps=14)


def test_only_the_boundary_is_kept():
    """Of BERT's last block: the embeddings' output, which the encoder takes, and that of the block before."""
    kept = []

    def look(model, optimizer, k):
        suffix = optimizer.evaluator._suffix

        def kept_by(*args):
            made = suffix(*args)
            kept.append(made)
            return made

        optimizer.evaluator._suffix = kept_by

    run("BERT", True, steps=5, before_step=lambda m, o, k: look(m, o, k) if k == 4 else None)
    (closure,) = kept[0].closures
    assert [type(record.module).__name__ for record in closure.records] == ["BertEmbeddings", *["BertLayer"] * 2]
    floats = [leaf.tensor for record in closure.records for leaf in record.tensors()]
    assert sum(tensor.untyped_storage().nbytes() for tensor in floats) == 2 * 8 * 6 * 16 * 4 + 4


def test_a_model_that_reads_parameters_elsewhere_is_evaluated_in_full_and_says_so_once():
    with pytest.warns(RuntimeWarning, match="evaluate the whole network") as caught:
        part, its_state, _ = run("Hidden", True, steps=16)
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    assert_same_in_full(part, its_state, "Hidden", steps=16)


class Detour(torch.nn.Module):
    """Takes another way in a trial: without the module in the middle."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(50, 8)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
        self.head = torch.nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.blocks[0](self.words(tokens).mean(1))
        if torch.is_grad_enabled():
            x = self.blocks[1](x)
        return self.head(self.blocks[2](x).tanh())


def test_a_trial_that_takes_another_way_is_evaluated_in_full(monkeypatch):
    monkeypatch.setitem(OWN, "Detour", Detour)
    part, its_state, optimizer = run("Detour", True, steps=9)
    assert not optimizer.evaluator.suffix_check.keep_all
    assert_same_in_full(part, its_state, "Detour", steps=9)


class Writing(torch.nn.Module):
    """Writes into what a module has returned: before the searched block is run, or after it."""

    def __init__(self, before):
        super().__init__()
        self.before = before
        self.words = torch.nn.Embedding(50, 8)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.head = torch.nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.blocks[0](self.words(tokens).mean(1))
        if self.before:
            x *= 0.5
        y = self.blocks[1](x * 1.0)
        x += y
        return self.head(x.tanh())


@pytest.mark.parametrize("before", [True, False])
def test_outputs_that_are_written_to_are_as_they_were(before):
    def found(suffix):
        torch.manual_seed(0)
        model, steps = Writing(before), []
        optimizer = PLASLS(split(model, blocks), first_steps=1, joint="never", suffix=suffix, growth_steps=1)
        for k in range(30):
            optimizer.step(closure_of(model, "Writing", k, autocast=False))
            steps.append((optimizer.search.trials, optimizer.search.trial, optimizer.search.after))
        return steps

    part = found(True)
    assert part == found(False)
    assert sum(trials for trials, *_ in part) > 35


class WritingInside(torch.nn.Module):
    """A module without weights writes into what another one has returned, and both are read."""

    class Halves(torch.nn.Module):
        def forward(self, x):
            return x.mul_(0.5).tanh()

    def __init__(self):
        super().__init__()
        self.words, self.halves = torch.nn.Embedding(50, 8), self.Halves()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))

    def forward(self, tokens):
        x = self.blocks[0](self.words(tokens).mean(1))
        return self.blocks[1](self.halves(x) + x)[:, :3]


@pytest.mark.parametrize("make", [lambda: Writing(before=True), WritingInside], ids=["outside", "inside"])
def test_a_module_whose_output_is_written_to_is_left_out_from_the_second_step_on_unless_modules_write(make):
    def ran(suffix):
        torch.manual_seed(0)
        model, calls, steps = make(), [], []
        forward = model.blocks[0].forward
        model.blocks[0].forward = lambda x: (calls.append(None), forward(x))[1]
        optimizer = PLASLS(split(model, blocks), first_steps=1, joint="never", suffix=suffix, growth_steps=1)
        for k in range(30):
            calls.clear()
            optimizer.step(closure_of(model, "Writing", k, autocast=False))
            steps.append((optimizer.search.component, optimizer.search.trials, optimizer.search.trial, len(calls)))
        return steps

    part, whole = ran(True), ran(False)
    assert [step[:3] for step in part] == [step[:3] for step in whole]
    last = [step for step in part if step[0] == "blocks 1 1"][2:]
    assert last
    assert all(calls == (1 if make is not WritingInside else 1 + trials) for _, trials, _, calls in last)


@pytest.mark.parametrize("step", [3, 7], ids=["evaluated both ways", "from the component on"])
def test_an_error_in_a_trial_leaves_the_weights_and_the_models_methods(step):
    seen = []

    def fail_later(model, optimizer, k):
        if k == step:
            seen[:] = [model, [p.detach().clone() for p in model.parameters()]]
            model.classifier.register_forward_pre_hook(lambda *_: None if torch.is_grad_enabled() else 1 / 0)

    with pytest.raises(ZeroDivisionError):
        run("BERT", True, steps=step + 1, before_step=fail_later)
    model, before = seen
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("value", [0, "yes", None])
def test_suffix_is_a_yes_or_no(value):
    with pytest.raises(ValueError, match=r"suffix is .*; allowed: True or False"):
        PLASLS(torch.nn.Linear(2, 2).parameters(), suffix=value)


def train_ranks(rank, store, results):
    """Two ranks, DistributedDataParallel around a model with dropout."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = []
    for suffix in (True, False):
        torch.manual_seed(0)
        model = Attention()
        optimizer = PLASLS(split(model, blocks), first_steps=1, joint="never", suffix=suffix)
        ran, wrapped = [], torch.nn.parallel.DistributedDataParallel(model)
        model.blocks[0].linear1.register_forward_pre_hook(lambda *args, ran=ran: ran.append(1))
        torch.manual_seed(rank)
        steps = []
        for k in range(9):
            ran.clear()
            tokens = tokens_of(2 * k + rank)
            optimizer.step(lambda net=wrapped, tokens=tokens: cross_entropy(net(tokens), tokens[:, 1] % 3))
            steps.append((optimizer.search.trial, optimizer.search.after))
        found.append((steps, sum(float(p.detach().double().sum()) for p in model.parameters()), len(ran)))
    results.put((rank, found))
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_evaluate_suffixes_alike(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=train_ranks, args=(rank, tmp_path / "store", results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
    (part, full), (others_part, others_full) = found[0], found[1]
    assert part[:2] == full[:2] == others_part[:2] == others_full[:2]
    assert part[2] < full[2]  # the last step's component is the last block
