"""The operator for models: Dao-AILab's functions on any variant and backend, as torch operators with gradients.

from cc1d_lab import causal_conv1d_fn
out = causal_conv1d_fn(x, weight, bias, activation="silu")
"""

from .choice import Explanation, explain
from .functions import causal_conv1d_fn, causal_conv1d_update, causal_conv1d_varlen_states
from .references import (
    causal_conv1d_fn_ref,
    causal_conv1d_ref,
    causal_conv1d_update_ref,
    causal_conv1d_varlen_states_ref,
)

__all__ = [
    "Explanation",
    "causal_conv1d_fn",
    "causal_conv1d_fn_ref",
    "causal_conv1d_ref",
    "causal_conv1d_update",
    "causal_conv1d_update_ref",
    "causal_conv1d_varlen_states",
    "causal_conv1d_varlen_states_ref",
    "explain",
]
