"""train/packing.py: packed rows give the padded rows' outputs."""

import pytest
import torch
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel

from train.config import Config
from train.errors import InputError
from train.model import Classifier
from train.packing import check_packing, pack

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def classifier(kind=BertModel, config=BertConfig):
    torch.manual_seed(0)
    return Classifier(kind(config(**SIZES, max_position_embeddings=40), add_pooling_layer=False), 3, seed=0).eval()


def batch(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    seen = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens = torch.randint(1, 50, seen.shape, generator=generator)
    second = (torch.arange(max(lengths)) > 2).expand_as(seen)
    return {
        "input_ids": tokens * seen,
        "token_type_ids": (second & seen).long(),
        "attention_mask": seen.long(),
        "labels": torch.randint(3, (len(lengths),), generator=generator),
    }


@pytest.mark.parametrize("lengths", [[9, 2, 3, 7, 1, 2, 5], [4, 4, 4], [6], [12, 11, 1, 1]])
def test_packed_rows_have_the_logits_loss_and_gradients_of_padded_ones(lengths):
    model, padded = classifier(), batch(lengths)
    packed = pack(padded)
    torch.testing.assert_close(model(**packed), model(**padded), atol=1e-6, rtol=1e-5)
    gradients = []
    for rows in (padded, packed):
        model.zero_grad()
        model.loss(rows).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_packing_leaves_little_padding_and_every_token_once():
    padded = batch([12, 2, 3, 7, 1, 2, 5, 4])
    packed = pack(padded)
    assert packed["input_ids"].shape == (3, 12)  # 36 tokens
    assert packed["input_ids"].sum() == padded["input_ids"].sum()
    assert packed["labels"] is padded["labels"]


def test_an_encoder_that_cannot_read_packed_rows_is_refused():
    check_packing(classifier(), padding=0)
    with pytest.raises(InputError, match=r"--pack=True: this encoder cannot read packed rows .*; allowed: False$"):
        check_packing(classifier(MPNetModel, MPNetConfig), padding=1)


def test_packing_left_off_is_the_run_that_it_was():
    assert Config(pack=False).run_id == Config().run_id != Config(pack=True).run_id
