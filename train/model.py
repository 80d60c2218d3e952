"""Any `AutoModel` encoder with one linear layer on the last hidden state of [CLS], no pooler (Sec. IV)."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from .errors import InputError, first_line
from .packaged import hub_answers, hub_error, locate

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


class Classifier(torch.nn.Module):
    """outputs = W h_[CLS] + b, with h the encoder's last hidden state: logits of classes, or one number.

    Args:
        encoder: returns `last_hidden_state` (rows, tokens, features); [CLS] is its first token.
        outputs: number of classes, or 1 for a regression.
        seed: seed of the head's weights. They are normal with the encoder's `initializer_range`; the bias is 0. The
            global random state is neither used nor changed.

    Attributes:
        start: the position of [CLS] in the encoder's output. A learned prompt stands before it (`train.adapters`).

    Raises:
        InputError: the module does not work as an encoder.
    """

    def __init__(self, encoder: PreTrainedModel, outputs: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.start = 0
        self.head = torch.nn.utils.skip_init(torch.nn.Linear, _features(encoder), outputs)
        deviation = getattr(encoder.config, "initializer_range", 0.02)
        with torch.no_grad():
            self.head.weight.normal_(0.0, deviation, generator=torch.Generator().manual_seed(seed))
            self.head.bias.zero_()
        self.train()  # new modules are in training mode, but from_pretrained leaves an encoder in evaluation mode

    def forward(self, labels: Tensor | None = None, first: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """Outputs (rows, outputs) of the encoder's inputs, each (rows, tokens). `labels` is accepted and not used.

        `first` says where each row's [CLS] is, counted over all tokens, if it is not in front (`train.packing`).
        """
        hidden = self.encoder(**inputs).last_hidden_state
        return self.head(hidden[:, self.start] if first is None else hidden.flatten(0, 1)[first])

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean loss of a batch with "labels" (rows,)."""
        return self.loss_of(self(**batch), batch["labels"], "mean")

    def loss_of(self, outputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """Cross entropy of logits (rows, classes), or squared error of numbers (rows, 1), in float32."""
        if self.head.out_features == 1:
            return torch.nn.functional.mse_loss(outputs.float()[:, 0], labels, reduction=reduction)
        return torch.nn.functional.cross_entropy(outputs.float(), labels, reduction=reduction)


def load_classifier(model: str, outputs: int, dropout: float | None, seed: int) -> Classifier:
    """The pretrained encoder in float32, and a new head.

    Args:
        model: a packaged model, a folder, or a hub id.
        outputs: number of classes, or 1 for a regression.
        dropout: probability everywhere in the encoder; None leaves the model's own.
        seed: seed of the head.

    Raises:
        InputError: the model cannot be had, is damaged or incomplete, is no encoder, or has no dropout to set.
    """
    source = _source(model)
    if isinstance(source, Path) and not any(file for pattern in WEIGHTS for file in source.glob(pattern)):
        raise InputError(f"--model={model}: the folder has no weights; needed: model.safetensors or pytorch_model.bin")
    with _loading(model, source, "config"):
        config = AutoConfig.from_pretrained(source)
    if dropout is not None:
        set_dropout(config, dropout)
    # What the checkpoint lacks is drawn at random, even if it is only the pooler, which is dropped anyway.
    with _loading(model, source, "weights"), torch.random.fork_rng(devices=[]):
        encoder, report = AutoModel.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True
        )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise InputError(
            f"--model={model}: its weights lack {len(missing)} of the encoder's tensors, {missing[0]} first; "
            f"the encoder is {type(encoder).__name__}"
        )
    drop_pooler(encoder)
    if dropout is not None:
        check_dropout(encoder, dropout)
    return Classifier(encoder, outputs, seed)


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The model's own tokenizer.

    Raises:
        InputError: the model has none, or one that does not put [CLS] first.
    """
    source = _source(model)
    with _loading(model, source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # transformers makes this of a folder without vocabulary
        raise InputError(f"--model={model}: no tokenizer there; needed: tokenizer.json or the vocabulary's file")
    if tokenizer.cls_token_id is None or tokenizer.pad_token_id is None:
        raise InputError(f"--model={model}: its tokenizer has no [CLS] or no padding token; an encoder's is needed")
    if tokenizer.padding_side != "right" or tokenizer("a")["input_ids"][0] != tokenizer.cls_token_id:
        raise InputError(f"--model={model}: its tokenizer does not put [CLS] first; an encoder's is needed")
    return tokenizer


def _source(model: str) -> Path | str:
    """A folder with a config, or a hub id."""
    folder = locate(model, "model")
    if folder is None:
        return model
    if not (folder / "config.json").is_file():
        raise InputError(f"--model={model}: the folder has no config.json; a folder of save_pretrained is needed")
    return folder


@contextlib.contextmanager
def _loading(model: str, source: Path | str, what: str) -> Iterator[None]:
    """Load quietly. Whatever is raised inside becomes one line."""
    if isinstance(source, str):
        hub_answers()  # asked first, so that an unreachable hub fails at once
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # many libraries raise here: the hub's, safetensors, pickle, tokenizers, torch
        if isinstance(source, str):
            raise hub_error(model, "model", error) from error
        raise InputError(f"--model={model}: the {what} cannot be loaded: {first_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def set_dropout(config: PretrainedConfig, dropout: float) -> None:
    """Set every dropout probability that the configuration has, whatever it calls it.

    Raises:
        InputError: it has none.
    """
    names = [
        name
        for name, value in config.to_dict().items()
        if ("dropout" in name or "pdrop" in name) and (value is None or type(value) in (int, float))
    ]
    if not names:
        raise InputError(f"--dropout={dropout}: a {config.model_type} has no dropout; allowed: None")
    for name in names:
        setattr(config, name, dropout)


def check_dropout(encoder: torch.nn.Module, dropout: float) -> None:
    """Raise InputError unless every dropout in the encoder has this probability."""
    for path, module in encoder.named_modules():
        built = {"p": module.p} if isinstance(module, torch.nn.Dropout) else {}
        built |= {name: value for name, value in vars(module).items() if "dropout" in name and type(value) is float}
        for name, value in built.items():
            if value != dropout:
                raise InputError(f"--dropout={dropout}: {path}.{name} stays {value}; allowed for this model: None")


def drop_pooler(encoder: PreTrainedModel) -> None:
    """Remove the pooler: nothing reads it here, and its parameters would have no gradient."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None


def _features(encoder: PreTrainedModel) -> int:
    """Size of the last hidden state, found by a forward of two tokens."""
    kind = encoder.config.model_type
    try:
        with torch.no_grad():
            output = encoder.eval()(input_ids=torch.zeros(1, 2, dtype=torch.long, device=encoder.device))
        return output.last_hidden_state.shape[-1]
    except Exception as error:
        raise InputError(
            f"a {kind} is no encoder with a last hidden state ({first_line(error)}); allowed: BERT and its like"
        ) from error


def check_length(encoder: PreTrainedModel, max_length: int) -> None:
    """Raise InputError if rows of `max_length` tokens have more positions than the encoder knows."""
    positions = getattr(encoder.config, "max_position_embeddings", None)
    if positions is None or positions <= 0:
        return
    # RoBERTa and its like number positions from the padding's index on: 514 of them are 512 tokens.
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if padding is not None:
        positions -= padding + 1
    if max_length > positions:
        raise InputError(f"--max_length={max_length}: the model has {positions} positions; allowed: 1 to {positions}")
