"""optim/hf.py: TRL's and sentence-transformers' trainers search with the mix-in; where they are missing this skips."""

import math
import warnings

import pytest
import torch
import transformers as hf
from datasets import Dataset

from optim import PLASLS, AdamSLS, split
from optim.hf import LineSearchMixin

from .trainers import SIZES, arguments

pytestmark = pytest.mark.filterwarnings("default")  # those of other libraries
BAD, GOOD = ["bad", "dull", "poor", "weak"], ["good", "fine", "rich", "warm"]


def encoder(tiny):
    torch.manual_seed(0)
    words = hf.AutoTokenizer.from_pretrained(tiny / "model")
    return words, hf.BertModel(hf.BertConfig(**SIZES | {"initializer_range": 0.02}, vocab_size=len(words)))


def learnt(trainer):
    """The losses; each batch was one move, on what it had lost before."""
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert trainer.state.global_step == len(losses) == trainer._search().turns.progress.steps
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    return losses


@pytest.mark.parametrize("accumulated", [1, 2])
def test_trls_sft_trainer_searches_and_counts_each_token_once(tiny, tmp_path, accumulated):
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")

    class Mine(LineSearchMixin, trl.SFTTrainer):
        pass

    words, _ = encoder(tiny)
    words.eos_token = "[SEP]"
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(**SIZES, vocab_size=len(words), pad_token_id=0, bos_token_id=2, eos_token_id=3)
    )
    rows = Dataset.from_list([{"text": f"a {word} film a {word} film"} for word in BAD + GOOD] * 4)
    args = arguments(
        tmp_path, trl.SFTConfig, per_device_train_batch_size=8 // accumulated, num_train_epochs=3, max_length=32,
        gradient_accumulation_steps=accumulated, bf16=False,
    )  # fmt: skip
    optimizers = (PLASLS(split(model, 4)), None)
    trainer = Mine(model, args, train_dataset=rows, processing_class=words, optimizers=optimizers)
    learnt(trainer)
    tokens = sum(map(len, trainer.train_dataset["input_ids"]))
    assert [row["num_tokens"] for row in trainer.state.log_history if "num_tokens" in row][-1] == 3 * tokens


def test_trls_dpo_trainer_learns_preferences_without_a_rate_and_logs_each_batch_once(tiny, tmp_path):
    """Its reference model is read from the folder, so the model is given as one, and the optimizer as a class."""
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
    words, _ = encoder(tiny)
    words.eos_token, words.padding_side = "[SEP]", "left"
    sizes = SIZES | {"initializer_range": 0.02}
    tokens = {"vocab_size": len(words), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **tokens)).save_pretrained(tmp_path)
    pairs = [{"prompt": "a film", "chosen": f" {good}", "rejected": f" {bad}"} for good in GOOD for bad in BAD]
    args = arguments(tmp_path / "out", trl.DPOConfig, num_train_epochs=10, bf16=False, lr_scheduler_type="cosine")
    trainer = type("Searching", (LineSearchMixin, trl.DPOTrainer), {})(
        str(tmp_path), args=args, train_dataset=Dataset.from_list(pairs), processing_class=words,
        optimizer_cls_and_kwargs=(AdamSLS, {}),
    )  # fmt: skip
    reference = [weight.clone() for weight in trainer.ref_model.parameters()]
    with warnings.catch_warnings(record=True) as said:
        assert learnt(trainer)[0] == pytest.approx(math.log(2), rel=1e-5)  # the model is the reference still
    assert not [each for each in said if each.category is RuntimeWarning]
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert rows[0]["rewards/margins"] == 0.0  # of the batch before its move, not of a trial
    assert rows[-1]["rewards/accuracies"] == 1.0
    assert all(map(torch.equal, reference, trainer.ref_model.parameters()))


@pytest.mark.parametrize(
    ("kind", "iterations", "accumulated"), [("GRPO", 1, 1), ("GRPO", 2, 1), ("GRPO", 2, 2), ("RLOO", 1, 2)]
)
def test_trls_policies_learn_from_their_own_text_and_grpo_needs_two_iterations(
    tiny, tmp_path, kind, iterations, accumulated
):
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")

    class Mine(LineSearchMixin, getattr(trl, f"{kind}Trainer")):
        pass

    words, _ = encoder(tiny)
    words.eos_token, words.padding_side = "[SEP]", "left"
    sizes = SIZES | {"initializer_range": 0.02}
    tokens = {"vocab_size": len(words), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **tokens))
    args = arguments(
        tmp_path, getattr(trl, f"{kind}Config"), per_device_train_batch_size=16, beta=0.0, bf16=False, max_steps=40,
        gradient_accumulation_steps=accumulated, num_generations=8, max_completion_length=8, num_iterations=iterations,
    )  # fmt: skip
    trainer = Mine(
        model, lambda completions, **_: [text.split().count("good") / 8 for text in completions], args=args,
        train_dataset=Dataset.from_list([{"prompt": word} for word in BAD + GOOD] * 8), processing_class=words,
        optimizers=(AdamSLS(model.parameters()), None),
    )  # fmt: skip
    if (kind, iterations) == ("GRPO", 1):  # the value of its loss is the same at all weights
        with pytest.raises(RuntimeError, match="although its gradient does not vanish: it is a constant"):
            trainer.train()
        return
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert sum(rewards[-5:]) > 2 * sum(rewards[:5])
    assert trainer._step == 40 * accumulated


@pytest.mark.parametrize("loss", ["CosineSimilarityLoss", "MultipleNegativesRankingLoss"])
def test_sentence_transformers_trainer_searches(tiny, tmp_path, loss):
    reason = "sentence-transformers is not installed: pip install sentence-transformers"
    st = pytest.importorskip("sentence_transformers", reason=reason)
    from sentence_transformers.sentence_transformer import losses, modules

    class Mine(LineSearchMixin, st.SentenceTransformerTrainer):
        pass

    words, bert = encoder(tiny)
    words.save_pretrained(tmp_path)
    bert.save_pretrained(tmp_path)
    model = st.SentenceTransformer(
        modules=[modules.Transformer(str(tmp_path)), modules.Pooling(SIZES["hidden_size"])], device="cpu"
    )
    if loss == "CosineSimilarityLoss":
        pairs = [(one, other) for one in BAD + GOOD for other in BAD + GOOD]
        rows = [
            {"one": f"a {a} film", "other": f"a {b} film", "score": float((a in BAD) == (b in BAD))} for a, b in pairs
        ]
    else:
        rows = [{"anchor": f"a {word} film", "positive": f"{word} film"} for word in BAD + GOOD]
    args = arguments(
        tmp_path / "out", st.SentenceTransformerTrainingArguments, per_device_train_batch_size=4,
        gradient_accumulation_steps=2, num_train_epochs=3 if "score" in rows[0] else 10,
    )  # fmt: skip
    optimizers = (PLASLS(split(model, 4)), None)
    trainer = Mine(
        model, args, train_dataset=Dataset.from_list(rows), loss=getattr(losses, loss)(model), optimizers=optimizers
    )
    learnt(trainer)
