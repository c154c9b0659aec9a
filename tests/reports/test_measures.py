"""Every column of the method table against values computed by hand."""

import dataclasses

import pytest

from harness.spec import Ref
from reports.cells import DASH
from reports.groups import group, latest
from reports.labels import Labels
from reports.tables import method_table
from tests.harness.samples import sample_fidelity, sample_memory, sample_timing, sample_training
from tests.reports import builders as b

BPTT, CHECKPOINT, SLTT, STDL = b.METHODS[0], b.METHODS[1], b.METHODS[3], b.METHODS[5]


def cell(key, *records, method="checkpoint"):
    """The cell of a method in the only group that the records make."""
    items = latest(b.items(records))
    (only,) = group(items)
    table = method_table(only, Labels(item.record.spec for item in items))
    return next(line for line in table.lines if line.row.spec.method.name == method).cell(key)


def with_memory(method, number, **changes):
    return b.record(method, number).model_copy(update={"memory": sample_memory(**changes)})


def with_accuracy(method, number, seed, value):
    return b.record(method, number, seed=seed).model_copy(update={"training": b.training(value, 2)})


def test_bytes_are_raw_in_the_value_and_mib_in_the_text():
    found = cell("peak_live_bytes", with_memory(CHECKPOINT, 0, peak_live_bytes=3 * 2**20))
    assert (found.value, found.text) == (3 * 2**20, "3.00")
    assert "3,145,728 bytes" in found.title


def test_byte_ratio_is_baseline_over_method():
    found = cell(
        "peak_less", with_memory(BPTT, 0, peak_live_bytes=3000), with_memory(CHECKPOINT, 1, peak_live_bytes=1200)
    )
    assert (found.value, found.text) == (2.5, "2.50\u00d7")


def test_peaks_and_activations_have_ratios_of_their_own():
    ours = with_memory(CHECKPOINT, 1, peak_live_bytes=1000, peak_activation_bytes=100)
    base = with_memory(BPTT, 0, peak_live_bytes=2000, peak_activation_bytes=1100)
    assert cell("peak_less", base, ours).value == 2.0
    assert cell("activation_less", base, ours).value == 11.0


def test_byte_ratio_wants_the_same_seed():
    ours = b.record(CHECKPOINT, 1, seed=5)
    found = cell("peak_less", b.record(BPTT, 0, seed=0), ours)
    assert found.value is None
    assert "no memory at this seed" in found.title


def test_byte_ratio_wants_the_same_kernels():
    found = cell(
        "peak_less", with_memory(BPTT, 0, kernel_path="torch"), with_memory(CHECKPOINT, 1, kernel_path="triton")
    )
    assert found.value is None
    assert "triton against torch" in found.title


def test_without_a_baseline_the_ratio_is_a_dash_with_a_reason():
    found = cell("peak_less", b.record(CHECKPOINT, 0))
    assert (found.value, found.text) == (None, DASH)
    assert "no record of the baseline bptt" in found.title


def test_a_null_metric_takes_its_reason_from_the_record():
    record = with_memory(CHECKPOINT, 0, saved_bytes=None, reasons={
        **sample_memory().reasons, "saved_bytes": "the step ran no backward"})  # fmt: skip
    assert cell("saved_bytes", record).title == "the step ran no backward"


def test_allocator_column_is_only_asked_of_a_gpu():
    assert not cell("cuda_allocated_bytes", b.record(CHECKPOINT, 0)).asked
    assert cell("cuda_allocated_bytes", b.record(CHECKPOINT, 0, device="cuda")).asked


def test_other_seeds_bytes_are_told():
    second = b.record(CHECKPOINT, 1, seed=1).model_copy(update={"memory": sample_memory(peak_live_bytes=2**20)})
    found = cell("peak_live_bytes", with_memory(CHECKPOINT, 0, peak_live_bytes=2 * 2**20), second)
    assert found.value == 2 * 2**20
    assert "other seeds 1.00 to 1.00 MiB" in found.title


def test_paired_time_ratio_comes_from_the_record():
    found = cell("time_longer", b.record(BPTT, 0), b.record(CHECKPOINT, 1))
    assert (found.value, found.text) == (1.32, "1.32\u00d7 [1.30, 1.34]")
    assert not found.marks


def test_unpaired_time_ratio_is_medians_and_marked():
    nulls = ("baseline_step_time_s", "ratio", "ratio_low", "ratio_high")
    alone = sample_timing(step_time_s=0.03, paired=False, **dict.fromkeys(nulls),
                          reasons=dict.fromkeys((*nulls, "energy_per_step_j"), "does not fit"))  # fmt: skip
    ours = b.record(CHECKPOINT, 1).model_copy(update={"timing": alone})
    base = b.record(BPTT, 0).model_copy(update={"timing": alone.model_copy(update={"step_time_s": 0.02})})
    found = cell("time_longer", base, ours)
    assert found.value == pytest.approx(1.5)
    assert found.text == "1.50\u00d7"
    assert "does not fit" in found.marks["unpaired"]
    assert cell("time_longer", base, method="bptt").value == 1.0


@pytest.mark.parametrize(("verdict", "marks"), [("stable", []), ("noisy", ["noisy"]), ("disturbed", ["disturbed"])])
def test_unsteady_times_are_marked(verdict, marks):
    record = b.record(CHECKPOINT, 0).model_copy(update={"timing": sample_timing(verdict=verdict)})
    assert list(cell("step_time_s", record).marks) == marks


