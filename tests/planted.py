"""Planted bugs: changes of a shipped source that the checks must find, and changes that they must let pass."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cc1d_lab import paths
from cc1d_lab.case import Case

_SHARED = {"dtype": "bfloat16", "seqlen": 1134, "dim": 5}
_LAST = {"layout": "channel_last", "dtype": "bfloat16", "seqlen": 129, "dim": 70}
_SMALL = {"batch": 1, "dim": 8, "seqlen": 63}  # what it writes too much stays in the guard behind the output
_BWD = {"op": "bwd", "seqlen": 131, "dim": 6}
_BWD_LAST = {"op": "bwd", "layout": "channel_last", "seqlen": 131, "dim": 70}
_UPDATE = {"op": "update", "seqlen": 3}
_DECODE = "include/cc1d/decode.h"
_PACKED = {"states": True, "seq_idx": True}
_FRAME = {**_PACKED, "view": "misaligned"}
_SHORT = {"states": True, "seqlen": 70, "dtype": "bfloat16"}
_TAIL = {"file": "include/cc1d/states.h", **_PACKED}
_OWN = {"file": "include/cc1d/sequences.h", "seq_idx": True, "seqlen": 512}
_ENDS = {"file": "include/cc1d/frame.h", "dtype": "bfloat16", "view": "misaligned"}
_STAGED = {"dtype": "bfloat16", "dim": 133, "seqlen": 20}
_APART = {"file": "include/cc1d/channels.h", **_STAGED}
_TURNED = {"file": "include/cc1d/turned.h", "dim": 515, "seqlen": 75}
_PAIRS = {"file": "include/cc1d/packed.h", "dtype": "bfloat16", "dim": 515, "seqlen": 75}
_MARKED = {"file": "include/cc1d/sequences.h", **_PACKED}
_ONE = {"file": "include/cc1d/sequences.h", "seq_idx": True}
_BY_ROWS = {"dtype": "bfloat16", "batch": 5, "dim": 3, "seqlen": 1025}
_SILU = {"activation": "silu"}
_GEMM = {"dtype": "float16", "seqlen": 37, "dim": 20}


@dataclass(frozen=True)
class Planted:
    """`old` becomes `new` in `file` (the `nth` of its places); `case` is what shows it."""

    name: str
    variant: str
    old: str
    new: str
    case: Case
    file: str = ""
    nth: int = 0


def _bug(name: str, variant: str, old: str, new: str, nth: int = 0, file: str = "", **case: Any) -> Planted:
    backward = {"bwd_naive": _BWD, "bwd_two_stage": _BWD, "bwd_warp_walk": _BWD}
    backward |= {"bwd_channel_last": _BWD_LAST, "bwd_persistent": _BWD_LAST}
    backward |= {"update_naive": _UPDATE, "update_words": {"op": "update", "seqlen": 1, "dim": 8}}
    defaults = backward | {"fwd_shared_memory": _SHARED, "fwd_channel_last": _LAST, "fwd_im2col_wmma": _GEMM}
    defaults |= {"fwd_im2col_fused_wmma": _GEMM, "fwd_toeplitz_wmma": _GEMM}
    defaults |= {"fwd_raster": _LAST}
    # Without an activation the exact probe has the build of the case itself: half of the compilations.
    values = {"batch": 2, "dim": 6, "seqlen": 131, "activation": "none", **defaults.get(variant, {}), **case}
    return Planted(name, variant, old, new, Case(**values), file or f"{variant}.hip", nth)


BUGS = (
    _bug("halo one step early", "fwd_naive", "t - (kWidth - 1) + w", "t - kWidth + w"),
    _bug("taps reversed", "fwd_naive", "weight[w *", "weight[(kWidth - 1 - w) *"),
    _bug("one step of the future", "fwd_naive", "from >= 0", "from >= 0 && from + 1 < p.seqlen", seqlen=8),
    _bug("bias ignored", "fwd_naive", "p.bias ? to_float", "false ? to_float"),
    _bug("bias 0.1 % off", "fwd_naive", "acc_t sum = p.bias ?", "acc_t sum = p.bias ? acc_t(1.001) *", dtype="float32"),
    _bug(
        "sum in the storage type",
        "fwd_naive",
        "if (from >= 0) sum +=",
        "if (from >= 0) sum = to_float(from_float<elem_t>(sum)) +",
        dtype="bfloat16",
    ),
    _bug(
        "truncated on store",
        "fwd_naive",
        "(u + 0x7fffu + ((u >> 16) & 1u)) >> 16",
        "u >> 16",
        file="include/cc1d/math.h",
        dtype="bfloat16",
    ),
    _bug("channel stride taken for seqlen", "fwd_naive", "dim * p.x_dim_stride", "dim * p.seqlen", view="misaligned"),
    _bug(
        "batch stride taken for dim * seqlen",
        "fwd_naive",
        "batch * p.out_batch_stride",
        "batch * p.dim * p.seqlen",
        view="channel_slice",
    ),
    _bug(
        "writes its input",
        "fwd_naive",
        "out[t * p.out_seq_stride] =",
        "const_cast<elem_t*>(x)[t * p.x_seq_stride] = out[t * p.out_seq_stride] =",
    ),
    _bug("one element 2 % off", "fwd_naive", "activate(sum))", "activate(t == 77 && dim == 3 ? sum * 1.02f : sum))"),
    _bug("activation forgotten", "fwd_naive", "activate(sum)", "sum", **_SILU),
    _bug("first step by multiplication with 0", "fwd_naive", "if (from >= 0) sum +=", "sum += (from >= 0) *", seqlen=4),
    _bug(
        "last chunk not launched",
        "fwd_naive",
        "p.batch * p.dim * ceil_div(p.seqlen, kBlock)",
        "p.batch * p.dim * (p.seqlen / kBlock)",
        seqlen=300,
    ),
    _bug("barrier after the load missing", "fwd_shared_memory", "__syncthreads();", ""),
    _bug("barrier before the store missing", "fwd_shared_memory", "__syncthreads();", "", nth=1),
    _bug("halo dropped between chunks", "fwd_shared_memory", "t >= 0 ?", "t >= t0 ?"),
    _bug(
        "halo from the wrong place", "fwd_shared_memory", "tile + kHaloPad - kHalo +", "tile + kHaloPad - kHalo + 1 +"
    ),
    _bug("tail stored past the row", "fwd_shared_memory", "if (j < n) out[j * stride]", "out[j * stride]"),
    _bug("bias after the activation", "fwd_shared_memory", "activate(sum))", "activate(sum - bias) + bias)", **_SILU),
    _bug("barrier after the load missing", "fwd_channel_last", "__syncthreads();", ""),
    _bug("steps past the end stored", "fwd_channel_last", "if (t < p.seqlen) store_part", "store_part", **_SMALL),
    _bug(
        "channels past the end stored",
        "fwd_channel_last",
        "if (i < n) *p",
        "*p",
        file="include/cc1d/config.h",
        view="channel_slice",
    ),
    _bug("halo not zeroed", "fwd_channel_last", "inside ? channels : 0", "channels"),
    _bug("halo of the next tile", "fwd_channel_last", "t0 - kHalo + row", "t0 - kHalo + 1 + row"),
    _bug("weight off the diagonal", "fwd_im2col_wmma", "in_dim == out_dim", "in_dim + 1 == out_dim"),
    _bug("padding not zeroed", "fwd_im2col_wmma", "dim < p.dim && t >= 0", "dim < p.dim"),
    _bug("accumulator not zeroed", "fwd_im2col_wmma", "c.fill(0.0f)", "c.fill(0.001f)"),
    _bug("last 16 terms left out", "fwd_im2col_wmma", "k < s.depth;", "k < s.depth - kTile;"),
    _bug(
        "A loaded by columns",
        "fwd_im2col_wmma",
        "tile[(lane % 16) * ld + LaneMap::k(lane, i)]",
        "tile[LaneMap::k(lane, i) * ld + lane % 16]",
        file="include/cc1d/matrix_core.h",
    ),
    _bug("copies one step late", "fwd_im2col_fused_wmma", "step + kHalo - tap", "step + kHalo + 1 - tap"),
    _bug(
        "a tap left out",
        "fwd_im2col_fused_wmma",
        "tap < kWidth; ++tap) {\n        FragmentA",
        "tap < kWidth - 1; ++tap) {\n        FragmentA",
    ),
    _bug("band one step late", "fwd_toeplitz_wmma", "= kHalo + Segments::input", "= kHalo - 1 + Segments::input"),
    _bug("halo of the run left out", "fwd_toeplitz_wmma", "segment == 0 && first", "false && first", seqlen=2100),
    _bug("halo of a row taken from the row before", "fwd_toeplitz_wmma", " && !run.starts_row()", "", seqlen=2048),
    _bug("halo of a tile for all", "fwd_toeplitz_wmma", "if (segment > 0) previous", "if (false) previous"),
    _bug("steps behind the last run left out", "fwd_toeplitz_wmma", "is_last && rest", "false && rest", seqlen=1030),
    _bug(
        "steps before a frame's first piece left out",
        "fwd_toeplitz_wmma",
        "run.t < 0 && rest < whole",
        "false",
        view="misaligned",
    ),
    _bug(
        "few runs for tiles",
        "fwd_toeplitz_wmma",
        "framed_single>(p, tiles",
        "framed_single>(p, runs",
        dim=2,
        seqlen=600,
    ),
    _bug("rows called short", "fwd_toeplitz_wmma", "tiles <= kTiles", "tiles <= 2 * kTiles", dim=21, seqlen=600),
    _bug("half a run left out", "fwd_toeplitz_wmma", "if (tiles % kTiles ||", "if (", dim=21, seqlen=768),
    _bug("the last tap left out", "fwd_toeplitz_wmma", "lane <= kWidth ? lane", "lane < kWidth ? lane"),
    _bug("initial state ignored", "fwd_naive", "from >= seen", "from >= seen && from >= 0", **_PACKED),
    _bug("states smeared across sequences", "fwd_naive", "from >= seen", "true", **_PACKED),
    _bug("padding not zero", "fwd_shared_memory", "padding ? acc_t(0) : activate(sum)", "activate(sum)", **_PACKED),
    _bug("halo of another sequence", "fwd_channel_last", "!kSeqIdx || w >= seen", "true", **_PACKED),
    _bug(
        "final state of the row's end",
        "fwd_channel_last",
        "while (end > 0 && is_padding(p, batch, end - 1)) --end;",
        "",
        file="include/cc1d/states.h",
        seqlen=100,
        **_PACKED,
    ),
    _bug(
        "initial state of an aligned row",
        "fwd_register",
        "step = t - kHalo + i; has",
        "step = i - kHalo; has",
        **_FRAME,
    ),
    _bug("initial state only in the halo", "fwd_register", "if (has(t + i)) own", "if (false) own", **_FRAME),
    _bug("final state by the first lane", "fwd_register", "run.ends_row()) write", "run.t == 0) write", **_SHORT),
    _bug("final state one step early", "fwd_register", "lowest_bit(there)", "lowest_bit(there) - 1", **_TAIL),
    _bug("last sequence longer than it is", "fwd_raster", "ids[i] == ids[i - 1]) --", "true) --", seqlen=36, **_TAIL),
    _bug("short row without its initial state", "fwd_register", "(tail.begin == 0)", "(false)", seqlen=2, **_TAIL),
    _bug(
        "a sequence that begins with a run overlooked", "fwd_register", "(i <= 0 && starts_row) ||", "i <= 0 ||", **_OWN
    ),
    _bug(
        "the lane below looked at askew",
        "fwd_register",
        "shuffle_up(own.words[N - i], 1)",
        "shuffle_up(own.words[N - 1], 1)",
        **_OWN,
    ),
    _bug(
        "the first lane does not look back",
        "fwd_register",
        "lane_id() == 0 ? before.words[kBefore - i] : below",
        "below",
        **_OWN,
    ),
    _bug("padding of -1 computed", "fwd_register", "own.words[i]) < 0", "own.words[i]) < -1", **_OWN),
    _bug(
        "one step back seen across a beginning",
        "fwd_register",
        "seen[d] = follows ?",
        "seen[d] = d == 1 || follows ?",
        **_PACKED,
    ),
    _bug("two steps back taken for one", "fwd_register", "d > 1 ? seen[d - 1]", "d > 2 ? seen[d - 1]", **_PACKED),
    _bug("marks of a step later", "fwd_register", "begins >> (i + kWidth - 1)", "begins >> (i + kWidth)", **_MARKED),
    _bug(
        "own step in the wrong sequence", "fwd_raster", "sees(step, kHalo - w)", "sees(step, kHalo - w - 1)", **_PACKED
    ),
    _bug(
        "two steps back counted as one",
        "fwd_raster",
        "~(differs << d)",
        "~differs",
        file="include/cc1d/sequences.h",
        **_PACKED,
    ),
    _bug(
        "a vector shifted a word too far",
        "fwd_raster",
        "const uint32_t first = word ?",
        "const uint32_t first = !word ?",
        **_TURNED,
    ),
    _bug(
        "a row that turns the other way",
        "fwd_raster",
        "return row * turn % kNarrow",
        "return row * (kNarrow - turn) % kNarrow",
        **_TURNED,
    ),
    _bug(
        "rows of 4-byte channels that do not turn",
        "fwd_raster",
        "return row * turn % kNarrow",
        "return row * (sizeof(elem_t) == 4 ? 0 : turn) % kNarrow",
        **_TURNED | {"dtype": "float32"},
    ),
    _bug(
        "the next lane's vector from the lane below",
        "fwd_raster",
        "(lane + 1) % kGroup",
        "(lane + 31) % kGroup",
        **_TURNED,
    ),
    _bug(
        "a vector that the group does not know", "fwd_raster", "? kGroup : kGroup - 1", "? kGroup : kGroup", **_TURNED
    ),
    _bug(
        "a sector too few",
        "fwd_raster",
        "= begin + kAdvance / kNarrow;",
        "= begin + kAdvance / kNarrow - 4;",
        **_TURNED,
    ),
    _bug("the rest a channel short", "fwd_raster", "rest_end = to;", "rest_end = to - 1;", **_TURNED),
    _bug("a lane begins a vector late", "fwd_raster", "lane = stored.begin;", "lane = stored.begin + 1;", **_TURNED),
    _bug(
        "the row after the first tile has no beginning",
        "fwd_raster",
        "t > kGroupsSteps &&",
        "t >= kGroupsSteps &&",
        **_TURNED | {"file": ""},
    ),
    _bug(
        "the next row's beginning left out",
        "fwd_raster",
        "(joined ? p.dim : p.dim - kNarrow + 1)",
        "(joined ? p.dim - kSector : p.dim - kNarrow + 1)",
        **_TURNED | {"file": ""},
    ),
    _bug(
        "a row with a gap behind it goes on",
        "fwd_raster",
        "(joined ? p.dim : p.dim - kNarrow + 1)",
        "(p.dim)",
        **_TURNED | {"file": "", "view": "sliced_input", "row_stride": 579},
    ),
    _bug(
        "a row with a gap before it begins with a sector",
        "fwd_raster",
        "lane < kSectorVectors && !group.is_first ?",
        "lane < kSectorVectors ?",
        **_TURNED | {"file": "", "view": "sliced_input", "row_stride": 579},
    ),
    _bug(
        "the next row's channels with the last weights",
        "fwd_raster",
        "at < p.dim ? at : at - p.dim",
        "at < p.dim ? at : p.dim - 1",
        **_PAIRS,
    ),
    _bug(
        "blocks a sector apart leave a gap",
        "fwd_raster",
        "(ends ? channels : first + advance)",
        "(ends ? channels : advance)",
        **_STAGED | {"dtype": "float32", "dim": 1101, "view": "sliced_input", "row_stride": 1126},
    ),
    _bug(
        "weights of a tile's last channel",
        "fwd_raster",
        "(words, (N - 1) * Each, from + (N - 1) * Each)",
        "(words, (N - 1) * Each, from + (N - 1) * Each - 1)",
        **_PAIRS,
    ),
    _bug("weights of two channels left out", "fwd_raster", "i + 2 <= N; i += 2", "i + 2 < N - 1; i += 2", **_PAIRS),
    _bug("lanes vote for the steps after theirs", "fwd_raster", "lane_id() % 32", "(lane_id() + 1) % 32", **_MARKED),
    _bug("step 0 begins a sequence", "fwd_raster", "follows = step > 0", "follows = step >= 0", **_MARKED),
    _bug("a sequence that begins in the tile overlooked", "fwd_raster", "same[kWidth - 1] &", "same[0] &", **_ONE),
    _bug("a row's last vector left behind", "fwd_raster", "x_frames[thread].vectors[more] = last", "", **_STAGED),
    _bug("rows begin on a boundary", "fwd_raster", "+ reinterpret_cast<uintptr_t>(row) % 16", "", **_APART),
    _bug(
        "first channels of a row not stored",
        "fwd_raster",
        "(at_end ? ends : begins && lead > 0 && whole > 0)",
        "(at_end && ends)",
        **_STAGED | {"dtype": "float32", "dim": 101},
    ),
    _bug(
        "tiles of few steps dealt out as long ones",
        "fwd_raster",
        "kDown * kSteps)",
        "kDown * kLongSteps)",
        dim=8,
        seqlen=75,
    ),
    _bug(
        "the end of the last batch left out",
        "fwd_raster",
        "line == end) down = lines.down.d - 1;",
        "line == end) down += 0;",
        **_TURNED | {"file": ""},
    ),
    _bug(
        "short tiles over one another",
        "fwd_raster",
        "+ line - lines.whole;",
        "+ (line - lines.whole) / 2;",
        **_TURNED | {"file": ""},
    ),
    _bug(
        "a short tile takes the end of a row for its own",
        "fwd_raster",
        "if (place.is_short || place.down",
        "if (place.down",
        **_TURNED | {"file": ""},
    ),
    _bug("channels apart stored side by side", "bwd_persistent", "? i * Across :", "? i :", **_APART),
    _bug("last tile does not reach back", "bwd_persistent", "begin > last ? last : begin", "begin", **_APART),
    _bug("the padding of a row's marks", "fwd_register", "ids[i + 1] < 0)", "ids[i] < 0)", **_MARKED),
    _bug(
        "a sequence begins a step late",
        "fwd_register",
        "ids[i + 1] != ids[i])",
        "ids[i] != ids[i - (i > 0)])",
        **_MARKED,
    ),
    _bug(
        "initial state of the wrong channel",
        "fwd_raster",
        "own.dim + i * own.kStep, t)",
        "own.dim, t)",
        file="include/cc1d/channels.h",
        **_PACKED,
    ),
    _bug("taps of dx reversed", "bwd_naive", "weight(kWidth - 1 - k)", "weight(k)"),
    _bug("dx of the wrong step", "bwd_naive", "gradient(t + k)", "gradient(t + k > 0 ? t + k - 1 : 0)"),
    _bug(
        "dout stride taken for that of x",
        "bwd_naive",
        "batch * p.dout_batch_stride",
        "batch * p.dim * p.seqlen",
        view="misaligned",
    ),
    _bug("a batch left out of dweight", "bwd_naive", "p.batch * p.seqlen : 0", "(p.batch - 1) * p.seqlen : 0"),
    _bug("slope of SiLU forgotten", "bwd_naive", "dout * activate_slope(sum)", "dout", **_SILU),
    _bug(
        "slope of SiLU 1 % off",
        "bwd_two_stage",
        "(acc_t(1) - s));",
        "(acc_t(0.99) - s));",
        file="include/cc1d/math.h",
        **_SILU,
    ),
    _bug("barrier after the load missing", "bwd_two_stage", "__syncthreads();", "", seqlen=1134),
    _bug("barrier after g missing", "bwd_two_stage", "__syncthreads();", "", nth=1, seqlen=1134),
    _bug(
        "chunk ends without its halo",
        "bwd_two_stage",
        "i < kChunk + kHalo; i += kBlock) gradients",
        "i < kChunk; i += kBlock) gradients",
        seqlen=1134,
    ),
    _bug(
        "g in the storage type",
        "bwd_two_stage",
        "return d * activate_slope(sum)",
        "return to_float(from_float<elem_t>(d * activate_slope(sum)))",
        dtype="bfloat16",
        **_SILU,
    ),
    _bug("only the first batch reduced", "bwd_two_stage", "batch < p.batch;", "batch < 1;"),
    _bug(
        "gradient of the state dropped",
        "bwd_two_stage",
        "sum += dfinal",
        "sum += 0 * dfinal",
        **_PACKED,
    ),
    _bug(
        "first gradients of the next batch",
        "bwd_two_stage",
        "kept + row * kKept",
        "kept + (row + 1) % (p.batch * p.dim) * kKept",
        **_PACKED,
    ),
    _bug("barrier after the load missing", "bwd_channel_last", "__syncthreads();", ""),
    _bug("steps past the end stored", "bwd_channel_last", "if (inside) store_part", "store_part", **_SMALL),
    _bug("a tile left out", "bwd_channel_last", "part < parts;", "part + 1 < parts;", file="include/cc1d/sums.h"),
    _bug(
        "dbias counted with padding",
        "bwd_channel_last",
        "gradients[row][across * kVec + i] = inside ? g : acc_t(0)",
        "gradients[row][across * kVec + i] = g + (inside ? acc_t(0) : bias[i])",
    ),
    _bug("gradient from above forgotten", "bwd_warp_walk", "lane_id() == 0 ? above[i] : g[i]", "g[i]"),
    _bug(
        "gradient of the next row taken",
        "bwd_warp_walk",
        "ends_row ? acc_t(0) : received",
        "received",
        batch=3,
        seqlen=96,
    ),
    _bug("x of the row before taken", "bwd_warp_walk", "run.starts_row() ? 0 : known", "known", batch=3, seqlen=128),
    _bug("halo of an empty run taken", "bwd_warp_walk", "t > 0 && t < seqlen", "t > 0", batch=13, seqlen=314, **_ENDS),
    _bug(
        "a row's end stored a step too far", "bwd_warp_walk", "theirs.t + i < seqlen", "theirs.t + i <= seqlen", **_ENDS
    ),
    _bug("a frame's lead stored", "bwd_warp_walk", "mine && theirs.t + i >= 0", "mine", **_ENDS),
    _bug("one end of a row for all", "bwd_warp_walk", "if (group == lane / N) mine", "if (group == 0) mine", **_ENDS),
    _bug("x before a stretch forgotten", "bwd_warp_walk", "begin > 0 ? begin - 1 : 0", "begin", seqlen=512),
    _bug(
        "gradient past a stretch forgotten",
        "bwd_warp_walk",
        "gradients_above(c, parameters, end, above);",
        ";",
        nth=1,
        batch=1,
    ),
    _bug(
        "a stretch left out",
        "bwd_warp_walk",
        "begin += kWarps * stretch",
        "begin += (kWarps + 1) * stretch",
        batch=1,
        dim=256,
        seqlen=5120,
    ),
    _bug("dx beyond the units left out", "bwd_warp_walk", "if (exists) run.place_in(c.dx)[i] =", "(void)", **_BY_ROWS),
    _bug("gradients beyond not handed on", "bwd_warp_walk", "above[k] = shuffle(g, k)", "above[k] = 0", **_BY_ROWS),
    _bug(
        "a step too early before the end",
        "bwd_warp_walk",
        "lane_id() : lane_id() - kWarp)",
        "lane_id() : lane_id() - kWarp - 1)",
        **_BY_ROWS,
    ),
    _bug(
        "x between two turns forgotten",
        "bwd_warp_walk",
        "halo = lowest;",
        "halo = tail_t::zero();",
        **_BY_ROWS | {"batch": 3, "seqlen": 2047},
    ),
    _bug(
        "a row of each warp left out",
        "bwd_warp_walk",
        "row += kWarps) walk_row",
        "row += 2 * kWarps) walk_row",
        **_BY_ROWS,
    ),
    _bug("a warp left out of the sums", "bwd_warp_walk", "w = 1; w < kWarps", "w = 2; w < kWarps"),
    _bug(
        "the rest of a row's last run not masked",
        "bwd_warp_walk",
        "run_t::mask(first(), last())",
        "run_t::mask(first(), N)",
        file="include/cc1d/frame.h",
        view="misaligned",
        seqlen=130,
    ),
    _bug(
        "past the end of a row written", "bwd_warp_walk", "j < end) to[j", "j <= end) to[j", file="include/cc1d/frame.h"
    ),
    _bug("walk does not look past its end", "bwd_persistent", "end + kHalo < p.seqlen ? end + kHalo : p.seqlen", "end"),
    _bug("what it looks at counts twice", "bwd_persistent", "step(s, t + s < end,", "step(s, true,"),
    _bug("window empty at the start", "bwd_persistent", "begin - kHalo + k >= 0", "false"),
    _bug("a walker left out of the sums", "bwd_persistent", "row < kDown", "row + 1 < kDown"),
    _bug("a part left out", "bwd_persistent", "part < parts;", "part + 1 < parts;", file="include/cc1d/sums.h"),
    _bug(
        "a second part left out",
        "bwd_persistent",
        "second < parts",
        "second + 1 < parts",
        file="include/cc1d/sums.h",
        dim=2048,
    ),
    _bug("barrier before the sums missing", "bwd_persistent", "__syncthreads();", ""),
    _bug("state not shifted", "update_words", "state.get(i * kSteps + s + 1)", "state.get(i * kSteps + s)"),
    _bug("newest step of the state skipped", "update_words", "kSteps - kHalo + w)", "kSteps - kHalo + w - (w > 0))"),
    _bug(
        "oldest of a longer state read",
        "update_words",
        "state.at(i * kSteps + kSteps - kHalo + w)",
        "state.at(i * kSteps + w)",
        state_len=4,
    ),
    _bug(
        "state shifted by one step",
        "update_naive",
        "const index_t from = s + p.seqlen;",
        "const index_t from = s + 1;",
        file=_DECODE,
    ),
    _bug(
        "older step of the state read",
        "update_naive",
        "index_t place = next + from;",
        "index_t place = next + from - 1;",
        file=_DECODE,
    ),
    _bug("state not moved on", "update_naive", "s < p.state_len; ++s", "s < 0; ++s", file=_DECODE),
)

CONTROLS = (
    _bug(
        "taps summed in reverse",
        "fwd_naive",
        "for (int w = 0; w < kWidth; ++w)",
        "for (int w = kWidth - 1; w >= 0; --w)",
        **_SILU,
    ),
    _bug("a barrier too many", "fwd_shared_memory", "__syncthreads();", "__syncthreads(); __syncthreads();", **_SILU),
    _bug("sum in double", "fwd_naive", "acc_t sum", "double sum", **_SILU),
)


def plant(bug: Planted, folder: Path) -> Path:
    """A copy of the kernels with the bug in it. The place must exist, so that no bug is lost when a source changes."""
    kernels = folder / "hip_kernels"
    shutil.copytree(paths.PACKAGE.parent / "hip_kernels", kernels)
    path = kernels / bug.file
    parts = path.read_text().split(bug.old)
    assert len(parts) > bug.nth + 1, f"{bug.name}: {bug.old!r} is no longer in {bug.file}"
    head, tail = bug.old.join(parts[: bug.nth + 1]), bug.old.join(parts[bug.nth + 1 :])
    path.write_text(head + bug.new + tail)
    return kernels
