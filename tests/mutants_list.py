"""Mistakes that somebody could make, each with the test that notices it: for mutants.py."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One piece of text in place of another, which its file has once."""

    file: str
    old: str
    new: str
    test: str  # as pytest takes it; one parameter set is enough


def _sized(schedule: str, variant: str, rows: str = "padded-forward") -> str:
    return f"tests/test_schedules.py::test_every_size[sm_90-{schedule}-{variant}-{rows}-(3, 2, 5, 7)]"


def _eager(variant: str, direction: str = "forward", rows: str = "padded", bias: str = "bias") -> str:
    return f"tests/test_eager.py::test_small[{variant}-{direction}-{bias}-{rows}-(9, 4, 1, 33)-float64]"


def _named(file: str, test: str) -> str:
    return f"tests/{file}.py::test_{test}"


_TANH = _named("test_gates", "tanh_within_2_units_in_the_last_place[sm_90]")
_DATA = _named("test_persistent", "interleavings[torch-data]")
_FLAGS = _named("test_persistent", "interleavings[torch-flags]")
_EXPIRES = _named("test_persistent", "a_wait_that_expires_is_an_error_and_ends[64-data]")
_REPORTED = _named("test_watch", "an_expired_launch_is_reported_once_by_name")
_FITS = _named("test_plan", "what_does_not_fit_says_why")
_BYTES = _named("test_plan", "the_model_counts_the_bytes_that_the_compiled_kernels_move")
_NAMED = _named("test_functional", "what_does_not_fit_is_named")
_BATCH_SIZES = _named("test_misuse", "batch_sizes_that_do_not_fit_reach_no_schedule")
_ARRAYS = _named("test_convert", "arrays_of_a_library_give_its_results_here_and_come_back")
_MODULES = _named("test_convert", "a_library_gives_the_results_of_a_module_from_its_arrays")
_WRITTEN = _named("test_convert", "cho_and_chung_are_written_as_what_the_library_has")
_OPTIONS = _named("test_per_step_resident", "each_option_and_all")
_CARRIED = _named("test_per_step_resident", "an_amount_of_zero_carries_the_state_bit_for_bit")
_RESET = _named("test_options", "a_reset_is_another_run")
_PAIRS = _named("test_options", "pairs_against_the_reference")
_STACK = _named("test_schedules", "both_directions_of_a_stack[sm_90-cho-packed-None-resident]")
_SIDES = _named("test_persistent", "both_directions_at_once[torch-40-True-90-dtype0-data]")
_PATH, _ORDER = "fakecuda/test_launch_path", "fakecuda/test_order"

