"""Case: one instance of the problem. Pure: no torch, no device, no file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import ConfigError, one_of

OPS = ("fwd",)
DTYPES = ("float32", "float16", "bfloat16")
LAYOUTS = ("channel_first", "channel_last")
ACTIVATIONS = ("none", "silu")
VIEWS = ("contiguous", "channel_slice", "misaligned")
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, order=True)
class Case:
    """A problem: out[b, d, t] = act(bias[d] + sum_i weight[d, i] * x[b, d, t - width + 1 + i]).

    `x` and `out` always have the shape (batch, dim, seqlen); `layout` says which of dim and seqlen is contiguous.
    `view` is how `x` lies in memory: `contiguous`; `channel_slice`, channels cut out of a wider buffer of
    `row_stride` channels; `misaligned`, one element past a 16-byte boundary.
    `scaled_from` names what a scaled-down model shape stands for, and is empty otherwise.
    """

    batch: int = 2
    dim: int = 64
    seqlen: int = 256
    width: int = 4
    dtype: str = "float32"
    weight_dtype: str = ""
    layout: str = "channel_first"
    bias: bool = True
    activation: str = "silu"
    view: str = "contiguous"
    row_stride: int = 0
    op: str = "fwd"
    seed: int = 0
    label: str = ""
    scaled_from: str = ""

    def __post_init__(self) -> None:
        if not self.weight_dtype:
            object.__setattr__(self, "weight_dtype", self.dtype)
        for name, allowed in _CHOICES.items():
            one_of(name, getattr(self, name), allowed)
        for name in ("batch", "dim", "seqlen", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}: {value!r} must be an integer of at least 1")
        if self.row_stride and self.row_stride < self.dim:
            raise ConfigError(f"row_stride: {self.row_stride} must be 0 (none) or at least dim = {self.dim}")

    @property
    def itemsize(self) -> int:
        """Bytes of one element of x and out."""
        return ITEMSIZE[self.dtype]

    @property
    def outputs(self) -> int:
        """Number of output elements."""
        return self.batch * self.dim * self.seqlen

    def bytes(self) -> int:
        """Fewest bytes a forward must move: x read once, out written once, weight and bias read once."""
        parameters = self.dim * (self.width + int(self.bias)) * ITEMSIZE[self.weight_dtype]
        return 2 * self.outputs * self.itemsize + parameters

    def flops(self) -> int:
        """Useful floating-point operations: a multiply and an add per tap, one add for the bias.

        SiLU is left out, as is usual: its cost depends on how exp is done.
        """
        return self.outputs * (2 * self.width + int(self.bias))

    def shape(self) -> str:
        """batch x dim x seqlen x width, the short form of S4's tables."""
        return f"{self.batch}x{self.dim}x{self.seqlen}x{self.width}"

    def title(self) -> str:
        """A one-line name for charts and logs."""
        parts = [self.label, self.shape(), self.dtype, self.layout]
        if self.weight_dtype != self.dtype:
            parts.append(f"weight {self.weight_dtype}")
        parts += ["bias" if self.bias else "no bias", self.activation]
        if self.view != "contiguous":
            parts.append(self.view)
        return " ".join(p for p in parts if p)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as they stand in a row."""
        return asdict(self)


_CHOICES = {
    "op": OPS,
    "dtype": DTYPES,
    "weight_dtype": DTYPES,
    "layout": LAYOUTS,
    "activation": ACTIVATIONS,
    "view": VIEWS,
}
CASE_FIELDS = tuple(f.name for f in fields(Case))
