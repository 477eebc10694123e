"""Experiment: a YAML file, checked as a whole before anything runs, and the cells that it stands for.

    experiment = load("quick")
    cells = experiment.cells("cpu")

`experiments/README.md` has the keys in one table.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from . import backends as toolchains
from . import paths, programs, strict_yaml
from . import variants as registry
from .case import CASE_FIELDS, Case
from .cell import Cell
from .errors import ConfigError, LimitError, nearest, one_of
from .timing import CACHES, LAUNCHES, POLICIES, Policy

MAX_CELLS = 20_000
SMALLEST_SEQLEN = 128  # scaling down does not halve a seqlen below this
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)


class _LocatedError(ConfigError):
    """A ConfigError that knows where below its model it stands: ('cases', 3)."""

    def __init__(self, location: strict_yaml.Location, message: str) -> None:
        self.location = location
        super().__init__(message)


def _check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name[:70]!r} is not a name: 1 to 64 of A-Z a-z 0-9 _ . -, not starting with . or -")
    return name


def _check_variant(name: str) -> str:
    if name != "all":
        one_of("variant", name, ["all", *_names("kernel", "baseline")])
    return name


def _check_baseline(name: str) -> str:
    return one_of("baseline", name, _names("baseline"))


def _check_backend(name: str) -> str:
    return toolchains.known(name, "auto")


def _check_toolchain(given: str) -> str:
    toolchains.split_toolchain(given)
    return given


def _check_notebook(name: str) -> str:
    return one_of("notebook", name, [path.stem for path in sorted(paths.notebooks_dir().glob("*.ipynb"))])


def _names(*kinds: str) -> list[str]:
    return [v.name for v in registry.VARIANTS.values() if v.kind in kinds]


def _no_repeats(values: list[Any]) -> list[Any]:
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"{value!r} is listed twice; keep one")
    return values


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_truths(value: Any) -> Any:
    return [value] if isinstance(value, bool) else value


def _as_products(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


def _as_policy(value: Any) -> Any:
    return {"policy": value} if isinstance(value, str) else value


_TYPES = {"int": int, "str": str, "bool": bool, "float": float}
_CASE_TYPES = {f.name: _TYPES[str(f.type)] for f in dataclasses.fields(Case) if f.name != "scaled_from"}


def _case_value(name: str) -> Any:
    """The type of one Case field, with Case's own check of it."""

    def check(value: Any) -> Any:
        # What a value is held against passes here; it is compared with the true one when the whole case is known.
        against: dict[str, dict[str, Any]] = {
            "row_stride": {"dim": 1, "view": "channel_slice"},
            "state_len": {"op": "update", "width": 1},
        }
        Case(**(against.get(name, {}) | {name: value}))
        return value

    return Annotated[_CASE_TYPES[name], AfterValidator(check)]


def _fields_model(name: str, wrap: Any) -> type[BaseModel]:
    fields: dict[str, Any] = {field: (wrap(field), None) for field in _CASE_TYPES}
    return create_model(name, __config__=_STRICT, **fields)


def _axis(name: str) -> Any:
    return Annotated[list[_case_value(name)], Field(min_length=1), AfterValidator(_no_repeats)]  # type: ignore[misc]


PartialCase = _fields_model("PartialCase", _case_value)
Axes = _fields_model("Axes", _axis)
VariantName = Annotated[str, AfterValidator(_check_variant)]
BaselineName = Annotated[str, AfterValidator(_check_baseline)]
BackendName = Annotated[str, AfterValidator(_check_backend)]
BackendKey = Annotated[str, AfterValidator(toolchains.known)]
Toolchain = Annotated[str, AfterValidator(_check_toolchain)]
ProgramName = Annotated[str, AfterValidator(programs.canonical)]
NotebookName = Annotated[str, AfterValidator(_check_notebook)]
_LIST = (BeforeValidator(_as_list), AfterValidator(_no_repeats))  # a single name stands for a list of one
_FILLED = Field(min_length=1)


