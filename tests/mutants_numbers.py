"""Mistakes in formulas, schedules, kernels and waits."""

from __future__ import annotations

from mutants_tests import eager, named, sized

_TANH = named("test_gates", "tanh_within_2_units_in_the_last_place[sm_90]")
_DATA = named("test_persistent", "interleavings[torch-data]")
_FLAGS = named("test_persistent", "interleavings[torch-flags]")
_EXPIRES = named("test_persistent", "a_wait_that_expires_is_an_error_and_ends[64-data]")
_REPORTED = named("test_watch", "an_expired_launch_is_reported_once_by_name")
_OPTIONS = named("test_per_step_resident", "each_option_and_all")
_CARRIED = named("test_per_step_stepwise", "where_a_state_is_carried_on_nothing_else_counts")
_RESET = named("test_options", "a_reset_is_another_run")
_PAIRS = named("test_options_together", "pairs_against_the_reference")
_STACK = named("test_schedules", "both_directions_of_a_stack[sm_90-cho-packed-None-resident]")
_NORMED = named("test_norm_kernels", "against_the_reference[resident-torch-packed stack-torch.float32-sm_90]")
_NORMED_STEP = named("test_norm_kernels", "against_the_reference[stepwise-cho-both directions-torch.bfloat16-sm_90]")
_WIDE = named("test_wide", "every_kind_of_layer[18-64-1-90-dtype0-data-options0]")
_WIDE_FETCHED = named("test_wide", "every_kind_of_layer[17-384-1-90-dtype13-data-options13]")
_PADDED = named("test_schedules", "every_size[sm_80-resident-torch-padded-forward-(2, 17, 4, 33)]")
_WORDS = named("test_per_step_resident", "flags_in_words[sm_80-torch-options0-way0-size0]")
_ONE_STEP = named("test_schedules", "one_step[sm_80-resident-torch-padded-forward]")
_SIDES = named("test_persistent", "both_directions_at_once[torch-40-True-90-dtype0-data]")

