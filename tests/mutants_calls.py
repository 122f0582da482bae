"""Mistakes in the planner, operators, checks, modules, converters and the fake driver's checks."""

from __future__ import annotations

from mutants_tests import named

_FITS = named("test_plan", "what_does_not_fit_says_why")
_BYTES = named("test_plan", "the_model_counts_the_bytes_that_the_compiled_kernels_move")
_NAMED = named("test_functional", "what_does_not_fit_is_named")
_BATCH_SIZES = named("test_misuse", "batch_sizes_that_do_not_fit_reach_no_schedule")
_ARRAYS = named("test_convert", "arrays_of_a_library_give_its_results_here_and_come_back")
_MODULES = named("test_convert", "a_library_gives_the_results_of_a_module_from_its_arrays")
_WRITTEN = named("test_convert", "cho_and_chung_are_written_as_what_the_library_has")
_STACK = named("test_schedules", "both_directions_of_a_stack[sm_90-cho-packed-None-resident]")
_PATH, _ORDER = "fakecuda/test_launch_path", "fakecuda/test_order"

# By file: its text, what stands in its place, and the test that notices.
BY_FILE: dict[str, list[tuple[str, str, str]]] = {
    "trigru/planning/candidates.py": [
        ("if needed > device.shared_per_block:", "if needed > 4 * device.shared_per_block:", _FITS),
        ("elif device.capability < (8, 0):", "elif device.capability < (7, 0):", _FITS),
        (
            "if step.together <= one.on_a_multiprocessor * device.multiprocessors]",
            "if step.together <= 4 * device.multiprocessors]",
            _FITS,
        ),
        (
            "max(1, config.on_a_multiprocessor * device.multiprocessors // programs)",
            "4 * config.on_a_multiprocessor * device.multiprocessors // programs",
            named("test_persistent", "a_planned_launch_is_never_larger_than_the_device"),
        ),
    ],
    "trigru/planning/plan.py": [
        (
            '!= ("torch", "auto", "keep"):',
            '!= (layer.variant, "auto", "keep"):',
            named("test_as_nn_gru", "a_cell_takes_the_steps_of_a_layer[cho]"),
        ),
        (
            "if site.recording and steps > 8:",
            "if site.recording and steps > 80:",
            named("test_functional", "explain_says_what_runs_and_why"),
        ),
        (
            'return "tf32" if rnn_in_tf32() else "ieee"',
            'return "ieee"',
            named("test_schedules", "tf32_where_torch_allows_it_for_its_rnns[sm_90-stepwise-torch]"),
        ),
        (
            "_SHARED.add(state.device)",
            "pass",
            named("test_persistent", "where_programs_do_not_fit_auto_takes_a_schedule_that_does_not_wait"),
        ),
        (
            "return staged(layer.num_layers, layer.directions, winner, direction)",
            "return modelled(layer, site, direction)",
            named("test_tune", "the_winner_is_taken_and_explained"),
        ),
    ],
    "trigru/planning/cost.py": [
        (
            'return 1 if self.variant == "torch" else 2',
            "return 1",
            named("test_plan", "counts_of_a_step_are_those_of_the_schedules"),
        ),
        ('derivatives = 4 if self.variant == "torch" else 3', "derivatives = 3", _BYTES),
        ("return kept_values(self.variant) if self.training else 0", "return kept_values(self.variant) - 1", _BYTES),
        (
            "return cdiv(step.programs // step.together, groups_at_once)",
            "return step.together * groups_at_once // step.programs",
            named("test_plan", "more_of_anything_never_costs_less"),
        ),
    ],
    "trigru/planning/stages.py": [
        (
            'return groups if direction == "forward" else groups[::-1]',
            "return groups",
            _STACK,
        ),
        (
            "steps = seq_len + len(stage.layers) - 1",
            "steps = seq_len",
            named("test_together", "time_is_of_all_steps_and_layers_but_one"),
        ),
    ],
    "trigru/operators/__init__.py": [
        (
            "return index * layer.num_layers // len(weights)",
            "return 0",
            named("test_operators", "layers_below_the_first_gradient_keep_nothing"),
        ),
        (
            '_refuse_tangents("gru", tensors_of(',
            "tuple(tensors_of(",
            named("test_autograd", "the_raw_operator_refuses_tangents_rather_than_drop_them"),
        ),
    ],
    "trigru/operators/batching.py": [
        (
            "at = 0 if layer.batch_first else 1",
            "at = 1",
            named("test_autograd", "vmap_where_the_batch_comes_first"),
        ),
    ],
    "trigru/operators/schema.py": [
        (
            "== 4 * num_layers * (2 if bidirectional else 1)",
            "== 4 * num_layers",
            named("test_autograd", "vmap_over_input_and_state_is_one_call_an_operator"),
        ),
    ],
    "trigru/operators/flops.py": [
        ("return 2 * _rows(input) *", "return _rows(input) *", named("test_tools", "flops_are_those_of_nn_gru")),
        ("rows - (0 if need_hx else batch)", "rows", named("test_tools", "flops_are_those_of_nn_gru")),
    ],
    "trigru/operators/derivative.py": [],
    "trigru/checks.py": [
        ("if hx.dtype != dtype:", "if False:", _NAMED),
        ("if shape != shapes[index]:", "if len(shape) != len(shapes[index]):", _NAMED),
        (
            "if weight.dtype != dtype:",
            "if False:",
            named("test_misuse", "a_call_raises_what_nn_gru_raises[one weight of another dtype]"),
        ),
        ("if sum(counts) != call.input.shape[0]:", "if sum(counts) < call.input.shape[0]:", _BATCH_SIZES),
        ("any(later > earlier for", "any(later > earlier + 1 for", _BATCH_SIZES),
        ("if counts[-1] < 1 or", "if", _BATCH_SIZES),
        (
            "if counts[0] != call.hx.shape[1]:",
            "if False:",
            _BATCH_SIZES,
        ),
        (
            "if sizes.dim() != 1 or sizes.dtype != torch.int64:",
            "if sizes.dim() != 1:",
            named("test_misuse", "a_call_raises_what_nn_gru_raises[packed int32]"),
        ),
    ],
    "trigru/modules.py": [
        (
            "batch_first=batched and self.batch_first,",
            "batch_first=self.batch_first,",
            named("test_as_nn_gru", "an_unbatched_input_is_a_batch_of_one"),
        ),
        (
            "if self.training and self.num_layers > 1 else 0.0",
            "if self.num_layers > 1 else 0.0",
            named("test_as_nn_gru", "dropout_draws_the_numbers_that_nn_draws_on_a_cpu"),
        ),
        (
            "hx = self.permute_hidden(hx, sorted_indices)",
            "hx = self.permute_hidden(hx, None)",
            named("test_as_nn_gru", "packed_sequences"),
        ),
    ],
    "trigru/convert/weights.py": [
        ("return torch.cat([z, r, n])", "return torch.cat([r, z, n])", _ARRAYS),
        ("return torch.cat([r, -z, n])", "return torch.cat([-r, z, n])", _WRITTEN),
        ("torch.cat([r, z, torch.zeros_like(n)]), n", "torch.cat([r, z, n]), n", _ARRAYS),
        (
            'if "forward" in vars(module) or not (',
            "if not (",
            named("test_convert_arrays", "a_forward_of_its_own_is_refused"),
        ),
        (
            "if like is not None and given.dtype != like.dtype:",
            "if False:",
            named("test_convert", "a_wrong_array_is_named_with_what_was_expected"),
        ),
        (
            "if got.shape != want.shape or not np.allclose",
            "if got.shape != want.shape and not np.allclose",
            named("test_convert_arrays", "activations_of_flax_are_checked"),
        ),
        (
            "return given.numpy().copy()",
            "return given.numpy()",
            named("test_convert", "nothing_is_shared_and_no_random_number_is_drawn"),
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
            named("test_convert_onnx", "onnx_runtime_gives_the_outputs_of_a_module_that_was_trained_here"),
        ),
    ],
    "trigru/convert/haste.py": [
        ("if zoneout != 0:", "if zoneout < 0:", named("test_convert_arrays", "zoneout_of_haste_is_refused")),
    ],
    "trigru/convert/flax.py": [
        (
            "if path not in known]",
            "if not path]",
            named("test_convert_arrays", "an_array_that_would_be_dropped_is_refused"),
        ),
        (
            "if bias_n.any():",
            "if bias_n.all() and False:",
            named("test_convert", "nnx_refuses_a_bias_that_it_has_not"),
        ),
        ("b_ih.new_zeros(2 * size), column(", "b_ih[: 2 * size], column(", _ARRAYS),
    ],
    "tests/fakecuda/driver.py": [
        ("if handle.module.device != device:", "if False:", named(_PATH, "a_launch_without_the_device_guard")),
        (
            "if where not in (-1, device):",
            "if where not in (-1, 0, 1):",
            named(_PATH, "a_launch_without_the_device_guard"),
        ),
        (
            "if cooperative and math.prod(grid) > blocks * SMS:",
            "if False:",
            named(_PATH, "more_programs_than_fit_are_refused"),
        ),
        (
            "if torch_library.fakecuda_capturing():",
            "if False:",
            named(_PATH, "a_kernel_that_is_first_used_in_a_capture"),
        ),
        ("if wrong:\n", "if False:\n", named(_ORDER, "a_read_of_what_another_stream_writes")),
        (
            'options["seed"] if cooperative else None',
            '"round-robin"',
            named(_PATH, "without_the_cooperative_attribute_programs_run_one_after_another"),
        ),
        ("if found == -2:", "if found == -3:", named(_PATH, "tensors_of_the_cpu")),
    ],
}
