"""Case: one instance of the problem. Pure: no torch, no device, no file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import ConfigError, one_of

OPS = ("fwd", "bwd", "update")
DTYPES = ("float32", "float16", "bfloat16")
EVERY_DTYPE = (*DTYPES, "float64")  # float64 is for gradient checks in emulation
LAYOUTS = ("channel_first", "channel_last")
ACTIVATIONS = ("none", "silu")
VIEWS = ("contiguous", "channel_slice", "sliced_input", "batch_second", "misaligned")
SLICES = ("channel_slice", "sliced_input")  # cut from a buffer of row_stride channels
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, order=True)
class Case:
    """A problem: out[b, d, t] = act(bias[d] + sum_i weight[d, i] * x[b, d, t - width + 1 + i]).

    `x` and `out` always have the shape (batch, dim, seqlen); `layout` says which of dim and seqlen is contiguous.
    `op`: `fwd`; `bwd`, the gradients of it; `update`, `seqlen` steps of decoding with a state of width - 1 steps.
    `state_len`: steps that the state of an update holds, 0 for width - 1.
    `states`: with initial_states and final_states. `seq_idx`: several sequences packed in a row.
    `view` is how `x` and `out` lie in memory: `contiguous`; `channel_slice`, channels cut out of a wider buffer of
    `row_stride` channels; `sliced_input`, the same for x alone, and `out` contiguous; `batch_second`, in memory (dim,
    batch, seqlen) or (seqlen, batch, dim); `misaligned`, one element past a 16-byte boundary.
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
    state_len: int = 0
    states: bool = False
    seq_idx: bool = False
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
        for name in ("bias", "states", "seq_idx"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}: {getattr(self, name)!r} must be true or false")
        if self.op == "update" and (self.states or self.seq_idx):
            raise ConfigError("states, seq_idx: an update has a state of its own and no seq_idx; leave both out")
        if self.state_len and (self.op != "update" or self.state_len < self.width - 1):
            raise ConfigError(
                f"state_len: {self.state_len} must be 0 (width - 1), or in an update at least {self.width - 1}"
            )
        if self.row_stride and self.row_stride < self.dim:
            raise ConfigError(f"row_stride: {self.row_stride} must be 0 (none) or at least dim = {self.dim}")
        if self.row_stride and self.view not in SLICES:
            raise ConfigError(f"row_stride: {self.row_stride} is for view {' or '.join(SLICES)}, got view {self.view}")

    @property
    def itemsize(self) -> int:
        """Bytes of one element of x and out."""
        return ITEMSIZE[self.dtype]

    @property
    def outputs(self) -> int:
        """Number of output elements."""
        return self.batch * self.dim * self.seqlen

    @property
    def state_steps(self) -> int:
        """Steps that a state holds."""
        return self.state_len or self.width - 1

    def bytes(self) -> int:
        """Fewest bytes the op must move, each tensor once.

        fwd: x, weight, bias read; out written. bwd: x, dout, weight, bias read; dx, dweight, dbias written. update: as
        fwd, and the state read and written. `states`: one state read and one written (bwd: two, the gradients too).
        """
        parameters = self.dim * (self.width + int(self.bias)) * ITEMSIZE[self.weight_dtype]
        state = self.batch * self.dim * self.state_steps * self.itemsize
        moved = {"fwd": (2, 1, 2), "bwd": (3, 2, 3), "update": (2, 1, 0)}  # times outputs, parameters, states
        outputs, weights, states = moved[self.op]
        total = outputs * self.outputs * self.itemsize + weights * parameters
        total += (states if self.states else 0) * state + (2 * state if self.op == "update" else 0)
        return total + (4 * self.batch * self.seqlen if self.seq_idx else 0)

    def flops(self) -> int:
        """Useful floating-point operations: a multiply and an add per tap, one add for the bias.

        bwd: as many for dx, for dweight and, with SiLU, for the pre-activation. SiLU itself is left out, as is usual:
        its cost depends on how exp is done.
        """
        taps = 2 * self.width
        if self.op != "bwd":
            return self.outputs * (taps + int(self.bias))
        return self.outputs * (2 * taps + int(self.bias) + (taps + int(self.bias) if self.activation == "silu" else 0))

    def shape(self) -> str:
        """batch x dim x seqlen x width, the short form of S4's tables."""
        return f"{self.batch}x{self.dim}x{self.seqlen}x{self.width}"

    def title(self) -> str:
        """A one-line name for charts and logs."""
        parts = [self.label, self.op if self.op != "fwd" else "", self.shape(), self.dtype, self.layout]
        if self.weight_dtype != self.dtype:
            parts.append(f"weight {self.weight_dtype}")
        parts += ["bias" if self.bias else "no bias", self.activation]
        parts += [name for name in ("states", "seq_idx") if getattr(self, name)]
        if self.state_len:
            parts.append(f"state of {self.state_len}")
        if self.view != "contiguous":
            parts.append(self.view)
        return " ".join(p for p in parts if p)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as they stand in a row."""
        return asdict(self)


_CHOICES = {
    "op": OPS,
    "dtype": EVERY_DTYPE,
    "weight_dtype": EVERY_DTYPE,
    "layout": LAYOUTS,
    "activation": ACTIVATIONS,
    "view": VIEWS,
}
CASE_FIELDS = tuple(f.name for f in fields(Case))
