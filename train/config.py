"""One run's whole configuration. A field has the same name as flag, YAML key, W&B column and DataFrame column."""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .arguments import Parser, folder, unknown
from .candidates import SEARCHES, USED_BY, find, reads
from .errors import InputError
from .places import name_of
from .tasks import TASKS

NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

# A field that older runs do not have is in no id at the value that they had.
ADDED = {"adapter": "none", "schedule": "cosine"}
# Where a run is kept and how it is watched does not change its result, so these fields are not in its run id.
OUTSIDE_IDENTITY = ("out", "sweep", "profile", "track", "keep_model", "shard", "threads", "checkpoint_minutes")

# What of a run its name in W&B tells, if it is not the default. A profile's sizes are alike in all runs of a sweep.
IN_TITLE = ("adapter", "dropout", "batch_size", "precision", *USED_BY)


# The groups of --help: first field -> title.
GROUPS = {
    "task": "what is learned",
    "optimizer": "how it is learned",
    "search": "the line search; None is the search's own value",
    "out": "where it is kept, how it is watched",
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False))
class Config:
    """Defaults are the paper's (Sec. IV), but for the search, which is mended (docs/deviations.md)."""

    # what is learned
    task: str = "sst2"
    """a task of train.tasks.TASKS"""
    subset: Literal["small", "full"] = "small"
    """small: 500 training rows drawn at random by the seed; full: all of them"""
    train_rows: PositiveInt | None = None
    """training rows of a full run, drawn at random by the seed; None: all"""
    model: str = "bert-base-uncased"
    """a hub id, a folder, the name of the folder in PLASLS_MODEL, or a packaged model (minilm-l6)"""
    data: str = "nyu-mll/glue"
    """a hub id, a folder with TASK/{train,validation}.jsonl, the name of the folder in PLASLS_DATA, or a packaged set
    (film-snippets)"""
    max_length: PositiveInt = 256
    """tokens a row is cut to; batches are padded to their own longest row"""
    pack: bool = False
    """whether several short rows stand in one, without padding: the same loss, sooner; dropout is drawn otherwise. Rows
    with a learned prompt are not packed"""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """dropout probability everywhere in the encoder; None: the model's own"""
    adapter: Literal["none", "lora", "loraplus", "rslora", "dora", "pissa", "ia3", "prompt"] = "none"
    """what trains of the encoder: none: all of it; else an adapter of peft alone, a key of train.adapters.KINDS"""
    eval_rows: PositiveInt | None = None
    """validation rows used, always the same ones drawn at random; None: all"""
    eval_every: PositiveInt | Literal["end"] = 1
    """epochs between evaluations, beside the one after the last epoch; end: that one alone"""

    # how it is learned
    optimizer: str = "plasls"
    """a candidate of train.candidates.CANDIDATES"""
    split: PositiveInt | Literal["qkv"] = 10
    """components of plasls: 1, 4, 7, 10, any number, or qkv"""
    epochs: PositiveInt = 5
    """passes over the training rows"""
    batch_size: PositiveInt = 32
    """rows a step"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """seeds the head, the small subset, the order of rows and the dropout"""
    learning_rate: PositiveFloat = 2e-5
    """peak learning rate of adam, adamw, nadamw and schedule-free; the line searches have none"""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """share of their steps in linear warm-up, before the decay"""
    schedule: Literal["cosine", "linear"] = "cosine"
    """decay of their learning rate to 0, but for schedule-free, which has none"""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """momentum of adam, adamsls and plasls: beta of the mean gradient; 0: none"""
    lever: Literal[
        "none",
        "criterion",
        "c",
        "nonmonotone",
        "momentum",
        "decay",
        "average",
        "interval",
        "first_search",
        "growth",
        "components",
    ] = "none"
    """of untuned, the default before follow: what is changed, a key of train.builders.LEVERS"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward passes under autocast"""

    # the line search; None is the search's own value
    search: Literal["paper", "mended"] = "mended"
    """paper: as the paper's text has it (optim.PAPER); mended: what keeps it from failing (train.builders.MENDED)"""
    c: Fraction | None = None
    """sufficient decrease of the Armijo condition"""
    max_interval: PositiveInt | None = None
    """steps from one search to the next at most, where searches take their first trial"""
    rounding: NonNegativeFloat | None = None
    """tolerance of the test in units of the loss's rounding error; 0: the strict test"""
    direction: Literal["gradient", "momentum"] | None = None
    """the direction that the search tests: beta1 = 0 (Eq. 5) or the one that is taken"""
    growth: Literal["searched", "all"] | None = None
    """the components that grow at a step"""
    joint: PositiveInt | Literal["always", "never"] | None = None
    """steps between tests of the joint move; never: Eq. 6 alone"""
    merge_threshold: NonNegativeFloat | None = None
    """lambda of Algorithm 1; 0: never merge"""

    # where it is kept, how it is watched
    out: str = "runs"
    """folder of the run folders"""
    sweep: str = "single"
    """the sweep that the run belongs to: a folder under out, and W&B's group"""
    profile: str = "none"
    """the sweep profile's name, shown in tables and captions"""
    track: bool = True
    """log to Weights & Biases (WANDB_MODE decides how; offline without a key)"""
    keep_model: bool = False
    """keep the trained model in the run folder, and as an artifact of the W&B run"""
    shard: bool = False
    """under torchrun: each process holds a share of the weights and the optimizer's state (FSDP2) instead of all"""
    threads: PositiveInt | None = None
    """CPU threads; None: torch's own choice"""
    checkpoint_minutes: NonNegativeFloat = 10.0
    """time between checkpoints, beside the one after each epoch"""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"--task={self.task}: unknown task; allowed: {', '.join(TASKS)}")
        find(self.optimizer)
        folder("out", self.out)
        for key in ("sweep", "profile"):
            value = getattr(self, key)
            if not value or Path(value).name != value:
                raise InputError(f"--{key}={value}: must be a plain name, without a folder")
        for key, own in SEARCHES[self.search].items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, own)

    @property
    def run_id(self) -> str:
        """Digest of all fields that can change the result.

        Settings that the candidate does not read are left out, and those of `ADDED` at their first values. A model or a
        data set in a folder counts by the folder's own name, so that the id is the same wherever the folder lies.
        """
        identity = {
            key: value
            for key, value in self.described().items()
            if key not in OUTSIDE_IDENTITY and reads(self.optimizer, key) and (key, value) not in ADDED.items()
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        return Path(self.out) / self.sweep / self.run_id

    @property
    def title(self) -> str:
        """The run's name in W&B. It tells each setting that is read and is not the default, so no two arms share it."""
        default = Config(optimizer=self.optimizer, search=self.search).as_dict()
        told = {key: value for key, value in self.as_dict().items() if key in IN_TITLE and reads(self.optimizer, key)}
        changed = [f"{key}={value}" for key, value in told.items() if value != default[key]]
        return "-".join([self.task, self.subset, self.optimizer, *changed, f"seed{self.seed}"])

    def is_evaluated(self, epoch: int) -> bool:
        """Whether the validation rows are evaluated after this epoch (from 1)."""
        return epoch == self.epochs or (self.eval_every != "end" and epoch % self.eval_every == 0)

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def described(self) -> dict[str, Any]:
        """What is stored of the run: its fields, with models and data sets by their names instead of folders."""
        return self.as_dict() | {"model": name_of(self.model), "data": name_of(self.data)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Check the values, which may be strings, as on a command line.

        Raises:
            InputError: names every key that is unknown and every value that is out of range.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        if wrong := [key for key in values if key not in fields]:
            raise unknown_settings(wrong)
        try:
            return _ADAPTER.validate_python({k: None if v == "None" else v for k, v in values.items()})
        except ValidationError as error:
            problems: dict[str, list[str]] = {}
            for problem in error.errors():
                problems.setdefault(str(problem["loc"][0]), []).append(problem["msg"])
            raise InputError(
                "; ".join(f"--{key}={values[key]}: {', or '.join(messages)}" for key, messages in problems.items())
            ) from None

    @classmethod
    def from_args(cls, args: Sequence[str]) -> "Config":
        """Read `--key=value ...`, in every form that W&B's `${args}` emits.

        Raises:
            InputError: as `from_dict`.
        """
        parser = Parser(prog="python -m train", usage="%(prog)s --key=value ...", allow_abbrev=False)
        group: argparse.ArgumentParser | argparse._ArgumentGroup = parser
        for field in dataclasses.fields(cls):
            if field.name in GROUPS:
                group = parser.add_argument_group(GROUPS[field.name])
            described = cls.__pydantic_fields__[field.name].description  # type: ignore[attr-defined]
            group.add_argument(
                f"--{field.name}",
                default=argparse.SUPPRESS,
                metavar="VALUE",
                help=f"{described} [{field.default}]".replace("%", "%%"),
            )
        return cls.from_dict(vars(parser.parse_args(args)))


def unknown_settings(keys: Sequence[str], where: str = "") -> InputError:
    """One line about keys that are no Config fields."""
    return unknown("setting", keys, [field.name for field in dataclasses.fields(Config)], "python -m train", where)


_ADAPTER: TypeAdapter[Config] = TypeAdapter(Config)
