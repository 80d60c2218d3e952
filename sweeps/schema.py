"""What a sweep file and a profile may say. For each mistake one line names the file, the line and what is allowed."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from train.config import Config, unknown_settings
from train.errors import InputError
from train.tasks import METRICS


def _scalar(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str | None):
        raise ValueError("must be a number, a text, true, false or null")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number{_number_in_yaml(value)}")
    return value


def _number_in_yaml(value: Any) -> str:
    """How YAML reads a number as one, where it has read a text: 1e-6 takes a point."""
    try:
        mantissa, exponent = f"{float(value):e}".split("e") if isinstance(value, str) else ("", "")
    except ValueError:
        return ""
    if not exponent:
        return ""
    digits = mantissa.rstrip("0") + ("0" if mantissa.rstrip("0").endswith(".") else "")
    return f"; YAML reads {value} as a text, write {digits}e{exponent}"


def _one_or_several(value: Any) -> Any:
    if isinstance(value, list) and not value:
        raise ValueError("must have at least one value")
    for each in value if isinstance(value, list) else [value]:
        _scalar(each)
    return value


Scalar = Annotated[Any, AfterValidator(_scalar)]
Number = Annotated[Any, AfterValidator(_number)]
MEASURES = (*(f"eval/{metric}" for metric in METRICS), "eval/loss", "train/epoch_loss", "search/trials", "time/total")
"""the keys of a run's summary that a sweep can have as its metric"""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metric(_Strict):
    name: Literal[MEASURES]  # type: ignore[valid-type]
    goal: Literal["maximize", "minimize"]


class Parameter(_Strict):
    """One value, several, or a range."""

    value: Scalar = None
    values: Annotated[list[Scalar], Field(min_length=1)] | None = None
    min: Number = None
    max: Number = None
    distribution: Literal["int_uniform", "uniform", "log_uniform_values"] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Parameter":
        given = self.model_fields_set
        if given not in ({"value"}, {"values"}, {"min", "max"}, {"min", "max", "distribution"}):
            raise ValueError("must have one of value, values, or min and max (and a distribution)")
        if self.min is not None and self.max is not None and not self.min <= self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if self.distribution == "log_uniform_values" and self.min is not None and self.min <= 0:
            raise ValueError(f"min {self.min} has no logarithm; allowed: above 0")
        if self.distribution == "int_uniform" and not (isinstance(self.min, int) and isinstance(self.max, int)):
            raise ValueError(f"min {self.min} and max {self.max} of int_uniform must be whole numbers")
        return self


class Role(_Strict):
    """What a sweep is in the study. It stands in the file's `description`, as W&B refuses keys of others."""

    part: PositiveInt
    """its place in the order of the study"""
    against: dict[str, Scalar] = {}
    """settings of the arm that the others are tested against, within each choice of the settings that are not named"""


def role(description: str) -> dict[str, Any]:
    """The Role that a description tells, as in "part: 6, against: {split: 1}".

    Raises:
        ValueError: it tells none.
    """
    try:
        return Role.model_validate(yaml.safe_load("{" + description + "}")).model_dump()
    except (yaml.YAMLError, ValidationError):
        raise ValueError('must be "part: NUMBER" or "part: NUMBER, against: {SETTING: VALUE, ...}"') from None


def _description(text: str) -> str:
    role(text)
    return text


class SweepFile(_Strict):
    """What W&B and the queue need. Other keys are refused: nothing would read them, so they are mistakes."""

    name: str
    method: Literal["grid", "bayes"]
    metric: Metric
    program: str
    command: Annotated[list[str], Field(min_length=1)]
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    run_cap: PositiveInt | None = None
    description: Annotated[str, AfterValidator(_description)] = ""


_SWEEP: TypeAdapter[Any] = TypeAdapter(SweepFile)
_PROFILE: TypeAdapter[Any] = TypeAdapter(
    dict[str, Annotated[Any, AfterValidator(_one_or_several)]], config=ConfigDict(strict=True)
)


def read_sweep(path: Path) -> dict[str, Any]:
    """A sweep file's content.

    Raises:
        InputError: it has a line for each mistake.
    """
    return _read(path, _SWEEP)


def read_profile(path: Path) -> dict[str, Any]:
    """A profile's content: Config field -> value, or list of values.

    Raises:
        InputError: as in `read_sweep`.
    """
    return _read(path, _PROFILE)


def _read(path: Path, schema: TypeAdapter[Any]) -> dict[str, Any]:
    shown = os.path.relpath(path)
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        raise InputError(f"{shown}:{at.line + 1 if at else 1}: no YAML ({error.problem or error.context})") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{shown} cannot be read ({' '.join(str(error).split())})") from None
    content = {} if content is None and schema is _PROFILE else content
    mistakes = [*_doubled(node)]
    try:
        schema.validate_python(content)
    except ValidationError as error:
        mistakes += [_told(problem) for problem in error.errors()]
    else:
        settings = content["parameters"] if schema is _SWEEP else content
        above = ("parameters",) if schema is _SWEEP else ()
        mistakes += _wrong_values(settings, above)
    lines: dict[tuple[int, str], None] = {}
    for place, said in mistakes:
        lines[_line(node, place), said] = None
    if lines:
        raise InputError("\n".join(f"{shown}:{line}: {said}" for line, said in sorted(lines)))
    return content


Mistake = tuple[Sequence[Any], str]
"""the keys that lead to the mistake, and what is said about it"""


def _doubled(node: yaml.Node | None, place: tuple[Any, ...] = ()) -> Iterator[Mistake]:
    """Keys that a mapping has twice. YAML's reader would take the last one without a warning."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _doubled(item, (*place, number))
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        if key.value in seen:
            yield (*place, key.value), f"{key.value} is there twice; allowed: once"
        seen.add(key.value)
        yield from _doubled(value, (*place, key.value))


def _told(problem: Any) -> Mistake:
    """Pydantic's message about a mistake, in the words of the file."""
    place = list(problem["loc"])
    name = ".".join(map(str, place)) or "the file"
    kind, said = problem["type"], problem["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        model = Parameter if place[:1] == ["parameters"] else Metric if place[:1] == ["metric"] else SweepFile
        hint = " (a parameter that lost its indentation?)" if place[0] in Config.__dataclass_fields__ else ""
        return place, f"unknown key {name}{hint}; allowed: {', '.join(model.model_fields)}"
    if kind == "missing":
        return place, f"{name} is missing"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        said = "must have keys of its own below it, indented"
    return place, f"{name}: {said[0].lower()}{said[1:]}"


def _wrong_values(settings: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[Mistake]:
    """Settings that are no Config fields, and values that Config refuses."""
    for key, given in settings.items():
        if key not in Config.__dataclass_fields__:
            yield (*above, key), str(unknown_settings([key]))
            continue
        inside = given if above else {"values": given if isinstance(given, list) else [given]}
        values = inside.get("values", [inside[end] for end in ("value", "min", "max") if end in inside])
        for value in values:
            try:
                Config.from_dict({key: value})
            except InputError as error:
                yield (*above, key), f"{key}: {str(error).removeprefix(f'--{key}=')}"


def _line(node: yaml.Node | None, place: Sequence[Any]) -> int:
    """The line to which the keys lead, as far as they exist. Of a doubled key it is the last one's."""
    line = node.start_mark.line + 1 if node is not None else 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                return line
            line, node = found[-1][0].start_mark.line + 1, found[-1][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