# By file: its text, what stands in its place, and the test that notices.
BY_FILE: dict[str, list[tuple[str, str, str]]] = {
    "kernels/gates.py": [
        (
            "tl.exp2(-1.442695041 * x)",
            "tl.exp2(-1.4427 * x)",
            named("test_gates", "sigmoid_as_exact_as_its_argument[sm_90]"),
        ),
        ("tl.where(size < 0.75, near, far)", "tl.where(size < 0.075, near, far)", _TANH),
        ("p = p * square + 0.133265212", "p = p * square + 0.133365212", _TANH),
        ("tl.exp2(2.885390082 * size)", "tl.exp2(2.885390082 * x)", _TANH),
        ("sign = tl.where(x < 0, -1.0, 1.0)", "sign = 1.0", named("test_gates", "ends[sm_90]")),
        ("return tanh(gn + r * an)", "return tanh(gn + an)", sized("resident", "torch")),
        ("return tanh(gn + an)", "return tanh(gn + r * an)", sized("resident", "cho")),
        ("return (1.0 - z) * h + z * n", "return (1.0 - z) * n + z * h", sized("resident", "chung")),
        (
            "return (1.0 - z) * h + z * n",
            "return h + z * (n - h)",
            named("test_scales", "infinite_states[sm_90-chung-resident-17]"),
        ),
        ("return (n - z * n) + z * h", "return (n - z * n) + h", sized("resident", "torch")),
        (
            "return (n - z * n) + z * h",
            "return n + z * (h - n)",
            named("test_gates", "a_small_state_is_kept_behind_a_large_candidate[sm_90-torch]"),
        ),
        ("dn = dh * z\n", "dn = dh * (1.0 - z)\n", sized("resident", "chung")),
        ("dz = dh * (n - h)", "dz = dh * (h - n)", sized("resident", "chung")),
        ("dz = dh * (h - n)", "dz = dh * (n - h)", sized("resident", "torch")),
        ("direct = dh * z\n", "direct = dh * (1.0 - z)\n", sized("resident", "cho")),
        ("return dn * dtanh_from_output(n), dz * dsigmoid", "return dn, dz * dsigmoid", sized("resident", "torch")),
        ("return y * (1.0 - y)", "return y * (1.0 + y)", sized("resident", "torch")),
        (
            "return dn * an * dsigmoid_from_output(r), dn * r",
            "return dn * an * dsigmoid_from_output(r), dn",
            sized("resident", "torch"),
        ),
        (
            "return d_rh * h * dsigmoid_from_output(r), d_rh * r",
            "return d_rh * dsigmoid_from_output(r), d_rh * r",
            sized("resident", "cho"),
        ),
        ("tl.where(reset, 0.0 if fresh is None else fresh, begin)", "tl.where(reset, 0.0, begin)", _OPTIONS),
        ("d_before = tl.where(reset, 0.0, d_before)", "d_before = d_before * 1.0", _OPTIONS),
        ("tl.where(end < -clip, -clip, end))", "end)", _OPTIONS),
        ("end = tl.where(amount == 0.0, begin, end)", "end = begin * 0.0 + end", _CARRIED),
        (
            "d_new = amount * d_new",
            "d_new = d_new",
            named("test_options_kernels", "steps_without_a_sequence_alive_are_passed_over[torch-keep-resident]"),
        ),
    ],
    "kernels/norm.py": [
        ("gain_of(norm, gate, j, H) - mean - hat * along)", "gain_of(norm, gate, j, H) - mean)", _NORMED),
        ("total += parts[g]", "total = parts[g]", _NORMED),
        ("at_row = 2 * at_row + (gate == 2)", "at_row = 2 * at_row", _NORMED_STEP),
    ],
    "trigru/schedules/norm.py": [
        ("(seen, r * seen)", "(seen, seen)", _NORMED_STEP),
    ],
    "trigru/reference.py": [
        ("+ b_ir + h @ w_hr.T + b_hr)", "+ b_ir + h @ w_hr.T)", eager("torch")),
        ("r * (h @ w_hn.T + b_hn))", "r * (h @ w_hn.T) + b_hn)", eager("torch")),
        ("(r * h) @ w_hn.T + b_hn)", "r * (h @ w_hn.T) + b_hn)", eager("cho")),
        ("return (1 - z) * h + z * n", "return (1 - z) * n + z * h", eager("chung")),
        ("return (1 - z) * n + z * h", "return z * n + (1 - z) * h", eager("cho")),
        (
            "h = torch.cat([outputs[t], h[alive:]])",
            "h = torch.cat([outputs[t], h0[alive:]])",
            eager("torch", rows="packed"),
        ),
        ("return [*self.reset[1:], torch.zeros_like(self.reset[0])]", "return list(self.reset)", _PAIRS),
        ("torch.where(self.amount[t] == 0, end, clipped)", "clipped", _PAIRS),
        ("seen = h if dropped is None else dropped * h", "seen = h", _PAIRS),
        (
            "back = reverse or direction == 1",
            "back = reverse",
            _STACK,
        ),
        (
            "finals.append(h_n)",
            "finals.insert(0, h_n)",
            _STACK,
        ),
    ],
    "trigru/schedules/eager_forward.py": [
        ("before_n.addcmul_(r, an)", "before_n.add_(an)", eager("torch")),
        ("new = blend(n, h, z, out=state)\n", "new = blend(h, n, z, out=state)\n", eager("torch")),
        ("torch.mul(r, seen, out=reset)", "torch.mul(z, seen, out=reset)", eager("cho")),
        (
            "self._add(r * before, slice(2 * size, None), to=n)",
            "self._add(before, slice(2 * size, None), to=n)",
            named("test_operators", "gates_computed_again_give_the_same_gradients[cho-tanh-False-False]"),
        ),
        ("leaving[count:alive] = x[count:]", "leaving[count:alive] = x[:1]", eager("torch", rows="packed")),
        (
            'and h0.device.type == "cpu" and math.isfinite(h0.sum().item()):',
            'and h0.device.type == "cpu":',
            named("test_scales", "infinite_states[sm_90-torch-eager-16]"),
        ),
    ],
    "trigru/schedules/eager_backward.py": [
        (
            "torch.sub(n, before, out=self.scratch) if chung",
            "torch.sub(before, n, out=self.scratch) if chung",
            eager("chung"),
        ),
        ("self.keep.copy_(rest if chung else z)", "self.keep.copy_(z)", eager("chung")),
        ("torch.mul(f_n, r, out=f_an[0])", "f_an[0].copy_(f_n)", eager("torch")),
        ("outer[:, 2 * size :].mul_(self.d_states)", "outer[:, 2 * size :].mul_(1)", eager("torch")),
        (
            "_sigmoid_backward(seen, side_r, grad_input=f_r)",
            "_sigmoid_backward(seen, side_z, grad_input=f_r)",
            eager("cho"),
        ),
        ("return views if self.layout.reverse else views[::-1]", "return views[::-1]", eager("torch", "reverse")),
        (
            "torch.cat([d_w_hh[size:], d_w_hh[:size]])",
            "torch.cat([d_w_hh[2 * size :], d_w_hh[: 2 * size]])",
            eager("torch"),
        ),
        ("d_b_hh[2 * size :] = self.d_bias[:size]", "d_b_hh[2 * size :] = d_b_ih[2 * size :]", eager("torch")),
        (
            "carry = grad_h_n[: layout.sizes[0 if part.reverse else -1]]",
            "carry = 0 * grad_h_n[: layout.sizes[0 if part.reverse else -1]]",
            eager("torch"),
        ),
        ("d_h0[: carry.shape[0]] = carry", "d_h0[: carry.shape[0]] += 2 * carry", eager("cho")),
    ],
    "trigru/schedules/eager_per_step.py": [
        ("h = torch.where(self.reset[t], self.fresh[t], h)", "h = self.fresh[t] + 0 * h", _RESET),
        (
            "h = h * self.decay[t]",
            "h = h * self.decay[0]",
            named("test_options", "decay_and_attention_in_a_loop_over_a_cell"),
        ),
        ("else d.masked_fill(own.reset[here].unsqueeze(1), 0)", "else d", _PAIRS),
        ("products.mul_(own.dropped)", "products.mul_(1)", _PAIRS),
        ("keep.mul_(amount).add_(rest)", "keep.mul_(1).add_(rest)", _PAIRS),
        ("d.masked_fill_(next(self.clipped), 0)", "d.masked_fill_(next(self.clipped), 0.5)", _PAIRS),
    ],
    "trigru/schedules/per_step.py": [
        ("torch.cat([reset[1:], torch.zeros_like(reset[:1])])", "reset", _RESET),
        ("beyond = end.abs() > clip", "beyond = end.abs() > 2 * clip", _PAIRS),
    ],
    "trigru/schedules/eager_layout.py": [
        (
            "shift = self.sizes[0] if self.reverse else -self.sizes[0]",
            "shift = -self.sizes[0]",
            eager("torch", "reverse"),
        ),
        ("pieces.insert(len(pieces) if self.reverse else 0, h0)", "pieces.insert(0, h0)", eager("torch", "reverse")),
        ("source = t + 1 if self.reverse else t - 1", "source = t - 1", eager("torch", "reverse", "packed")),
        ("return torch.cat([n, r, z])", "return torch.cat([n, z, r])", eager("torch")),
    ],
    "trigru/schedules/eager_kept.py": [
        (
            "torch.sigmoid(-rz.abs()), -rz, out=rz)",
            "torch.sigmoid(-rz.abs()), rz, out=rz)",
            named("test_eager", "16_bits"),
        ),
        ("missing * (2 - missing)", "missing", named("test_eager", "16_bits")),
        (
            "torch.where(far, 1 / size, 1 - size)",
            "torch.where(far, 0, 1 - size)",
            named("test_scales", "gradients_behind_saturated_gates_in_16_bits"),
        ),
    ],
    "trigru/schedules/single.py": [
        (
            "None if x is None else x.view_as(x) for x in inputs",
            "x for x in inputs",
            named("test_single", "a_tensor_in_several_places_has_one_derivative_whether_a_graph_is_kept_or_not[torch]"),
        ),
        ("past = d * z", "past = d * r", named("test_single", "as_reference[(3, 5, 7)-bias-torch]")),
        (
            "own[:, 2 * h.shape[1] :].mul_(r)",
            "own[:, 2 * h.shape[1] :].mul_(z)",
            named("test_single", "as_reference[(3, 5, 7)-bias-torch]"),
        ),
        (
            "(of_kept, of_new) if chung else (of_new, of_kept)",
            "(of_new, of_kept) if chung else (of_kept, of_new)",
            named("test_single", "as_reference[(3, 5, 7)-bias-cho]"),
        ),
    ],
    "trigru/schedules/pages.py": [
        (
            "size <= len(memory) <= size + size // 4",
            "len(memory) <= size + size // 4",
            named("test_pages", "memory_is_taken_again_when_its_last_tensor_has_died"),
        ),
    ],
    "trigru/schedules/eager_products.py": [
        ("torch.addmm(bias, x, w.t(), out=out)", "torch.addmm(bias, x, w.t(), out=out).sub_(bias)", eager("torch")),
        ("out.addmm_(a.t(), b)", "torch.mm(a.t(), b, out=out)", named("test_eager", "several_chunks_exactly")),
    ],
    "trigru/schedules/recompute.py": [
        (
            "weights.hh.chunk(3)[2], b_hn)",
            "weights.hh.chunk(3)[2])",
            named("test_schedules", "gates_computed_again_in_chunks[sm_90-stepwise-torch-padded-forward]"),
        ),
    ],
    "trigru/schedules/projections.py": [
        (
            "bias.narrow(0, 0, 2 * hidden_size).add_(b_hrz)",
            "bias.narrow(0, 0, 2 * hidden_size).sub_(b_hrz)",
            sized("stepwise", "torch"),
        ),
        ("torch.cat([h0, output[:later]])", "torch.cat([output[:later], h0])", sized("stepwise", "torch")),
        ("r * before, out=d_w_hn)", "before, out=d_w_hn)", sized("stepwise", "cho")),
        (
            "ends = steps.counts[t + 1] if t + 1 < steps.seq_len else 0",
            "ends = steps.counts[t - 1] if t else 0",
            named("test_schedules", "both_directions_of_a_stack[sm_90-torch-packed-2-persistent]"),
        ),
        (
            "[d_b_ih.narrow(0, 0, 2 * hidden_size), d_an.sum(0)]",
            "[d_b_ih.narrow(0, 0, 2 * hidden_size), d_an[0]]",
            sized("stepwise", "torch"),
        ),
    ],
    "trigru/schedules/unsquash.py": [
        (
            "shares if weights.bias_ih is None else shares - weights.bias_ih",
            "shares",
            named("test_operators", "second_derivatives_of_a_frozen_layer_which_keeps_no_input"),
        ),
    ],
    "kernels/exchange.py": [
        ('tl.atomic_add(flag, 1, sem="release"', 'tl.atomic_add(flag, 1, sem="relaxed"', _FLAGS),
        ("return torch.zeros(STATUS_WORDS.value + flags", "return torch.ones(STATUS_WORDS.value + flags", _FLAGS),
        (
            "(exchange * groups + group) * T",
            "(exchange * groups) * T",
            named("test_persistent", "batches_that_do_not_fit_at_once_take_turns[flags-False-torch]"),
        ),
        ("tl.store(host_ptr, number)", "tl.store(host_ptr, 0)", _EXPIRES),
        ("if not 0.0 < seconds <= 1e6:", "if not seconds <= 1e6:", named("test_watch", "a_time_that_is_none")),
    ],
    "kernels/prologue.py": [
        ("x.view(torch.int32).fill_(-1)", "x.view(torch.int32).fill_(0)", _DATA),
        (
            'state.out.copy_(state.source.nan_to_num(float("nan"), float("inf"), -float("inf")))',
            "state.out.copy_(state.source)",
            named("test_persistent", "nan_and_infinity_come_out_where_the_reference_has_them[torch-data]"),
        ),
    ],
    "kernels/assembly.py": [
        ('True), *_is_missing("t", bits, packed_max), "@!p bra DONE;"]', 'True), "bra DONE;"]', _DATA),
        ('"setp.ge.s32 p, t, $2;"', '"setp.ge.s32 p, t, 0;"', _FLAGS),
        ("ld.acquire.gpu.global.b32 t, [$1];", "ld.relaxed.gpu.global.b32 t, [$1];", _FLAGS),
        (
            'f"setp.lt.u32 p, t, {timeout};"',
            '"setp.lt.u32 p, t, 0;"',
            named("test_exchange_mutations", "the_beginning_of_a_wait_not_noted"),
        ),
        ('f"st.relaxed.gpu.global.b32 [{status}+{4 * ERROR_WORD}], t;",', "", _EXPIRES),
        ('[*_is_missing(m, bits, packed_max), f"@p {load}"]', "_is_missing(m, bits, packed_max)", _DATA),
    ],
    "kernels/fetched.py": [
        ("unit // 16 * 2 + tl.arange", "unit // 32 * 2 + tl.arange", _WIDE_FETCHED),
        ("(unit // 8 % 2 * 16)", "(unit // 8 * 16)", _WIDE_FETCHED),
        (".permute(7, 1, 2, 0, 8, 5, 10, 3, 4, 9, 6)", ".permute(7, 1, 2, 0, 9, 5, 10, 3, 4, 8, 6)", _WIDE_FETCHED),
    ],
    "kernels/persistent_forward.py": [
        ("own, S), load_rows(w_hh_ptr, 2, 1", "own, S), load_rows(w_hh_ptr, 1, 1", _WIDE),
    ],
    "kernels/resident_backward.py": [
        ("past, i + 2 >= T, j, b", "past, i + 1 >= T, j, b", _PADDED),
        ("here, before, end == 1, j, b", "here, before, end == 0, j, b", _ONE_STEP),
        ("later_if(coming, -1, i + 2 < T)", "later_if(coming, -1, i + 3 < T)", _WORDS),
    ],
    "kernels/resident_forward.py": [
        ("tl.where(first < end, following.count, 0)", "tl.where(first < end, 0, following.count)", _STACK),
    ],
    "kernels/parts.py": [
        (
            "a = even + odd",
            "a = even",
            named("test_persistent", "tiles_with_fewer_elements_than_threads[chung-160-True-90-dtype2-data]"),
        ),
        (
            "if SPLIT <= 4 or GATES * BLOCK_H * BLOCK_B < 32 * SPLIT:",
            "if False:",
            named("test_work_persistent", "parts_take_one_round_where_threads_are_more_than_elements[cho]"),
        ),
    ],
    "kernels/persistent_tiles.py": [
        (
            "tile = group if together == 1 else group // together",
            "tile = group",
            _SIDES,
        ),
        (
            "side = own.group % 2",
            "side = own.group % 2 * 0",
            _SIDES,
        ),
    ],
    "kernels/watch.py": [
        ("word.number.value = 0  # reported", "word.number.value = number  # reported", _REPORTED),
        ("if number := word.number.value:", "if number := 0 * word.number.value:", _REPORTED),
        ("len(_numbers) + 1)", "len(_numbers))", _REPORTED),
        ("T={}, B={}, H={}", "B={}, T={}, H={}", _REPORTED),
        ("said if len(_numbers) < _MOST else said[:1]", "said", named("test_watch", "the_numbers_of_many_sizes_end")),
        ("if self.immediate and self.word.item():", "if not self.immediate and self.word.item():", _EXPIRES),
        (
            "if device.index not in _words:",
            "if not _words:",
            named("test_watch", "another_device_has_a_word_of_its_own"),
        ),
    ],
}
