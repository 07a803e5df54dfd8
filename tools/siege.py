"""Try to lose, to deceive and to break in: ``python tools/siege.py``; many minutes.

The tests of faults, of bad input and of made-up input, with much more of each, counted. The exit code says whether
anything was lost, passed without a word, or was executed, or less was tried than was to be.
"""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1] / "tests"

# What is tried: how often at least, what it means where it fails, and the tests that try it.
TRIED = {
    "SIGKILLs of a run": (60, "lost", {"faults": ["killed_at_any_moment_a_run_ends_as_if_it_had_not_been"]}),
    "moments without power": (100, "lost", {"faults": ["a_power_failure_at_any_moment_loses_nothing"]}),
    "full disks": (12, "lost", {"faults": ["a_full_disk_loses_nothing"]}),
    "batches with a worker, kernel or scheduler killed, or two at once": (
        4,
        "lost",
        {
            "batch": [
                "eight_runs_on_two_gpus_of_which_one_fails_while_a_worker_and_a_kernel_are_killed",
                "a_cluster_without_a_shared_disk_one_of_whose_workers_is_killed",
                "a_scheduler_that_is_killed_is_said_in_a_sentence",
                "two_at_once_do_not_disturb_each_other_and_a_kernel_that_dies_after_its_card_has_not_finished",
            ]
        },
    ),
    "bad inputs": (
        40,
        "silent",
        {
            "cards": ["of_a_hostile_card_file_and_key_are_named"],
            "cli": ["wrong_usage_is_said_in_a_sentence_and_nothing_is_written"],
            "data": ["what_is_wrong_is_named"],
            "networks": ["a_hostile_file_is_refused_in_a_sentence", "a_network_that_classifies_no_images_is_refused"],
            "pictures": [
                "what_cant_be_read_is_refused_by_name",
                "what_has_no_end_or_is_too_large_is_refused_before_it_is_read",
            ],
            "plan": ["a_tier_that_is_none_is_refused", "a_notebook_without_a_parameters_cell_is_refused"],
            "runs": [
                "a_folder_that_cannot_be_written_into_is_refused_before_training",
                "a_checkpoint_with_a_right_digest_and_wrong_contents_is_refused",
            ],
        },
    ),
    "made-up parameters and words": (
        5000,
        "silent",
        {
            "fuzz": [
                "a_parameter_is_taken_as_it_is_or_refused",
                "a_word_of_the_command_line_is_taken_by_its_parameters_type_or_refused",
            ]
        },
    ),
    "made-up files": (
        500,
        "silent",
        {
            "fuzz": [
                "arrays_become_the_data_that_they_say_or_are_refused",
                "a_card_can_be_compared_or_is_refused",
                "a_damaged_picture_is_read_or_refused",
                "a_damaged_array_file_is_read_as_it_was_or_refused",
                "a_damaged_network_answers_as_it_did_or_is_refused",
                "a_damaged_checkpoint_gives_way_to_the_one_before_it",
            ]
        },
    ),
}
# {test: what it tries}
WHAT = {
    f"test_{module}.py::test_{name}": what
    for what, (*_, tests) in TRIED.items()
    for module, names in tests.items()
    for name in names
}


class Count:
    """A plugin of pytest that counts what the tests tried and what came of it."""

    def __init__(self):
        self.tried, self.fell = Counter(), Counter()

    def pytest_runtest_logreport(self, report):
        what = WHAT[report.nodeid.partition("[")[0].rpartition("/")[2]]
        if report.when == "call":
            self.tried[what] += dict(report.user_properties).get("tried", 1)
        if report.failed:
            self.fell["executed" if "EXECUTED.exists" in report.longreprtext else TRIED[what][1]] += 1


def main() -> int:
    os.environ["PATCHLIB_SIEGE"] = "1"
    count = Count()
    pytest.main(["--quiet", "--numprocesses=2", "--dist=worksteal", *(f"{TESTS / test}" for test in WHAT)], [count])
    few = {what: least for what, (least, *_) in TRIED.items() if count.tried[what] < least}
    for what in TRIED:
        print(f"{count.tried[what]:6,} {what}" + (f", of {few[what]:,} wanted" if what in few else ""))
    print(", ".join(f"{count.fell[what]} {what}" for what in ("lost", "silent", "executed")))
    return 1 if count.fell or few else 0


if __name__ == "__main__":
    sys.exit(main())
