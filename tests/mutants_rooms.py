"""Mistakes in what leads to a launch and lies around it: repeated calls, what forward keeps, layers that run together,
heads, zoneout's masks, invariant batches."""

from __future__ import annotations

from mutants_tests import named

_NOTED = "what_depends_on_values_or_comes_from_elsewhere_is_not_repeated"
_FAKE = "fakecuda/test_repeat"
_APART_FROM = "what_tells_tensors_apart"
_OTHERS = named(_FAKE, "calls_of_other_kinds_are_told_apart")
_STACK_OPCHECK = named("test_operators", "opcheck[grad-stack-padded]")
_FITS = named("test_together", "planned_launches_fit_the_device_and_take_every_layer_once[forward-H100]")
_DROPOUT = named("test_together", "modules_against_the_reference[options0-kernels0]")
_CHO = named("test_together", "modules_against_the_reference[options1-kernels1]")
_APART = named("test_together", "where_layers_do_not_fit_together_auto_runs_them_one_after_another")
_STACK = named("test_stacked", "every_kind_of_stack[torch-3-64-80-dtype0-options0]")
_STACK_CHUNG = named("test_stacked", "every_kind_of_stack[chung-3-40-90-dtype2-options2]")
_ONE_KEPT = named("test_operators", "layers_below_the_first_gradient_keep_nothing")
_HEADS = named("test_heads", "against_the_eager_schedule[torch-sizes0-options0]")
_MASKS = named("test_zoneout", "as_it_is_written[-0x3]")
_EVERY_OPTION = "('reset', 'fresh', 'decay', 'amount', 'dropped', 'zoneout', 'clip')"
_KERNELS_MASKS = named("test_per_step_resident", f"each_option_and_all[sm_90-{_EVERY_OPTION}-torch-torch.bfloat16]")
_NORMED = named("test_norm_kernels", "against_the_reference[resident-torch-packed stack-torch.float32-sm_90]")
_NORMED_STEP = named("test_norm_kernels", "against_the_reference[stepwise-cho-both directions-torch.bfloat16-sm_90]")
_EVERY_BATCH = named("test_deterministic", "a_sequence_has_the_same_bits_in_every_batch[sm_90-stepwise-torch]")
_ONE_CHOICE = named("test_deterministic", "one_choice_for_all_batches[512-torch.bfloat16-forward]")
_BY_CUDNN = named("test_cudnn", "as_the_reference[dropout-padded]")