class Timing(BaseModel):
    """A named policy, fields of one, or both: the fields win."""

    model_config = _STRICT

    policy: str = ""
    warmup: Annotated[int | None, Field(ge=0)] = None
    min_samples: Annotated[int | None, Field(ge=1)] = None
    max_samples: Annotated[int | None, Field(ge=1)] = None
    rel_err: Annotated[float | None, Field(ge=0)] = None
    budget_s: Annotated[float | None, Field(gt=0)] = None
    cache: str | None = None
    launch: str | None = None

    @field_validator("policy", "cache", "launch")
    @classmethod
    def _known(cls, name: str, field: ValidationInfo) -> str:
        allowed = {"policy": POLICIES, "cache": CACHES, "launch": LAUNCHES}
        return one_of(str(field.field_name), name, allowed[str(field.field_name)])

    def resolve(self, default: str) -> Policy:
        """The policy meant; `default` is the name to start from when none is given."""
        start = POLICIES[self.policy or default]
        given = {k: v for k, v in self.model_dump(exclude={"policy"}).items() if v is not None}
        policy = dataclasses.replace(start, **given)
        if policy.max_samples < policy.min_samples:
            problem = f"max_samples: {policy.max_samples} must be at least min_samples = {policy.min_samples}"
            raise _LocatedError(("timing",), problem)
        return policy


class CpuLimits(BaseModel):
    """How far cases are scaled down for the emulation. None: not at all."""

    model_config = _STRICT

    max_outputs: Annotated[int | None, Field(ge=1)] = None
    max_dim: Annotated[int | None, Field(ge=1)] = None


