"""What the tests of Hugging Face's Trainer share: rows to learn, small models, arguments, a process of torchrun's."""

import sys

import torch
import transformers as hf
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

import optim
from optim.hf import LineSearchTrainer
from tests.small import CLASSIC

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,
}
WORDS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


SHARDED = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"},
}


class OnTheCPU(LineSearchTrainer):
    """Sharded by FSDP2, which accelerate takes up on accelerators only."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            state = self.accelerator.state
            state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True


class Rows(Dataset):
    """Token 5 or 6 in the second place is the label; of `texts` a different number of tokens each is predicted."""

    def __init__(self, count=48, texts=False):
        generator = torch.Generator().manual_seed(0)
        self.rows = []
        for i in range(count):
            tokens = torch.randint(7, 50, (8,), generator=generator)
            tokens[0], tokens[1] = 1, 5 + i % 2
            labels = tokens.masked_fill(torch.arange(8) < i % 7, -100) if texts else torch.tensor(i % 2)
            self.rows.append({"input_ids": tokens, "labels": labels})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return dict(self.rows[index])


def classifier(dropout=0.0):
    torch.manual_seed(0)
    config = hf.BertConfig(**WORDS, **SIZES, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return hf.BertForSequenceClassification(config)


def language_model():
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**WORDS, **SIZES))


def arguments(folder, kind=hf.TrainingArguments, **changes):
    """Two epochs of six batches of eight, in order, on the CPU, where nothing is reported."""
    chosen = {
        "per_device_train_batch_size": 8, "num_train_epochs": 2, "train_sampling_strategy": "sequential",
        "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return kind(str(folder), **chosen | changes)


def distributed(folder):
    """Train models as one of several processes, the last one sharded by FSDP2; keep their weights and losses."""
    found = []
    for texts, more in ((False, {}), (True, {}), (True, SHARDED)):
        model = language_model() if texts else classifier()
        changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 1, **more}
        args, chosen = arguments(folder, **changes), (optim.AdamSLS, {"search": CLASSIC})
        trainer = OnTheCPU(model, args, train_dataset=Rows(texts=texts), optimizer_cls_and_kwargs=chosen)
        trainer.train()
        assert any(isinstance(p, DTensor) for p in trainer.model.parameters()) == bool(more)
        weights = get_model_state_dict(trainer.model, options=StateDictOptions(full_state_dict=True))
        found.append((weights, [row["loss"] for row in trainer.state.log_history[:-1]]))
    found.append(resumed(folder, chosen))
    if trainer.is_world_process_zero():
        torch.save(found, f"{folder}/found.pt")
    torch.distributed.destroy_process_group()  # its threads may abort a process that ends before them


def resumed(folder, chosen):
    """The losses of a sharded run that saves, and of one that goes on from there."""
    sharding = SHARDED | {"fsdp_config": {**SHARDED["fsdp_config"], "state_dict_type": "SHARDED_STATE_DICT"}}
    saving = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 3}
    losses = []
    for resume in (None, f"{folder}/cut/checkpoint-3"):
        args = arguments(f"{folder}/cut", **sharding, **saving)
        trainer = OnTheCPU(language_model(), args, train_dataset=Rows(texts=True), optimizer_cls_and_kwargs=chosen)
        trainer.accelerator._distributed_type = DistributedType.FSDP  # it saves and loads as accelerators do
        trainer.train(resume_from_checkpoint=resume)
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    return losses


if __name__ == "__main__":
    distributed(sys.argv[1])