# By file: its text, what stands in its place, and the test that notices.
BY_FILE: dict[str, list[tuple[str, str, str]]] = {
    "trigru/schedules/repeat.py": [
        ("self.repeatable &= name in _ASKED", "pass", named("test_repeat", f"{_NOTED}[<lambda>1]")),
        ("self.repeatable &= id(x) in self.names", "pass", named("test_repeat", f"{_NOTED}[<lambda>2]")),
        (
            "if not self.repeatable or len(lines) > MOST_LINES:",
            "if not self.repeatable:",
            named("test_repeat", f"{_NOTED}[<lambda>3]"),
        ),
        (
            "if not line.removable or line.names & used:",
            "if line:",
            named("test_repeat", "views_that_nothing_reads_are_left_out"),
        ),
        (
            'for name in line.used | line.names if name.startswith("v")}',
            "for name in ()}",
            named("test_repeat", "memory_is_freed_where_it_is_last_read"),
        ),
        (
            "aliases = [None if x is None else x.detach() for x in tensors]",
            "aliases = list(tensors)",
            named("test_repeat", "one_tensor_in_two_places_is_two"),
        ),
        (
            'return f"{name} + {offset}" if offset else name',
            "return name",
            named(_FAKE, "with_other_values[torch-options0-stepwise]"),
        ),
        (
            "if not isinstance(named := launch.named(error), DoesNotFit):",
            "if (named := launch.named(error)) is not None:",
            named(_FAKE, "a_launch_that_no_longer_fits"),
        ),
        (
            'first += ["check()", f"here',
            'first += [f"here',
            named(_FAKE, "a_launch_before_that_expired_is_told"),
        ),
        ('f"here = stream({device})"', '"here = 0"', named(_FAKE, "a_stream_of_its_own")),
        ("% {_LIKE}: return None", "% 1: return None", _OTHERS),
        (
            "        if run is None:\n            self.repeatable = False\n",
            "        if run is None:\n",
            named("test_repeat", f"{_NOTED}[<lambda>5]"),
        ),
    ],
    "trigru/operators/alike.py": [
        ("x.requires_grad, x.is_neg()", "x.is_neg()", named("test_alike", f"{_APART_FROM}[facts-requires_grad]")),
        (
            "x.requires_grad, x.is_neg())",
            "x.requires_grad)",
            named("test_alike", f"{_APART_FROM}[facts-a view that negates]"),
        ),
        (
            "if any(type(x) not in PLAIN_TYPES for x in tensors):",
            "if not tensors:",
            named("test_alike", "nothing_is_like_a_subclass"),
        ),
        (
            "        if fits(*tensors):\n            return fits",
            "        return fits",
            named("test_alike", "one_tensor_in_two_places[guards]"),
        ),
    ],
    "trigru/operators/known.py": [
        (
            "return grad_output is None, grad_h_n is None, around",
            "return grad_output is None, around",
            named(_FAKE, "second_derivatives_of_a_call_like_one_before"),
        ),
        (
            "measured.TABLE or forward_ad._current_level >= 0:",
            "measured.TABLE:",
            named(_FAKE, "tangents_from_above_of_a_call_like_one_before"),
        ),
        (
            "zeros is None, _recording(), around",
            "zeros is None, around",
            named(_FAKE, "a_call_noted_without_gradients_has_them_where_they_are_recorded"),
        ),
    ],
    "trigru/operators/compute.py": [
        (
            "id(by), invariant.is_on(), around",
            "id(by), around",
            named(_FAKE, "calls_within_batch_invariant_are_of_another_kind"),
        ),
        ("around, call.zeros, *strides, *needs)", "around, call.zeros, *needs)", _OTHERS),
    ],
    "trigru/schedules/reserve.py": [
        (
            "if self.states is not None and place < self.states.shape[0]:",
            "if self.states is not None:",
            named(_FAKE, "with_other_values[chung-options2-stepwise]"),
        ),
        ("if not layer.dropout or kept == 1:", "if not layer.dropout:", _ONE_KEPT),
        ("x.narrow(0, layers[0] - self.first_kept,", "x.narrow(0, 0,", _STACK_OPCHECK),
        (
            "mask.to(dtype).div_(1 - p)",
            "mask.to(dtype).div_(p)",
            named("test_as_nn_gru", "dropout_draws_the_numbers_that_nn_draws_on_a_cpu"),
        ),
    ],
    "trigru/planning/together.py": [
        (
            "tiles = config.on_a_multiprocessor * device.multiprocessors // (programs * layers)",
            "tiles = config.on_a_multiprocessor * device.multiprocessors // programs",
            _FITS,
        ),
        (
            "tiles_at_once=tiles * layers, layers=layers)",
            "tiles_at_once=tiles, layers=layers)",
            _FITS,
        ),
        (
            "if seconds is None or alone is None or seconds < alone:",
            "if True:",
            named("test_together", "why_layers_run_one_after_another[options7-predicted]"),
        ),
        (
            "if min(len(group) for group in groups) == 1:",
            "if not groups:",
            named("test_together", "why_layers_run_one_after_another[options5-one would be left by itself]"),
        ),
    ],
    "trigru/schedules/together.py": [
        (
            "return x if between.masks is None else x * scaled(",
            "return x if between.masks is not None else x * scaled(",
            _DROPOUT,
        ),
        ("_input_of(run, i).reshape(rows.shape[0], -1) if asked[0]", "run.input if asked[0]", _CHO),
        ("torch.stack(d_h0[::-1])", "torch.stack(d_h0)", _APART),
        ("d_output = d_output * scaled(masks[i - 1],", "d_output = d_output * scaled(masks[i],", _APART),
    ],
    "kernels/stacked.py": [
        (
            "torch.cat([none(1, 3 * hidden_size, hidden_size), layers.w_ih])",
            "torch.cat([layers.w_ih, none(1, 3 * hidden_size, hidden_size)])",
            _STACK,
        ),
        (
            'args["bias_ptr"] = torch.cat([args["bias_ptr"], layers.bias])',
            'args["bias_ptr"] = torch.cat([layers.bias, args["bias_ptr"]])',
            _STACK,
        ),
    ],
    "kernels/stacked_tiles.py": [
        ("tl.where(has_above, number, 0) * plane", "number * plane", _STACK),
        (
            "return d if absent(stays) else d * tl.where(stays != 0, scale, 0.0)",
            "return d",
            _STACK,
        ),
        ("rows, rows + S.H, rows + 2 * S.H", "rows, rows + 2 * S.H, rows + S.H", _STACK),
    ],
    "kernels/stacked_forward.py": [
        ("seen = stored * tl.where(stays != 0, scale, 0.0)", "seen = stored * scale", _STACK),
        (
            "still = Own(own.group, own.j, own.b, own.row * moves,",
            "still = Own(own.group, own.j, own.b, own.row,",
            _STACK,
        ),
        (
            "w_below = load_rows(w_ih_ptr + first_row, 0, 4, own, S, 2)",
            "w_below = load_rows(w_ih_ptr + first_row, 0, 4, own, S, 3)",
            _STACK,
        ),
        (
            "a = tl.dot(below_n, x_below, input_precision=PRECISION)",
            "a = tl.dot(below_z, x_below, input_precision=PRECISION)",
            _STACK_CHUNG,
        ),
    ],
    "kernels/stacked_backward.py": [
        (
            "(level.number + 1) * (3 * level.plane), nothing_ptr)",
            "level.number * (3 * level.plane), nothing_ptr)",
            _STACK,
        ),
        (
            "from_above = passed_down(share_of_gates(w_above, tiles[3:], PRECISION, S), stays, scale)",
            "from_above = share_of_gates(w_above, tiles[3:], PRECISION, S)",
            _STACK,
        ),
        ("dh = direct + through_reset + one_gate(", "dh = direct + one_gate(", _STACK_CHUNG),
    ],
    "trigru/schedules/heads.py": [
        ("x.unflatten(-1, (heads, -1)).movedim(-2, -3)", "x.unflatten(-1, (-1, heads)).movedim(-1, -3)", _HEADS),
        (
            "for own in directions for _ in range(heads) for need in own)",
            "for own in directions for _ in range(heads) for need in own[::-1])",
            _HEADS,
        ),
        ("torch.stack(known, 1).flatten(0, 2)", "torch.stack(known, 0).flatten(0, 2)", _HEADS),
        (
            "h0.unflatten(0, (directions, heads)).movedim(1, -2)",
            "h0.unflatten(0, (heads, directions)).movedim(0, -2)",
            _HEADS,
        ),
    ],
    "kernels/masks.py": [
        (
            "return round(rate * (1 << DIGITS))",
            "return round(rate * (1 << (DIGITS - 1)))",
            named("test_zoneout", "its_rate[0.3]"),
        ),
        (
            "counter = torch.arange(rows, device=seed.device).add_(seed)",
            "counter = torch.arange(rows, device=seed.device).bitwise_xor_(seed)",
            _MASKS,
        ),
        ("(counter >> 32).to(torch.int32).bitwise_xor_(low)", "(counter >> 32).to(torch.int32)", _MASKS),
        ("return (x >> by).bitwise_and_((1 << (32 - by)) - 1)", "return x >> by", _MASKS),
    ],
    "kernels/counters.py": [
        ("counter = seed + row + b", "counter = seed + b", _KERNELS_MASKS),
        (
            "high = _lowbias32((counter >> 32).to(tl.uint32) ^ low)",
            "high = _lowbias32(counter.to(tl.uint32) ^ low)",
            _KERNELS_MASKS,
        ),
        ("return (x >> _DROPPED).to(tl.int32) >= below", "return (x >> _DROPPED).to(tl.int32) < below", _KERNELS_MASKS),
    ],
    "kernels/norm.py": [
        ("number = len(parts) * norm.units\n    mean", "number = norm.units\n    mean", _NORMED),
        ("behind * (1 if PRODUCTS is None else 2)", "behind", _NORMED_STEP),
        ("number = (LAST - FIRST) * H", "number = H", _NORMED_STEP),
    ],
    "trigru/schedules/norm.py": [
        (
            "own = (rz, n) if d_an is None else (torch.cat([rz, d_an], 1),)",
            "own = (rz, n) if d_an is None else (d_gates,)",
            _NORMED,
        ),
        ("return (self.values - self.mean).mul_(self.rstd)", "return self.values * self.rstd", _NORMED),
    ],
    "trigru/planning/candidates.py": [
        ("return invariant.SEQUENCES if invariant.is_on() else layer.batch", "return layer.batch", _ONE_CHOICE),
        (
            "key=lambda c: (c.obstacle is not None, c.seconds)",
            "key=lambda c: c.seconds",
            named("test_plan", "every_layer_has_a_plan_on_every_device_that_has_its_dtype[H100]"),
        ),
    ],
    "trigru/planning/invariant.py": [
        ("_blocks -= 1", "pass", named("test_deterministic", "what_cannot_promise_it_raises[eager]")),
        (
            "return _blocks > 0",
            "return _blocks > 1",
            named("test_deterministic", "what_cannot_promise_it_raises[eager]"),
        ),
        (
            "if is_on():\n        because",
            "if not is_on():\n        because",
            named("test_deterministic", "what_cannot_promise_it_raises[eager]"),
        ),
    ],
    "trigru/schedules/cudnn.py": [
        ("grad = _masked(layer, call, grad, masks, one.number)", "pass", _BY_CUDNN),
        ("time_major(layer, call, masks[number - 1])", "masks[number - 1]", _BY_CUDNN),
        ("if need_hx else None\n    d_weights", "if False else None\n    d_weights", _BY_CUDNN),
        ("below = need_input or any(", "below = any(", _BY_CUDNN),
        (
            "module.num_layers if module.dropout else 1",
            "1",
            named("test_cudnn", "weights_of_a_stack_with_dropout_lie_layer_by_layer"),
        ),
    ],
}
