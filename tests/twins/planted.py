"""Lines of the compiled kernels that are wrong, each with the default tests that catch it; `tests.faults` plants them."""

from __future__ import annotations

from typing import NamedTuple

ATTENTION = "tests/twins/test_twins.py::test_agrees_across_tiles"
SCANS = "tests/twins/test_scans.py::test_sizes_that_cross_chunks_and_panels[131-67-37"


class Fault(NamedTuple):
    """One place that is wrong; `tests` are ids of pytest, with a bar between them."""

    what: str
    file: str
    old: str
    new: str
    tests: str


STAGES, FORWARD, BACKWARD, BIAS = "attention_stages.py", "attention_forward.py", "attention_backward.py", "attention_bias.py"
CHUNK, SCAN_FORWARD, SCAN_BACKWARD = "scan_chunk.py", "scan_forward.py", "scan_backward.py"
PLAIN, CAUSAL, WINDOW = f"{ATTENTION}[nothing]", f"{ATTENTION}[causal, upper left]", f"{ATTENTION}[window]"
HEADS, DROPOUT, SOFTCAP = f"{ATTENTION}[bias of heads]", f"{ATTENTION}[dropout]", f"{ATTENTION}[softcap and scale]"
LINEAR, GATED, DELTA, GATED_DELTA = (
    f"{SCANS}-{name}]" for name in ("linear_attention", "gated_linear_attention", "delta_rule", "gated_delta_rule")
)
DEFORM, DEFORM_CALL = "deformable_kernels.py", "deformable_call.py"
DEFORMED, STRANGE = (
    f"tests/twins/test_deformable.py::{name}"
    for name in ("test_several_blocks_and_parts", "test_a_strange_number_anywhere_is_that_of_the_reference")
)
FUZZ = "tests/twins/test_fuzz.py::test_random_calls"
BFLOAT16 = "tests/twins/test_twins.py::test_passes_the_check[scaled_dot_product_attention_with_lse-bfloat16]"

