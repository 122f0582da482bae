"""Tests of many combinations of which the test command takes one in so many; `pytest -m "slow or not slow"` takes all.

What is kept is spread over the combinations, not the same value of a parameter again and again.
"""

from __future__ import annotations

from collections import Counter

ONE_IN = {
    "test_bench_compare.py": {"test_the_side_of_flags_exchanges_by_them_in_every_direction": 3},
    "test_compiler.py": {
        "test_export_with_dynamic_shapes": 2,
        "test_one_graph_for_packed_sequences": 2,
        "test_one_graph_for_ten_lengths_and_batch_sizes": 9,
        "test_transforms_of_torch_func_are_compiled_in": 3,
    },
    "test_convert_arrays.py": {"test_what_is_no_array_is_named": 8},
    "test_convert_onnx.py": {"test_what_trigru_exports_comes_back": 3},
    "test_demo.py": {"test_training_learns_and_repeats_by_seed": 3},
    "test_deterministic.py": {
        "test_a_sequence_has_the_same_bits_in_every_batch": 4,
        "test_kernels_from_run_to_run_and_in_any_interleaving": 4,
    },
    "test_eager.py": {"test_large": 3, "test_small": 3},
    "test_exchange_model.py": {"test_every_state_of_a_small_launch": 2, "test_walks_through_larger_launches": 2},
    "test_exchange_mutations.py": {
        "test_a_look_at_the_first_of_several_tiles_alone": 2,
        "test_a_second_look_removed": 2,
        "test_a_step_of_the_flag_protocol_left_out": 2,
        "test_a_wait_of_the_walking_kernels_changed": 4,
        "test_accesses_of_which_the_memory_model_says_nothing": 2,
        "test_directions_that_are_not_kept_apart": 4,
        "test_nothing_is_caught_without_a_mutation": 12,
        "test_reading_another_step": 2,
        "test_threads_that_hold_other_elements_than_assumed": 3,
        "test_what_layers_of_one_launch_exchange_changed": 3,
        "test_what_the_products_see_exchanged_otherwise": 2,
    },
    "test_exchange_order.py": {"test_looks_products_and_publishes_in_order": 2},
    "test_explain_model.py": {"test_what_is_said_is_what_runs": 20},
    "test_failure.py": {
        "test_a_kernel_that_expires_and_a_device_that_died": 3,
        "test_an_exception_in_a_module_hook": 5,
        "test_every_operation_fails_once": 4,
    },
    "test_gpu.py": {"test_as_the_reference": 5},  # of -m "gpu and not slow", which CI takes
    "test_heads.py": {"test_against_the_eager_schedule": 2},
    "test_jit_run.py": {"test_every_kernel": 4},
    "test_late_stores.py": {
        "test_an_order_left_out_is_an_error": 2,
        "test_persistent_kernels": 2,
        "test_a_step_of_a_protocol_left_out_gives_wrong_numbers": 2,
    },
    "test_norm.py": {"test_eager": 6},
    "test_norm_kernels.py": {"test_against_the_reference": 2, "test_every_element_at_every_scale": 2},
    "test_offline.py": {
        "test_no_spills_and_matrix_instructions": 8,
        "test_no_spills_at_sizes_that_no_tile_divides": 3,
        "test_no_spills_in_tiles_of_small_batches": 6,
        "test_no_spills_without_matrix_units": 4,
    },
    "test_onnx.py": {
        "test_lengths_are_sequence_lens": 2,
        "test_onnx_runtime_gives_the_results_of_the_exported_module": 5,
    },
    "test_operators.py": {
        "test_first_and_second_derivatives_against_finite_differences": 8,
        "test_opcheck": 14,
        "test_second_derivatives_of_a_frozen_layer_which_keeps_no_input": 4,
    },
    "test_options_kernels.py": {"test_against_the_reference": 4},
    "test_per_step_persistent.py": {
        "test_each_option_and_all": 4,
        "test_interleavings": 2,
        "test_nothing_passes_a_reset_and_nothing_else_counts_where_the_state_is_carried": 2,
        "test_resets_and_flags_in_one_word": 2,
        "test_the_order_of_a_step": 2,
    },
    "test_per_step_resident.py": {
        "test_an_amount_of_zero_carries_the_state_bit_for_bit": 2,
        "test_each_option_and_all": 3,
        "test_flags_are_amounts_of_zero_and_one": 2,
        "test_flags_in_words": 2,
    },
    "test_per_step_stepwise.py": {
        "test_every_option": 2,
        "test_nan_does_not_pass_a_reset": 2,
        "test_walking": 3,
        "test_where_a_state_is_carried_on_nothing_else_counts": 2,
    },
    "test_persistent.py": {
        "test_a_wait_that_expires_is_an_error_and_ends": 2,
        "test_batches_that_do_not_fit_at_once_take_turns": 8,
        "test_both_directions_at_once": 3,
        "test_every_kind_of_layer": 10,
        "test_interleavings": 4,
        "test_nan_and_infinity_come_out_where_the_reference_has_them": 2,
        "test_one_program_starved_as_long_as_the_others_can_go_on": 4,
    },
    "test_recurrent_dropout.py": {"test_the_same_units_in_every_schedule": 2},
    "test_redzones.py": {"test_a_kernel_that_writes_one_off": 5, "test_no_kernel_leaves_its_tensors": 6},
    "test_scales.py": {
        "test_eager": 6,
        "test_infinite_derivatives_do_not_meet_added_units": 2,
        "test_infinite_states": 2,
        "test_kernels": 12,
        "test_persistent_kernels": 9,
    },
    "test_schedules.py": {
        "test_both_directions_of_a_stack": 6,
        "test_every_dtype": 24,
        "test_every_size": 12,
        "test_gates_computed_again_in_chunks": 6,
        "test_nan_and_inf_come_out_where_the_reference_has_them": 2,
        "test_strided_and_expanded_arguments": 4,
        "test_tf32_where_torch_allows_it_for_its_rnns": 8,
    },
    "test_stacked.py": {
        "test_every_kind_of_stack": 2,
        "test_interleavings": 2,
        "test_a_wait_that_expires_is_an_error_and_ends": 2,
    },
    "test_together.py": {"test_modules_against_the_reference": 4},
    "test_traces.py": {"test_a_process_that_trains_writes_nothing_and_connects_to_nothing": 2},
    "test_triton_state.py": {"test_a_cpus_user_does_not_notice_and_info_says_what_is_wrong": 4},
    "test_walking.py": {
        "test_every_kind_of_layer": 6,
        "test_interleavings": 2,
        "test_one_program_starved_as_long_as_the_others_can_go_on": 2,
    },
    "test_warm.py": {"test_a_launch_finds_what_was_compiled_ahead": 3},
    "test_work_persistent.py": {"test_real_sizes": 3, "test_work_of_a_step": 2},
}


class Thinning:
    """Which of the collected tests are left to `-m slow`."""

    def __init__(self, further: int = 1) -> None:
        """further: of those of ONE_IN, one in so many again."""
        self.further = further
        self.seen: Counter[tuple[str, str]] = Counter()

    def leaves(self, file: str, test: str) -> bool:
        """Whether the next one of a test function, in the order of its combinations, is left."""
        each = ONE_IN.get(file, {}).get(test, 1)
        if each > 1:
            each *= self.further
        place = self.seen[file, test]
        self.seen[file, test] += 1
        # Not every n-th, which may be one value of a parameter again and again: n is often how many values it has.
        return (place + place // each + place // each**2) % each != 0
