"""Adapters in the encoder, by peft: small modules train, and the encoder's own weights do not. The head trains too."""

import warnings
from typing import Any

import peft

from .model import Classifier

RANK = 8
PROMPT = 20
"""tokens of a learned prompt, which stand before [CLS]"""


def _lora(**settings: Any) -> peft.PeftConfig:
    """LoRA of rank 8 with alpha = 16, on the matrices that peft chooses for the model: BERT's queries and values."""
    return peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, **settings)


KINDS: dict[str, peft.PeftConfig] = {
    "lora": _lora(),
    "loraplus": _lora(),  # one half has a larger rate (`train.builders`)
    "rslora": _lora(use_rslora=True),
    "dora": _lora(use_dora=True),
    "pissa": _lora(init_lora_weights="pissa"),
    "ia3": peft.IA3Config(),
    "prompt": peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=PROMPT),
}
"""a value of `--adapter` -> peft's configuration"""


def add_adapter(model: Classifier, kind: str) -> None:
    """Put an adapter into the encoder and freeze the encoder's own weights. New weights draw from torch's global state.

    Args:
        model: its encoder is wrapped in place.
        kind: a key of KINDS.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # peft reads a property that has a new name
        model.encoder = peft.get_peft_model(model.encoder, KINDS[kind])
    if kind == "prompt":
        model.start = PROMPT
        warnings.filterwarnings("ignore", message="Token type ids are not supported")  # at every forward