FAULTS = (
    Fault("a key after the diagonal", STAGES, "larger(column - after, -1)", "larger(column - after - 1, -1)", CAUSAL),
    Fault("window one key too long", STAGES, "smaller(column + before, width)", "smaller(column + before + 1, width)", WINDOW),
    Fault("a register too many left out at the diagonal", STAGES, "larger(0, key - after - query), queries - 1)", "larger(0, key - after - query + lanes), queries - 1)", CAUSAL),
    Fault("keys end before the diagonal", FORWARD, "ceil_to(first + count + call.after, step)", "ceil_to(first + call.after, step)", CAUSAL),
    Fault("window begins late", FORWARD, "larger(0, first - call.before) // step * step", "larger(0, first - call.before + 32) // step * step", WINDOW),
    Fault("stale maximum", STAGES, "store(largest, r, now)", "store(largest, r, before)", PLAIN),
    Fault("total not rescaled", STAGES, "load(total, r) * by + added", "load(total, r) + added", PLAIN),
    Fault("sums not rescaled", STAGES, "store(decay, r, by)", "store(decay, r, filled(tile, 1.0))", PLAIN),
    Fault("last queries left out", "attention.py", "count * -(-(query_len if spans is None else spans.queries) // tile)", "count * ((query_len if spans is None else spans.queries) // tile)", PLAIN),
    Fault("ragged features not scaled", "tiles.py", "tile[d * width + row] = source[row * step + d] * factors[row]", "tile[d * width + row] = source[row * step + d]", PLAIN),
    Fault("key heads in turns, not in groups", FORWARD, "kv_head = head // call.group", "kv_head = head % (call.heads // call.group)", PLAIN),
    Fault("sink added twice", FORWARD, "load(total, r) * by + exp(sink - shift)", "load(total, r) * by + exp(sink - shift) + exp(sink - shift)", HEADS),
    Fault("sink of the first head", FORWARD, "pointer_to(call.sinks, total)[head]", "pointer_to(call.sinks, total)[0]", HEADS),
    Fault("mask inverted", STAGES, "select(load(mask, i) == no, masked, load(tile, i))", "select(load(mask, i) == no, load(tile, i), masked)", f"{ATTENTION}[mask of every pair]"),
    Fault("hidden blocks known by their first query", STAGES, "range(block.queries if call.mask_row else 1)", "range(1)", f"{ATTENTION}[rows that see nothing]"),
    Fault("slope of the softcap missing", BACKWARD, "d_score = d_score * load(slopes, i)", "d_score = d_score * 1", SOFTCAP),
    Fault("slope of the softcap not squared", STAGES, "one - bounded * bounded", "one - bounded", SOFTCAP),
    Fault("log-sum-exp's cotangent of another sign", BACKWARD, "number -= pointer_to(call.d_lse, centre)", "number += pointer_to(call.d_lse, centre)", PLAIN),
    Fault("dropout without its factor backward", BACKWARD, "passed = load(kept, i) * factor", "passed = load(kept, i)", DROPOUT),
    Fault("dropout of the whole cotangent", BACKWARD, "weight * (d_weight * passed - middle)", "weight * passed * (d_weight - middle)", DROPOUT),
    Fault("one head of each group backward", BACKWARD, "kv_head * call.group + unit // tiles, unit", "kv_head * call.group, unit", PLAIN),
    Fault("last feature of a ragged row not copied", "tiles.py", "= source[r * step + d] * factor\n", "= source[r * step + d] * factor if d < size - 1 else 0.0\n", PLAIN),
    Fault("centre of an empty row is not 0", BACKWARD, "number if inverse[r] != 0 else 0.0", "number + 1", PLAIN),
    Fault("later panels of keys overwrite the query's gradient", BACKWARD, "factors, key_first < start, out", "factors, False, out", FUZZ),
    Fault("queries between two chunks left out", BACKWARD, "range(chunk * units // call.chunks, (chunk + 1) * units // call.chunks)",
          "range(chunk * (units // call.chunks), (chunk + 1) * (units // call.chunks))", FUZZ),
    Fault("bias's gradient of the first head alone", BIAS, "else member % (call.heads // own_heads)\n            count", "else 0\n            count", f"{ATTENTION}[bias of keys that masks]"),
    Fault("bias's gradient without the ragged queries", BIAS, "for r in range(whole, block.queries):\n            number", "for r in range(whole, whole):\n            number",
          f"{ATTENTION}[bias of keys that masks]"),
    Fault("band exchanged in packed sequences", "call.py", "spans.keys, spans.before, spans.after", "spans.keys, spans.after, spans.before", FUZZ),
    Fault("scores of bfloat16 not scaled", "attention_operands.py", "if not is_raw:", "if is_raw:", BFLOAT16),
    Fault("bfloat16 rounded up at a tie", "conversion.py", "(x + np.uint32(0x7FFF) + ((x >> np.uint32(16)) & np.uint32(1)))", "(x + np.uint32(0x8000))",
          "tests/twins/test_conversion.py::test_rounded_to_nearest_ties_to_even"),
    Fault("state not decayed between chunks", CHUNK, "if call.rates > 0:", "if call.rates > 1:", GATED_DELTA),
    Fault("a position's own decay left out", CHUNK, "factor = factor * load(gains, i)\n            store(since, i, factor)", "store(since, i, factor)\n            factor = factor * load(gains, i)", GATED),
    Fault("a position does not read itself", CHUNK, "select(between(decayed, 0, i - j), decayed, zero)", "select(between(decayed, 0, i - 1 - j), decayed, zero)", LINEAR),
    Fault("a block of the triangular system left out", CHUNK, "if i > 0:\n            add_multiplied", "if i > SPARE:\n            add_multiplied", DELTA),
    Fault("the transposed system in blocks of their own", CHUNK, "if end < count:", "if end < 0:", DELTA),
    Fault("rate not in what is written", CHUNK, "scale_rows(writes, step, count, pointer_to", "scale_rows(writes, step, 0, pointer_to", DELTA),
    Fault("group of queries reads the first of them", CHUNK, "(at.head * call.group + member) * call.length + at.first\n    source", "(at.head * call.group) * call.length + at.first\n    source", LINEAR),
    Fault("rate's gradient of another sign", SCAN_BACKWARD, "part_step) - total_of(taken)", "part_step) + total_of(taken)", DELTA),
    Fault("products' gradients not decayed", SCAN_BACKWARD, "store(d_scores, line, d * load(decays, line))", "store(d_scores, line, d)", GATED_DELTA),
    Fault("state's cotangent not decayed", SCAN_BACKWARD, "scale_rows(d_state, part_step, head_dim,", "scale_rows(d_state, part_step, 0,", GATED),
    Fault("query's gradient without the scale", SCAN_BACKWARD, "call.scale, out, head_dim", "1.0, out, head_dim", LINEAR),
    Fault("a decay credited to the position before", SCAN_BACKWARD, "after = (j + 1) * step + d", "after = j * step + d", GATED),
    Fault("parts of the values in one place", SCAN_BACKWARD, "row += at.part * call.count * call.length", "row += 0", "tests/twins/test_scans.py::test_few_heads_share_their_columns"),
    Fault("state at the end not stored", SCAN_FORWARD, "pointer_to(call.end, memory) + (head * size + begin)", "pointer_to(call.end, memory) + begin", LINEAR),
    Fault("what is not finite in whole chunks", "scan.py", "if not np.isfinite(end).all():", "if length < 0:", "tests/twins/test_scans.py::test_later_positions_reach_no_earlier_one"),
    Fault("taps of the second block overwrite those of the first", DEFORM, "if block.is_first:", "if block.is_first or block.channel:", DEFORMED),
    Fault("tap beyond the last row is read", DEFORM, "row >= call.height or column < 0 or column >= call.width:\n        return outside", "row > call.height or column < 0 or column >= call.width:\n        return outside", "tests/twins/test_deformable.py::test_random_calls"),
    Fault("tap of weight 0 is read", DEFORM, "outside if w01 == 0 else pixel", "pixel", f"{STRANGE}[x-nan]"),
    Fault("tap at no number reads zeros", DEFORM, "return np.int64(-2), near\n", "return np.int64(-2), 0.0\n", f"{STRANGE}[offset-nan]"),
    Fault("ragged channels of a tap get no gradient", DEFORM, "target[c] += line[c] * scale", "target[c] += 0", DEFORMED),
    Fault("ragged channels of a tap in no inner product", DEFORM, "rest += p[c] * line[c]", "rest += 0", DEFORMED),
    Fault("taps summed over blocks from anything", DEFORM, "number if is_new else p[0] + number", "number", DEFORMED),
    Fault("taps of the first offset group", DEFORM, "(example * call.offset_groups + offset_group) * call.taps + tap\n", "example * call.offset_groups * call.taps + tap\n", DEFORMED),
    Fault("modulation left out of a tap's slope", DEFORM, "by * (times(back, d10 - d00)", "(times(back, d10 - d00)", DEFORMED),
    Fault("taps placed in single precision", DEFORM, "np.float64(column) + np.float64(moves", "np.float32(column) + np.float32(moves", "tests/twins/test_deformable.py::test_a_small_offset_counts_far_from_the_origin"),
    Fault("weights of a tap's other group", DEFORM_CALL, "slice(block.group * out_group, (block.group + 1) * out_group)", "slice(0, out_group)", "tests/twins/test_deformable.py::test_random_calls"),
)  # fmt: skip