class Experiment(BaseModel):
    """What is compared: variants x backends x cases x tunables. Every value is checked when it is made."""

    model_config = _STRICT

    name: Annotated[str, AfterValidator(_check_name)]
    description: str = ""
    variants: Annotated[list[VariantName], *_LIST, _FILLED] = ["all"]
    baselines: Annotated[list[BaselineName], *_LIST] = []
    backends: Annotated[list[BackendName], *_LIST, _FILLED] = ["auto"]
    base: PartialCase = PartialCase()  # type: ignore[valid-type]
    axes: Annotated[list[Axes], BeforeValidator(_as_products)] = []  # type: ignore[valid-type]
    cases: list[PartialCase] = []  # type: ignore[valid-type]
    tunables: dict[str, dict[str, list[int]]] = {}
    toolchains: dict[BackendKey, Annotated[list[Toolchain], *_LIST, _FILLED]] = {}
    programs: Annotated[list[ProgramName], *_LIST] = []
    verify: Annotated[list[bool], BeforeValidator(_as_truths), AfterValidator(_no_repeats), _FILLED] = [False]
    timing: Annotated[Timing, BeforeValidator(_as_policy)] = Timing()
    cpu: CpuLimits = CpuLimits()
    notebooks: Annotated[list[NotebookName], *_LIST] = []
    _path: Path | None = PrivateAttr(None)

    @property
    def path(self) -> Path | None:
        """The file that it was loaded from."""
        return self._path

    def cells(self, backend: str | None = None) -> list[Cell]:
        """All cells, those of a case side by side. `backend`: only there; None: where the file says.

        Combinations that a variant cannot do stay in: their rows say why. ConfigError for an unknown backend.
        """
        if self.programs:
            return list({cell.cell_id: cell for cell in self._program_cells(backend)}.values())
        found = (
            Cell(variant.name, where, case, knobs, toolchain=toolchain)
            for where in self._backends(backend)
            for toolchain in self.toolchains.get(where, [""])
            for case in self._cases_on(where)
            for variant in self._variants(case.op)
            for knobs in self._knobs(variant.name)
            if variant.source or not toolchain
        )
        return list({cell.cell_id: cell for cell in found}.values())

    def _program_cells(self, backend: str | None) -> Iterator[Cell]:
        for where in self._backends(backend):
            for case in self._cases_on(where):
                for program, verify in itertools.product(self.programs, self.verify):
                    variant, layout = programs.kernel_of(program)
                    placed = dataclasses.replace(case, layout=layout)
                    yield Cell(variant, where, placed, program=program, verify=verify)

    def policy(self, backend: str) -> Policy:
        """How launches are timed on `backend`."""
        return self.timing.resolve("cpu" if backend == "cpu" else "gpu")

    def _variants(self, op: str) -> list[registry.Variant]:
        """What meets cases of `op`: `all` is every kernel of it, and a name stays when it is for another."""
        return registry.select([*self.variants, *self.baselines], op)

    def _ops(self) -> Counter[str]:
        """How many cases each op has, counted without making them."""
        base = _given(self.base)
        found: Counter[str] = Counter(_given(case).get("op", base.get("op", "fwd")) for case in self.cases)
        for _, axes in self._products():
            each = math.prod(len(values) for name, values in axes.items() if name != "op")
            for op in axes.get("op", [base.get("op", "fwd")]):
                found[op] += each
        return found

    def _backends(self, backend: str | None) -> list[str]:
        names = self.backends if backend in (None, "auto") else [_check_backend(str(backend))]
        expanded = [toolchains.runnable() if name == "auto" else [name] for name in names]
        return list(dict.fromkeys(itertools.chain.from_iterable(expanded)))

    def _cases_on(self, backend: str) -> Iterator[Case]:
        for case in self._all_cases():
            yield scale_down(case, self.cpu) if backend == "cpu" else case

    def _all_cases(self) -> Iterator[Case]:
        """The products of the axes, then the explicit cases, all over `base`. ConfigError says which is invalid."""
        base = _given(self.base)
        for i, axes in self._products():
            for values in itertools.product(*axes.values()):
                yield _make_case(("axes", i), base | dict(zip(axes, values, strict=True)))
        for i, case in enumerate(self.cases):
            yield _make_case(("cases", i), base | _given(case))

    def _products(self) -> list[tuple[int, dict[str, Any]]]:
        """The axes of each product, with its number; with neither axes nor cases, `base` is the only case."""
        found = [(i, given) for i, axes in enumerate(self.axes) if (given := _given(axes))]
        return found or ([] if self.cases else [(0, {})])

    def _knobs(self, variant: str) -> Iterator[dict[str, int]]:
        axes = self.tunables.get(variant, {})
        for values in itertools.product(*axes.values()):
            yield dict(zip(axes, values, strict=True))

    def count(self) -> int:
        """Number of cells on one backend, the one with most toolchains, counted without building them."""
        programs, each = len(self.programs) * len(self.verify), max(map(len, self.toolchains.values()), default=1)
        return sum(n * (programs or each * self._count_of(op)) for op, n in self._ops().items())

    def _count_of(self, op: str) -> int:
        return sum(math.prod(map(len, self.tunables.get(v.name, {}).values())) for v in self._variants(op))

    @model_validator(mode="after")
    def _check_all(self) -> Experiment:
        self._check_programs()
        for variant, knobs in self.tunables.items():
            self._check_tunables(variant, knobs)
        total = self.count() * len(self.backends)
        if total > MAX_CELLS:
            raise LimitError(f"this experiment has {total} cells, at most {MAX_CELLS}: shorten `axes` or `tunables`")
        for policy in ("cpu", "gpu"):
            self.timing.resolve(policy)
        for _ in self._all_cases():
            pass
        return self

    def _check_programs(self) -> None:
        """`programs` names the kernels and their layout itself, and `verify` is theirs alone."""
        refused = ("variants", "baselines", "tunables", "toolchains") if self.programs else ("verify",)
        for key in refused:
            if key in self.model_fields_set:
                why = (
                    "a program has kernels of its own" if self.programs else "it is for `programs`, and there are none"
                )
                raise _LocatedError((key,), f"{why}; remove {key}")
        sections: list[tuple[strict_yaml.Location, BaseModel]] = [(("base",), self.base)]
        sections += [(("axes", i), axes) for i, axes in enumerate(self.axes)]
        sections += [(("cases", i), case) for i, case in enumerate(self.cases)]
        for location, section in sections if self.programs else []:
            if "layout" in _given(section):
                raise _LocatedError((*location, "layout"), "a program has a layout of its own; remove layout")

    def _check_tunables(self, variant: str, knobs: Mapping[str, list[int]]) -> None:
        taken = [v.name for op in self._ops() for v in self._variants(op)]
        try:
            if variant in registry.VARIANTS and variant not in taken:
                raise ConfigError(f"{variant} is not among this experiment's variants: add it there, or take this out")
            one_of("variant", variant, taken)
        except ConfigError as e:
            raise _LocatedError(("tunables", variant), str(e)) from e
        for knob, values in knobs.items():
            try:
                if not values:
                    raise ConfigError("[] must not be empty")
                for value in _no_repeats(values):
                    registry.resolve_tunables(registry.get(variant), {knob: value})
            except ConfigError as e:
                raise _LocatedError(("tunables", variant, knob), str(e)) from e


