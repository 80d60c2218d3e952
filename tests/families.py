"""A small random model of each family in docs/families.md, and a loss of it."""

import warnings
from functools import partial

import peft
import torch
import transformers as hf
from torch.nn.functional import cross_entropy

WIDTH = 16
SIZES = {"hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SPECIAL = {"cls_token_id": 1, "sep_token_id": 2}
BART = {f"{part}_{key}": n for part in ("encoder", "decoder") for key, n in (("attention_heads", 2), ("ffn_dim", 32))}
DECODER = {"decoder_start_token_id": 1, "forced_eos_token_id": None}


class Torch(torch.nn.Module):
    """Embeddings, layers of torch's own, a head."""

    def __init__(self, layers):
        super().__init__()
        self.embedding = torch.nn.Embedding(50, WIDTH)
        self.layers = layers
        self.head = torch.nn.Linear(WIDTH, 2)

    def forward(self, tokens):
        x = self.embedding(tokens)
        if isinstance(self.layers, torch.nn.Transformer):
            x = self.layers(x, x)
        elif isinstance(self.layers, torch.nn.LSTM):
            x, _ = self.layers(x)
        else:
            x = self.layers(x)
        return self.head(x[:, -1])


def torchs_encoder():
    layer = torch.nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True)
    return Torch(torch.nn.TransformerEncoder(layer, 6, enable_nested_tensor=False))


def torchs_transformer():
    transformer = torch.nn.Transformer(WIDTH, 2, 6, 6, 32, batch_first=True)
    transformer.encoder.enable_nested_tensor = transformer.encoder.use_nested_tensor = False
    return Torch(transformer)


def lora(model, kind, targets):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a property of transformers that has a new name
        return peft.get_peft_model(model, peft.LoraConfig(task_type=kind, r=2, target_modules=targets))


def llama():
    return hf.LlamaForCausalLM(hf.LlamaConfig(**WORDS, **SIZES, num_hidden_layers=6))


def bert():
    return hf.BertForSequenceClassification(hf.BertConfig(**WORDS, **SIZES, num_hidden_layers=12))


FAMILIES = {
    "BERT": bert,
    "DistilBERT": lambda: hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(vocab_size=50, pad_token_id=0, dim=WIDTH, n_heads=2, hidden_dim=32, n_layers=6)
    ),
    "ModernBERT": lambda: hf.ModernBertForSequenceClassification(
        hf.ModernBertConfig(**WORDS, **SPECIAL, **SIZES, num_hidden_layers=6)
    ),
    "ALBERT": lambda: hf.AlbertForSequenceClassification(
        hf.AlbertConfig(**WORDS, **SIZES, embedding_size=WIDTH, num_hidden_layers=12)
    ),
    "GPT-2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=50, n_embd=WIDTH, n_head=2, n_layer=6, bos_token_id=1, eos_token_id=2)
    ),
    "LLaMA": llama,
    "Mamba": lambda: hf.MambaForCausalLM(
        hf.MambaConfig(**WORDS, hidden_size=WIDTH, num_hidden_layers=6, state_size=4)
    ),
    "T5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=50, d_model=WIDTH, num_layers=6, num_heads=2, d_kv=8, d_ff=32, decoder_start_token_id=0
        )
    ),
    "BART": lambda: hf.BartForConditionalGeneration(
        hf.BartConfig(**WORDS, **BART, **DECODER, d_model=WIDTH, encoder_layers=6, decoder_layers=6)
    ),
    "Whisper": lambda: hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            **WORDS, **BART, d_model=WIDTH, encoder_layers=4, decoder_layers=4, num_mel_bins=8,
            max_source_positions=16, max_target_positions=16, decoder_start_token_id=1,
        )
    ),
    "CLIP": lambda: hf.CLIPModel(
        hf.CLIPConfig(
            text_config={**WORDS, **SIZES, "num_hidden_layers": 12},
            vision_config={**SIZES, "num_hidden_layers": 12, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    ),
    "ViT": lambda: hf.ViTForImageClassification(
        hf.ViTConfig(**SIZES, num_hidden_layers=12, image_size=32, patch_size=16)
    ),
    "Swin": lambda: hf.SwinForImageClassification(
        hf.SwinConfig(
            image_size=32, patch_size=1, embed_dim=8, depths=[2, 2, 6, 2], num_heads=[2, 2, 2, 2], window_size=4,
            attn_implementation="eager",
        )
    ),
    "ConvNeXt": lambda: hf.ConvNextForImageClassification(
        hf.ConvNextConfig(depths=[3, 3, 9, 3], hidden_sizes=[8, 12, 16, 24], patch_size=2, drop_path_rate=0.1)
    ),
    "ResNet": lambda: hf.ResNetForImageClassification(
        hf.ResNetConfig(depths=[2, 2, 2, 2], embedding_size=8, hidden_sizes=[8, 12, 16, 24], layer_type="basic")
    ),
    "wav2vec2": lambda: hf.Wav2Vec2ForSequenceClassification(
        hf.Wav2Vec2Config(
            **WORDS, **SIZES, num_hidden_layers=12, conv_dim=(4, 4), conv_stride=(2, 2), conv_kernel=(3, 3),
            num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        )
    ),
    "nn.TransformerEncoder": torchs_encoder,
    "nn.Transformer": torchs_transformer,
    "nn.LSTM": lambda: Torch(torch.nn.LSTM(WIDTH, WIDTH, 3, batch_first=True)),
    "BERT, LoRA": lambda: lora(bert(), "SEQ_CLS", ["query", "value"]),
    "LLaMA, LoRA": lambda: lora(llama(), "CAUSAL_LM", ["q_proj", "k_proj", "v_proj", "o_proj"]),
}  # fmt: skip


def closure_of(family, model, seed):
    """The loss of four examples."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 50, (4, 6), generator=random)
    labels = tokens[:, 1] % 2
    if isinstance(model, Torch):
        return lambda: cross_entropy(model(tokens), labels)
    images = partial(torch.randn, generator=random)
    inputs = {
        "CLIP": lambda: {"input_ids": tokens, "pixel_values": images(4, 3, 16, 16), "return_loss": True},
        "Whisper": lambda: {"input_features": images(4, 8, 32), "labels": tokens},
        "wav2vec2": lambda: {"input_values": images(4, 400), "labels": labels},
    }
    if family in inputs:
        given = inputs[family]()
    elif family in ("ViT", "Swin", "ConvNeXt", "ResNet"):
        given = {"pixel_values": images(4, 3, 32, 32), "labels": labels}
    else:
        per_token = "LM" in type(getattr(model, "base_model", model)).__name__ or "ForC" in type(model).__name__
        given = {"input_ids": tokens, "labels": tokens if per_token or "LM" in type(model).__name__ else labels}
    return lambda: model(**given).loss