_BY_FILE: dict[str, list[tuple[str, str, str]]] = {
    "kernels/gates.py": [
        (
            "tl.exp2(-1.442695041 * x)",
            "tl.exp2(-1.4427 * x)",
            _named("test_gates", "sigmoid_as_exact_as_its_argument[sm_90]"),
        ),
        ("tl.where(size < 0.75, near, far)", "tl.where(size < 0.075, near, far)", _TANH),
        ("p = p * square + 0.133265212", "p = p * square + 0.133365212", _TANH),
        ("tl.exp2(2.885390082 * size)", "tl.exp2(2.885390082 * x)", _TANH),
        ("sign = tl.where(x < 0, -1.0, 1.0)", "sign = 1.0", _named("test_gates", "ends[sm_90]")),
        ("return tanh(gn + r * an)", "return tanh(gn + an)", _sized("resident", "torch")),
        ("return tanh(gn + an)", "return tanh(gn + r * an)", _sized("resident", "cho")),
        ("return (1.0 - z) * h + z * n", "return (1.0 - z) * n + z * h", _sized("resident", "chung")),
        (
            "return (1.0 - z) * h + z * n",
            "return h + z * (n - h)",
            _named("test_scales", "infinite_states[sm_90-chung-resident-17]"),
        ),
        ("return (n - z * n) + z * h", "return (n - z * n) + h", _sized("resident", "torch")),
        (
            "return (n - z * n) + z * h",
            "return n + z * (h - n)",
            _named("test_gates", "a_small_state_is_kept_behind_a_large_candidate[sm_90-torch]"),
        ),
        ("dn = dh * z\n", "dn = dh * (1.0 - z)\n", _sized("resident", "chung")),
        ("dz = dh * (n - h)", "dz = dh * (h - n)", _sized("resident", "chung")),
        ("dz = dh * (h - n)", "dz = dh * (n - h)", _sized("resident", "torch")),
        ("direct = dh * z\n", "direct = dh * (1.0 - z)\n", _sized("resident", "cho")),
        ("return dn * dtanh_from_output(n), dz * dsigmoid", "return dn, dz * dsigmoid", _sized("resident", "torch")),
        ("return y * (1.0 - y)", "return y * (1.0 + y)", _sized("resident", "torch")),
        (
            "return dn * an * dsigmoid_from_output(r), dn * r",
            "return dn * an * dsigmoid_from_output(r), dn",
            _sized("resident", "torch"),
        ),
        (
            "return d_rh * h * dsigmoid_from_output(r), d_rh * r",
            "return d_rh * dsigmoid_from_output(r), d_rh * r",
            _sized("resident", "cho"),
        ),
        ("tl.where(reset, 0.0 if fresh is None else fresh, begin)", "tl.where(reset, 0.0, begin)", _OPTIONS),
        ("d_before = tl.where(reset, 0.0, d_before)", "d_before = d_before * 1.0", _OPTIONS),
        ("tl.where(end < -clip, -clip, end))", "end)", _OPTIONS),
        ("end = tl.where(amount == 0.0, begin, end)", "end = begin * 0.0 + end", _CARRIED),
        ("d_new = amount * d_new", "d_new = d_new", _OPTIONS),
    ],
    "trigru/reference.py": [
        ("+ b_ir + h @ w_hr.T + b_hr)", "+ b_ir + h @ w_hr.T)", _eager("torch")),
        ("r * (h @ w_hn.T + b_hn))", "r * (h @ w_hn.T) + b_hn)", _eager("torch")),
        ("(r * h) @ w_hn.T + b_hn)", "r * (h @ w_hn.T) + b_hn)", _eager("cho")),
        ("return (1 - z) * h + z * n", "return (1 - z) * n + z * h", _eager("chung")),
        ("return (1 - z) * n + z * h", "return z * n + (1 - z) * h", _eager("cho")),
        (
            "h = torch.cat([outputs[t], h[alive:]])",
            "h = torch.cat([outputs[t], h0[alive:]])",
            _eager("torch", rows="packed"),
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
            "outputs = []\n        for direction",
            "outputs = [input[..., :0]]\n        for direction",
            _STACK,
        ),
    ],
    "trigru/schedules/eager.py": [
        ("before_n.addcmul_(r, an)", "before_n.add_(an)", _eager("torch")),
        ("new = blend(n, h, z, out=state)\n", "new = blend(h, n, z, out=state)\n", _eager("torch")),
        ("torch.mul(r, seen, out=reset)", "torch.mul(z, seen, out=reset)", _eager("cho")),
        (
            "n.addmm_(r * before, self.w_hh[2 * size :].t())",
            "n.addmm_(before, self.w_hh[2 * size :].t())",
            _named("test_operators", "gates_computed_again_give_the_same_gradients[cho-tanh-False-False]"),
        ),
        ("leaving[count:alive] = x[count:]", "leaving[count:alive] = x[:1]", _eager("torch", rows="packed")),
        (
            'and h0.device.type == "cpu" and math.isfinite(h0.sum().item()):',
            'and h0.device.type == "cpu":',
            _named("test_scales", "infinite_states[sm_90-torch-eager-16]"),
        ),
        (
            "torch.sub(n, before, out=self.scratch) if chung",
            "torch.sub(before, n, out=self.scratch) if chung",
            _eager("chung"),
        ),
        ("self.keep.copy_(rest if chung else z)", "self.keep.copy_(z)", _eager("chung")),
        ("torch.mul(f_n, r, out=f_an[0])", "f_an[0].copy_(f_n)", _eager("torch")),
        (
            "_sigmoid_backward(seen, side_r, grad_input=f_r)",
            "_sigmoid_backward(seen, side_z, grad_input=f_r)",
            _eager("cho"),
        ),
        ("return views if self.layout.reverse else views[::-1]", "return views[::-1]", _eager("torch", "reverse")),
        (
            "torch.cat([d_w_hh[size:], d_w_hh[:size]])",
            "torch.cat([d_w_hh[2 * size :], d_w_hh[: 2 * size]])",
            _eager("torch"),
        ),
        ("d_b_hh[2 * size :] = self.d_bias[:size]", "d_b_hh[2 * size :] = d_b_ih[2 * size :]", _eager("torch")),
        (
            "carry = grad_h_n[: layout.sizes[0 if part.reverse else -1]]",
            "carry = 0 * grad_h_n[: layout.sizes[0 if part.reverse else -1]]",
            _eager("torch"),
        ),
        ("d_h0[: carry.shape[0]] = carry", "d_h0[: carry.shape[0]] += 2 * carry", _eager("cho")),
    ],
    "trigru/schedules/eager_per_step.py": [
        ("h = torch.where(self.reset[t], self.fresh[t], h)", "h = self.fresh[t] + 0 * h", _RESET),
        (
            "h = h * self.decay[t]",
            "h = h * self.decay[0]",
            _named("test_options", "decay_and_attention_in_a_loop_over_a_cell"),
        ),
        ("else d.masked_fill(own.reset[here].unsqueeze(1), 0)", "else d", _RESET),
        ("products.mul_(own.dropped)", "products.mul_(1)", _PAIRS),
        ("passes = (end.abs() <= clip) | end.isnan()", "passes = (end.abs() <= 2 * clip) | end.isnan()", _PAIRS),
        ("keep.mul_(scale)", "keep.mul_(1)", _PAIRS),
    ],
    "trigru/schedules/per_step.py": [
        ("torch.cat([reset[1:], torch.zeros_like(reset[:1])])", "reset", _RESET),
    ],
    "trigru/schedules/eager_layout.py": [
        (
            "shift = self.sizes[0] if self.reverse else -self.sizes[0]",
            "shift = -self.sizes[0]",
            _eager("torch", "reverse"),
        ),
        ("pieces.insert(len(pieces) if self.reverse else 0, h0)", "pieces.insert(0, h0)", _eager("torch", "reverse")),
        ("source = t + 1 if self.reverse else t - 1", "source = t - 1", _eager("torch", "reverse", "packed")),
        ("return torch.cat([n, r, z])", "return torch.cat([n, z, r])", _eager("torch")),
    ],
    "trigru/schedules/eager_kept.py": [
        (
            "torch.sigmoid(-rz.abs()), -rz, out=rz)",
            "torch.sigmoid(-rz.abs()), rz, out=rz)",
            _named("test_eager", "16_bits"),
        ),
        ("missing * (2 - missing)", "missing", _named("test_eager", "16_bits")),
        (
            "torch.where(far, 1 / size, 1 - size)",
            "torch.where(far, 0, 1 - size)",
            _named("test_scales", "gradients_behind_saturated_gates_in_16_bits"),
        ),
    ],
    "trigru/schedules/eager_products.py": [
        ("torch.addmm(bias, x, w.t(), out=out)", "torch.addmm(bias, x, w.t(), out=out).sub_(bias)", _eager("torch")),
        ("out.addmm_(a.t(), b)", "torch.mm(a.t(), b, out=out)", _named("test_eager", "several_chunks_exactly")),
    ],
    "trigru/schedules/recompute.py": [
        (
            "linear(before, w_hn, b_hn))",
            "linear(before, w_hn))",
            _named("test_schedules", "gates_computed_again_in_chunks[sm_90-stepwise-torch-padded-forward]"),
        ),
    ],
    "trigru/schedules/projections.py": [
        (
            "bias.narrow(0, 0, 2 * hidden_size).add_(b_hrz)",
            "bias.narrow(0, 0, 2 * hidden_size).sub_(b_hrz)",
            _sized("stepwise", "torch"),
        ),
        ("torch.cat([h0, output[:later]])", "torch.cat([output[:later], h0])", _sized("stepwise", "torch")),
        ("r * before, out=d_w_hn)", "before, out=d_w_hn)", _sized("stepwise", "cho")),
        (
            "ends = steps.counts[t + 1] if t + 1 < steps.seq_len else 0",
            "ends = steps.counts[t - 1] if t else 0",
            _named("test_schedules", "both_directions_of_a_stack[sm_90-cho-packed-None-stepwise]"),
        ),
        (
            "[d_b_ih.narrow(0, 0, 2 * hidden_size), d_an.sum(0)]",
            "[d_b_ih.narrow(0, 0, 2 * hidden_size), d_an[0]]",
            _sized("stepwise", "torch"),
        ),
    ],
    "trigru/schedules/unsquash.py": [
        (
            "shares if weights.bias_ih is None else shares - weights.bias_ih",
            "shares",
            _named("test_operators", "second_derivatives_of_a_frozen_layer_which_keeps_no_input"),
        ),
    ],
    "kernels/exchange.py": [
        ("buffer.view(torch.int32).fill_(-1)", "buffer.view(torch.int32).fill_(0)", _DATA),
        ('tl.atomic_add(flag, 1, sem="release"', 'tl.atomic_add(flag, 1, sem="relaxed"', _FLAGS),
        ("return torch.zeros(STATUS_WORDS.value + flags", "return torch.ones(STATUS_WORDS.value + flags", _FLAGS),
        (
            "(exchange * groups + group) * T",
            "(exchange * groups) * T",
            _named("test_persistent", "batches_that_do_not_fit_at_once_take_turns[flags-False-torch]"),
        ),
        ("tl.store(host_ptr, number)", "tl.store(host_ptr, 0)", _EXPIRES),
        ("if not 0.0 < seconds <= 1e6:", "if not seconds <= 1e6:", _named("test_watch", "a_time_that_is_none")),
        (
            'return x.nan_to_num(float("nan"), float("inf"), -float("inf"))',
            "return x",
            _named("test_persistent", "nan_and_infinity_come_out_where_the_reference_has_them[torch-data]"),
        ),
    ],
    "kernels/assembly.py": [
        ('"@!p bra DONE;"', '"bra DONE;"', _DATA),
        ('"setp.ge.s32 p, t, $2;"', '"setp.ge.s32 p, t, 0;"', _FLAGS),
        ("ld.acquire.gpu.global.b32 t, [$1];", "ld.relaxed.gpu.global.b32 t, [$1];", _FLAGS),
        (
            'f"setp.lt.u32 p, t, {timeout};"',
            '"setp.lt.u32 p, t, 0;"',
            _named("test_persistent", "one_program_starved_as_long_as_the_others_can_go_on[torch-data]"),
        ),
        ('f"st.relaxed.gpu.global.b32 [{status}+{4 * ERROR_WORD}], t;",', "", _EXPIRES),
        ('"@p mov.b32 again, 1;", f"@p {load}"', 'f"@p {load}"', _DATA),
    ],
    "kernels/persistent_tiles.py": [
        (
            "tile = group if S.SIDES == 1 else group // 2",
            "tile = group",
            _SIDES,
        ),
        (
            "side = own.group % 2",
            "side = own.group % 2 * 0",
            _SIDES,
        ),
        (
            "row = b if S.PACKED else tl.minimum(b, B - 1)",
            "row = b",
            _named("test_persistent", "every_kind_of_layer[torch-64-padded-False-80-dtype0-data]"),
        ),
    ],
    "kernels/watch.py": [
        ("word.number.value = 0  # reported", "word.number.value = number  # reported", _REPORTED),
        ("if number := word.number.value:", "if number := 0 * word.number.value:", _REPORTED),
        ("len(_numbers) + 1)", "len(_numbers))", _REPORTED),
        ("T={}, B={}, H={}", "B={}, T={}, H={}", _REPORTED),
        ("said if len(_numbers) < _MOST else said[:1]", "said", _named("test_watch", "the_numbers_of_many_sizes_end")),
        ("if self.immediate and self.word.item():", "if not self.immediate and self.word.item():", _EXPIRES),
        (
            "if device.index not in _words:",
            "if not _words:",
            _named("test_watch", "another_device_has_a_word_of_its_own"),
        ),
    ],
    "trigru/planning/plan.py": [
        ("if needed > device.shared_per_block:", "if needed > 4 * device.shared_per_block:", _FITS),
        ("elif device.capability < (8, 0):", "elif device.capability < (7, 0):", _FITS),
        (
            "elif programs > config.on_a_multiprocessor * device.multiprocessors:",
            "elif programs > 4 * device.multiprocessors:",
            _FITS,
        ),
        (
            '!= ("torch", "auto", "keep"):',
            '!= (layer.variant, "auto", "keep"):',
            _named("test_as_nn_gru", "a_cell_takes_the_steps_of_a_layer[cho]"),
        ),
        (
            "return site.seq_len <= 8\n",
            "return site.seq_len <= 80\n",
            _named("test_functional", "explain_names_torch_where_its_own_gru_is_faster"),
        ),
        (
            'return "tf32" if rnn_in_tf32() else "ieee"',
            'return "ieee"',
            _named("test_schedules", "tf32_where_torch_allows_it_for_its_rnns[sm_90-stepwise-torch]"),
        ),
        (
            "_SHARED.add(state.device)",
            "pass",
            _named("test_persistent", "where_programs_do_not_fit_auto_takes_a_schedule_that_does_not_wait"),
        ),
        (
            "return staged(layer.num_layers, layer.directions, winner, direction)",
            "return modelled(layer, site, direction)",
            _named("test_tune", "the_winner_is_taken_and_explained"),
        ),
        (
            "max(1, config.on_a_multiprocessor * device.multiprocessors // programs)",
            "4 * config.on_a_multiprocessor * device.multiprocessors // programs",
            _named("test_persistent", "a_planned_launch_is_never_larger_than_the_device"),
        ),
    ],
    "trigru/planning/cost.py": [
        (
            'return 1 if self.variant == "torch" else 2',
            "return 1",
            _named("test_plan", "counts_of_a_step_are_those_of_the_schedules"),
        ),
        ('derivatives = 4 if self.variant == "torch" else 3', "derivatives = 3", _BYTES),
        ("return kept_values(self.variant) if self.training else 0", "return kept_values(self.variant) - 1", _BYTES),
        (
            "return cdiv(step.programs // step.together, groups_at_once)",
            "return step.together * groups_at_once // step.programs",
            _named("test_plan", "more_of_anything_never_costs_less"),
        ),
    ],
    "trigru/planning/stages.py": [
        (
            'order = layers if direction == "forward" else reversed(layers)',
            "order = layers",
            _STACK,
        ),
    ],
    "trigru/operators/__init__.py": [
        (
            "return index * layer.num_layers // len(weights)",
            "return 0",
            _named("test_operators", "layers_below_the_first_gradient_keep_nothing"),
        ),
        (
            "recording = site.recording or torch._C._get_tracing_state() is not None",
            "recording = True",
            _named("test_operators", "nothing_is_kept_without_gradients"),
        ),
        (
            '_refuse_tangents("gru", tensors_of(',
            "tuple(tensors_of(",
            _named("test_autograd", "the_raw_operator_refuses_tangents_rather_than_drop_them"),
        ),
    ],
    "trigru/operators/batching.py": [
        (
            "at = 0 if layer.batch_first else 1",
            "at = 1",
            _named("test_autograd", "vmap_over_input_and_state_is_one_call_an_operator"),
        ),
    ],
    "trigru/operators/schema.py": [
        (
            "== 4 * num_layers * (2 if bidirectional else 1)",
            "== 4 * num_layers",
            _named("test_autograd", "vmap_over_input_and_state_is_one_call_an_operator"),
        ),
    ],
    "trigru/operators/flops.py": [
        ("return 2 * _rows(input) *", "return _rows(input) *", _named("test_tools", "flops_are_those_of_nn_gru")),
        ("rows - (0 if need_hx else batch)", "rows", _named("test_tools", "flops_are_those_of_nn_gru")),
    ],
    "trigru/operators/derivative.py": [
        (
            "x.view_as(x) if higher and x.requires_grad else",
            "x if higher and x.requires_grad else",
            _named("test_autograd", "second_derivatives"),
        ),
        (
            "needed[2] = False",
            "needed[2] = needed[2]",
            _named("test_operators", "second_derivatives_where_the_last_states_are_the_output"),
        ),
    ],
    "trigru/checks.py": [
        ("if shape[-1] != layer.input_size:", "if False:", _NAMED),
        ("if hx.dtype != dtype:", "if False:", _NAMED),
        ("if shape != expected:", "if len(shape) != len(expected):", _NAMED),
        (
            "if weight.dtype != dtype:",
            "if False:",
            _named("test_misuse", "a_call_raises_what_nn_gru_raises[one weight of another dtype]"),
        ),
        ("if sum(counts) != call.input.shape[0]:", "if sum(counts) < call.input.shape[0]:", _BATCH_SIZES),
        ("any(later > earlier for", "any(later > earlier + 1 for", _BATCH_SIZES),
        ("if counts[-1] < 1 or", "if", _BATCH_SIZES),
        (
            "if counts[0] != call.hx.shape[1]:",
            "if False:",
            _named("test_misuse", "a_call_raises_what_nn_gru_raises[packed state]"),
        ),
        (
            "if sizes.dim() != 1 or sizes.dtype != torch.int64:",
            "if sizes.dim() != 1:",
            _named("test_misuse", "a_call_raises_what_nn_gru_raises[packed int32]"),
        ),
    ],
    "trigru/modules.py": [
        (
            "batch_first=batched and self.batch_first,",
            "batch_first=self.batch_first,",
            _named("test_as_nn_gru", "an_unbatched_input_is_a_batch_of_one"),
        ),
        (
            "if self.training and self.num_layers > 1 else 0.0",
            "if self.num_layers > 1 else 0.0",
            _named("test_as_nn_gru", "dropout_draws_the_numbers_that_nn_draws_on_a_cpu"),
        ),
        (
            "hx = self.permute_hidden(hx, sorted_indices)",
            "hx = self.permute_hidden(hx, None)",
            _named("test_as_nn_gru", "packed_sequences"),
        ),
    ],
    "trigru/convert/weights.py": [
        ("return torch.cat([z, r, n])", "return torch.cat([r, z, n])", _ARRAYS),
        ("return torch.cat([r, -z, n])", "return torch.cat([-r, z, n])", _WRITTEN),
        ("torch.cat([r, z, torch.zeros_like(n)]), n", "torch.cat([r, z, n]), n", _ARRAYS),
        (
            'if "forward" in vars(module) or not (',
            "if not (",
            _named("test_convert_arrays", "a_forward_of_its_own_is_refused"),
        ),
        (
            "if like is not None and given.dtype != like.dtype:",
            "if False:",
            _named("test_convert", "a_wrong_array_is_named_with_what_was_expected"),
        ),
        (
            "if got.shape != want.shape or not np.allclose",
            "if got.shape != want.shape and not np.allclose",
            _named("test_convert_arrays", "activations_of_flax_are_checked"),
        ),
        (
            "given = given.detach().cpu().contiguous()",
            "given = given.detach()[:]",
            _named("test_convert", "dtypes_are_kept_both_ways"),
        ),
        (
            "return given.numpy().copy()",
            "return given.numpy()",
            _named("test_convert", "nothing_is_shared_and_no_random_number_is_drawn"),
        ),
    ],
    "trigru/convert/lecture.py": [
        (
            "Weights(stacked[:, hidden_size:], stacked[:, :hidden_size]",
            "Weights(stacked[:, : width - hidden_size], stacked[:, width - hidden_size :]",
            _ARRAYS,
        ),
    ],
    "trigru/convert/keras.py": [
        (
            'build([layer], "torch" if reset_after else "cho"',
            'build([layer], "torch" if reset_after else "chung"',
            _ARRAYS,
        ),
        ("map(regate, bias if reset_after else", "iter(bias if reset_after else", _ARRAYS),
        ('== "torch" else b_ih + b_hh)', '== "torch" else b_ih)', _MODULES),
    ],
    "trigru/convert/onnx.py": [
        (
            'int(variant_of(module) == "torch")',
            'int(variant_of(module) != "torch")',
            _named("test_convert_onnx", "onnx_runtime_gives_the_outputs_of_a_module_that_was_trained_here"),
        ),
    ],
    "trigru/convert/haste.py": [
        ("if zoneout != 0:", "if zoneout < 0:", _named("test_convert_arrays", "zoneout_of_haste_is_refused")),
    ],
    "trigru/convert/flax.py": [
        (
            "if path not in known]",
            "if not path]",
            _named("test_convert_arrays", "an_array_that_would_be_dropped_is_refused"),
        ),
        (
            "if bias_n.any():",
            "if bias_n.all() and False:",
            _named("test_convert", "nnx_refuses_a_bias_that_it_has_not"),
        ),
        ("b_ih.new_zeros(2 * size), column(", "b_ih[: 2 * size], column(", _ARRAYS),
    ],
    "tests/fakecuda/driver.py": [
        ("if handle.module.device != device:", "if False:", _named(_PATH, "a_launch_without_the_device_guard")),
        (
            "if where not in (-1, device):",
            "if where not in (-1, 0, 1):",
            _named(_PATH, "a_launch_without_the_device_guard"),
        ),
        ("if align and value % int(align[1]):", "if False:", _named(_PATH, "rows_that_are_not_aligned")),
        (
            "if cooperative and math.prod(grid) > blocks * SMS:",
            "if False:",
            _named(_PATH, "more_programs_than_fit_are_refused"),
        ),
        (
            "if torch_library.fakecuda_capturing():",
            "if False:",
            _named(_PATH, "a_kernel_that_is_first_used_in_a_capture"),
        ),
        ("if wrong:\n", "if False:\n", _named(_ORDER, "a_read_of_what_another_stream_writes")),
        (
            'options["seed"] if cooperative else None',
            '"round-robin"',
            _named(_PATH, "without_the_cooperative_attribute_programs_run_one_after_another"),
        ),
        ("if found == -2:", "if found == -3:", _named(_PATH, "tensors_of_the_cpu")),
    ],
}

MUTANTS = [Mutant(file, *mutant) for file, mutants in _BY_FILE.items() for mutant in mutants]