def _given(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(exclude_unset=True)


def _make_case(location: strict_yaml.Location, values: dict[str, Any]) -> Case:
    try:
        return Case(**values)
    except ConfigError as e:
        raise _LocatedError(location, str(e)) from e


def scale_down(case: Case, limits: CpuLimits) -> Case:
    """The same case, small enough to emulate.

    dim is halved down to `max_dim`, then seqlen, batch and dim in this order until there are at most `max_outputs`
    outputs. Width, layout and row_stride / dim stay. `scaled_from` says what the shape was.
    """
    small = case
    while limits.max_dim and small.dim > limits.max_dim:
        small = _halve_dim(small)
    while limits.max_outputs and small.outputs > limits.max_outputs:
        small = _halve(small)
    return small if small == case else dataclasses.replace(small, scaled_from=case.shape())


def _halve(case: Case) -> Case:
    if case.seqlen >= 2 * SMALLEST_SEQLEN:
        return dataclasses.replace(case, seqlen=case.seqlen // 2)
    if case.batch > 1:
        return dataclasses.replace(case, batch=case.batch // 2)
    if case.dim > 1:
        return _halve_dim(case)
    return dataclasses.replace(case, seqlen=case.seqlen // 2)


def _halve_dim(case: Case) -> Case:
    dim = case.dim // 2
    return dataclasses.replace(case, dim=dim, row_stride=case.row_stride * dim // case.dim)


def load(path_or_name: str | Path) -> Experiment:
    """Read an experiment: a path, or the bare name of one of ours, such as `quick`.

    ConfigError or LimitError, with `file:line:column`, the key, the value and the remedy.
    """
    path = _find(path_or_name)
    document = strict_yaml.load(path)
    try:
        experiment = Experiment.model_validate({"name": path.stem, **document.data})
    except ValidationError as e:
        raise _translate(document, e) from e
    experiment._path = path
    return experiment


load_experiment = load


def shipped() -> list[Path]:
    """The experiment files that come with the package."""
    return sorted(paths.experiments_dir().glob("*.yaml"))


def _find(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.suffix in (".yaml", ".yml"):
        return path
    names = {p.stem: p for p in shipped()}
    if str(path_or_name) in names:
        return names[str(path_or_name)]
    hint = nearest(str(path_or_name), names)
    raise ConfigError(
        f"experiment {str(path_or_name)!r} is not known{hint}; `cc1d list experiments`, or give a .yaml file"
    )


_PLAIN_WORDS = {
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "too_short": "must not be empty",
}


def _translate(document: strict_yaml.Document, failure: ValidationError) -> ConfigError | LimitError:
    """The first error in words of the file: file:line:column: key: value problem, remedy."""
    error = failure.errors(include_url=False)[0]
    location = _as_written(document, tuple(error["loc"]))
    if error["type"] == "extra_forbidden":
        return ConfigError(f"{document.at(location, key=True)}: {_unknown_key(location)}")
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, _LocatedError):
        location = _as_written(document, (*location, *cause.location))
    kind = LimitError if isinstance(cause, LimitError) else ConfigError
    message = str(cause) if isinstance(cause, ConfigError | LimitError) else _plain_words(dict(error))
    return kind(f"{document.at(location)}: {_with_key(location, message)}")


def _as_written(document: strict_yaml.Document, location: strict_yaml.Location) -> strict_yaml.Location:
    """`axes` may be written as a single mapping, which an Experiment holds as a list of one."""
    single = location[:2] == ("axes", 0) and isinstance(document.data.get("axes"), Mapping)
    return ("axes", *location[2:]) if single else location


def _plain_words(error: dict[str, Any]) -> str:
    words = _PLAIN_WORDS.get(error["type"], error["msg"].replace("Input should", "must"))
    hint = "; a list belongs under `axes`" if isinstance(error["input"], list) and "cases" in error["loc"] else ""
    return f"{_short(error['input'])} {words}{hint}"


def _unknown_key(location: strict_yaml.Location) -> str:
    known = list(_known_keys(location[0] if len(location) > 1 else ""))
    return f"unknown key {location[-1]!r}{nearest(str(location[-1]), known)}; allowed: {', '.join(known)}"


def _known_keys(section: str | int) -> Iterator[str]:
    if section in ("base", "axes", "cases"):
        return (name for name in CASE_FIELDS if name in _CASE_TYPES)
    models: dict[str | int, type[BaseModel]] = {"timing": Timing, "cpu": CpuLimits}
    return iter(models.get(section, Experiment).model_fields)


def _with_key(location: strict_yaml.Location, message: str) -> str:
    """`message`, after the dotted name of the key unless it begins with the key already."""
    names = [part for part in location if isinstance(part, str)]
    if not names or message.startswith(f"{names[-1]}:"):
        return message
    return f"{'.'.join(names)}: {message}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
