"""The optimizers on models as people have them: of vision, recurrent, of Hugging Face, compiled."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from optim import PLASLS, SGDSLS, split
from tests.contract import by_layer, eq6, weights
from tests.small import on


class Vision(torch.nn.Module):
    """A Vision Transformer in miniature: patches, a class token, two pre-norm blocks, drop path, a head."""

    def __init__(self, width=16):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, width, 4, 4)
        self.token = torch.nn.Parameter(torch.zeros(1, 1, width))
        self.position = torch.nn.Parameter(torch.randn(1, 5, width) / 50)
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(width, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = torch.nn.Linear(width, 3)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            keep = torch.rand(len(x), 1, 1) < 0.9  # drop path
            x = x + keep * (block(x) - x)
        return self.head(x[:, 0])


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(20, 8)
        self.lstm = torch.nn.LSTM(8, 12, num_layers=2, dropout=0.2, batch_first=True)
        self.head = torch.nn.Linear(12, 3)

    def forward(self, tokens):
        return self.head(self.lstm(self.words(tokens))[0][:, -1])


class Convolutional(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.dropout = torch.nn.Dropout2d(0.2)
        self.head = torch.nn.Linear(32, 3)
        self.to(memory_format=torch.channels_last)

    def forward(self, images):
        x = self.dropout(torch.relu(self.norm(self.conv(images))))
        return self.head(torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def classifier(model, inputs, labels):
    return lambda: cross_entropy(model(inputs), labels)


def images():
    x = torch.randn(12, 3, 8, 8)
    return x, x.mean((2, 3)).argmax(1)


def vision():
    model = Vision()
    return model, lambda: classifier(model, *images())


def conv_and_batch_norm():
    model = Convolutional()
    return model, lambda: classifier(model, *images())


def recurrent():
    model = Recurrent()

    def batch():
        tokens = torch.randint(20, (12, 6))
        return classifier(model, tokens, tokens[:, -1] % 3)

    return model, batch


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    return hugging_face(BertForSequenceClassification(config), lambda tokens: tokens[:, 1] % 3)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return hugging_face(GPT2LMHeadModel(config), lambda tokens: tokens)


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    return hugging_face(T5ForConditionalGeneration(config), lambda tokens: tokens[:, :3].contiguous())


def hugging_face(model, labels):
    model.train()

    def batch():
        tokens = torch.randint(1, 50, (8, 6))
        return lambda: model(input_ids=tokens, labels=labels(tokens)).loss

    return model, batch


@pytest.mark.parametrize("make", [SGDSLS, PLASLS, eq6], ids=["SGDSLS", "PLASLS", "PLASLS, Eq. 6"])
@pytest.mark.parametrize("kind", [vision, conv_and_batch_norm, recurrent, bert, gpt2, t5])
def test_every_kind_of_model_trains_with_the_randomness_and_buffers_of_one_forward_a_step(kind, make):
    torch.manual_seed(0)
    model, batch = kind()
    optimizer = make(split(model, by_layer))
    losses = []
    for _ in range(12):
        closure = batch()
        randomness, buffers = torch.get_rng_state(), copy.deepcopy(dict(model.named_buffers()))
        with torch.no_grad():
            plain = closure()
        after, updated = torch.get_rng_state(), copy.deepcopy(dict(model.named_buffers()))
        torch.set_rng_state(randomness)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])

        losses.append(float(optimizer.step(closure)))
        assert losses[-1] == pytest.approx(float(plain), rel=1e-6)
        assert torch.equal(torch.get_rng_state(), after)
        assert all(torch.equal(buffer, updated[name]) for name, buffer in model.named_buffers())
    assert optimizer.counts["trials"] >= 9
    assert optimizer.counts["failures"] <= 2


@pytest.mark.parametrize("kind", [vision, conv_and_batch_norm, recurrent, bert, gpt2, t5])
def test_a_trial_is_the_loss_at_the_moved_weights_under_the_masks_of_the_step(kind):
    torch.manual_seed(0)
    model, batch = kind()
    optimizer = on(SGDSLS)(split(model, by_layer), rounding=100.0)
    for _ in range(4):
        closure, buffers = batch(), copy.deepcopy(dict(model.named_buffers()))
        randomness = torch.get_rng_state()
        optimizer.step(closure)
        if not optimizer.search.accepted:
            continue
        # SGD without momentum takes the point that was accepted; buffers as before the step
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        torch.set_rng_state(randomness)
        with torch.no_grad():
            assert float(closure()) == pytest.approx(optimizer.search.trial, rel=1e-6)
    assert optimizer.counts["failures"] <= 1


def compiled_module(model, backend):
    return torch.compile(model, backend=backend)


def compiled_in_place(model, backend):
    model.compile(backend=backend)
    return model


def compiled_function(model, backend):
    return torch.compile(lambda x: model(x), backend=backend)


@pytest.mark.parametrize("compiled", [compiled_module, compiled_in_place, compiled_function])
def test_a_compiled_model_takes_the_steps_of_the_plain_one_and_is_compiled_once(compiled):
    torch._dynamo.reset()
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    def run(compiled):
        torch.manual_seed(0)
        model = Convolutional()
        optimizer = PLASLS(split(model, by_layer))
        run_it = compiled(model, backend) if compiled else model
        torch.manual_seed(1)
        searches, counts = [], []
        for _ in range(8):
            optimizer.step(classifier(run_it, *images()))
            searches.append(repr(optimizer.search))  # a NaN equals none, but looks like it
            counts.append(len(compilations))
        return searches, weights(model), dict(model.named_buffers()), counts

    searches, plain, statistics, _ = run(None)
    its_searches, its_weights, its_statistics, counts = run(compiled)
    assert its_searches == searches
    assert torch.equal(its_weights, plain)
    assert all(torch.equal(its_statistics[name], value) for name, value in statistics.items())
    assert counts[3] == counts[-1] > 0
