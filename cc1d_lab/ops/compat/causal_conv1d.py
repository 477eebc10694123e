"""Dao-AILab's package: `from cc1d_lab.ops.compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_update`.

What is refused there works here: states in every layout, with seq_idx too, any width, CPU tensors, any dim and strides.
"""

from __future__ import annotations

from ..functions import causal_conv1d_fn, causal_conv1d_update, causal_conv1d_varlen_states
from ..references import causal_conv1d_ref, causal_conv1d_update_ref, causal_conv1d_varlen_states_ref

__all__ = [
    "causal_conv1d_fn",
    "causal_conv1d_ref",
    "causal_conv1d_update",
    "causal_conv1d_update_ref",
    "causal_conv1d_varlen_states",
    "causal_conv1d_varlen_states_ref",
]