def test_accuracy_over_seeds():
    # mean 0.92, deviation 0.02, half width 4.303 * 0.02 / sqrt(3) = 0.04968
    found = cell("accuracy", *(with_accuracy(CHECKPOINT, i, i, v) for i, v in enumerate((0.90, 0.92, 0.94))))
    assert found.value == pytest.approx(0.92)
    assert found.text == "92.00 \u00b1 4.97 (n=3)"
    assert found.extra["seeds"] == 3


def test_accuracy_says_which_seeds_are_lost():
    lost = b.failed(CHECKPOINT, 2, "diverged", "train", seed=2)
    found = cell("accuracy", with_accuracy(CHECKPOINT, 0, 0, 0.9), with_accuracy(CHECKPOINT, 1, 1, 0.92), lost)
    assert found.extra["seeds"] == 2
    assert found.marks == {"1 lost": "no final accuracy for seed 2"}


def test_accuracy_of_runs_without_a_final_one():
    block = sample_training(final_test_accuracy=None, reasons={"final_test_accuracy": "diverged in epoch 2"})
    found = cell("accuracy", b.record(CHECKPOINT, 0).model_copy(update={"training": block}))
    assert (found.value, found.title) == (None, "diverged in epoch 2")


def test_accuracy_difference_is_paired():
    base = [with_accuracy(BPTT, i, i, v) for i, v in enumerate((0.80, 0.90))]
    ours = [with_accuracy(CHECKPOINT, 9 + i, i, v) for i, v in enumerate((0.801, 0.901))]
    found = cell("accuracy_difference", *base, *ours)
    assert found.value == pytest.approx(0.001)
    assert found.text == "+0.10 \u00b1 0.00"
    assert list(found.marks) == ["equivalent"]


def test_accuracy_difference_needs_common_seeds():
    found = cell("accuracy_difference", with_accuracy(BPTT, 0, 0, 0.9), with_accuracy(CHECKPOINT, 1, 1, 0.9))
    assert found.value is None
    assert "no seed for which both" in found.title


def test_training_that_nobody_asked_for_is_not_a_failure():
    record = b.record(CHECKPOINT, 0, phases=("memory",)).model_copy(update={"training": None})
    assert not cell("accuracy", record).asked
    assert not cell("accuracy_difference", record).asked


@pytest.mark.parametrize(
    ("method", "errors", "value", "marks"),
    [
        (CHECKPOINT, (1e-7, 1e-7), "kept", []),
        (CHECKPOINT, (1e-7, 1e-3), "broken", ["broken"]),
        (SLTT, (0.4, 0.4), "biased", []),
    ],
)
def test_promise(method, errors, value, marks):
    blocks = [sample_fidelity(at, relative_l2=e, exact=e <= 1e-5)
              for at, e in zip(("initial", "trained"), errors, strict=True)]  # fmt: skip
    record = b.record(method, 0).model_copy(update={"fidelity": blocks})
    found = cell("promise", record, method=method.ref.name)
    assert found.value == value
    assert list(found.marks) == marks
    assert "tolerance 1.0e-05" in found.title


def test_reduced_numerics_are_not_held_to_the_tolerance():
    record = b.record(CHECKPOINT, 0)
    blocks = [sample_fidelity("initial", relative_l2=1e-3, exact=False)]
    record = record.model_copy(update={"method": {**record.method, "numerics": "reduced"}, "fidelity": blocks})
    assert cell("promise", record).value == "reduced"


def test_silent_layers_are_marked_at_the_error():
    blocks = [sample_fidelity("initial", silent_layers=["stages.3.neuron"])]
    record = b.record(CHECKPOINT, 0).model_copy(update={"fidelity": blocks})
    assert "stages.3.neuron" in cell("relative_l2", record).marks["silent"]
    assert cell("relative_l2_trained", record).value is None


def test_the_gradient_after_training_is_found_in_a_record_of_its_own():
    trained = b.record(CHECKPOINT, 0, phases=("fidelity", "train"))
    block = sample_fidelity("trained", relative_l2=5e-6)
    trained = trained.model_copy(update={"fidelity": [trained.fidelity[0], block]})
    measured = b.record(CHECKPOINT, 1, phases=("fidelity", "memory"))
    measured = measured.model_copy(update={"fidelity": [measured.fidelity[0]]})
    assert cell("relative_l2_trained", trained, measured).value == 5e-6
    assert cell("peak_live_bytes", trained, measured).value is not None


def test_status_names_the_phase_and_how_many():
    found = cell("status", b.record(CHECKPOINT, 0), b.failed(CHECKPOINT, 1, seed=1))
    assert (found.value, found.text) == ("oom", "oom in memory (1 of 2)")


def test_labels_show_only_options_that_vary():
    labels = Labels(b.record(m, i).spec for i, m in enumerate(b.METHODS))
    assert labels.methods == ["bptt", "checkpoint", "checkpoint-compress", "sltt(K=0)", "sltt(K=2)", "stdl"]
    other = dataclasses.replace(STDL, ref=Ref(name="stdl", options={"K": 4, "budget": None}))
    both = Labels(b.record(m, i).spec for i, m in enumerate((STDL, other)))
    assert both.methods == ["stdl", "stdl(budget=None)"]
