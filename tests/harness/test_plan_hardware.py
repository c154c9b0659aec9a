"""What estimates are weighed as: the table, counts by hand, and the way from the option to the answer."""

import re

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness import cli, ledger, registry
from harness.api import cell, measure_memory
from harness.contracts import DataInfo
from harness.errors import UsageError
from harness.executors.server import ForkServer
from harness.plan import live, pool
from harness.plan.answer import Answer
from harness.plan.candidates import Row, evaluate
from harness.plan.evidence import weigh
from harness.plan.hardware import DEFAULT, GIB, HARDWARE, PCIE_4, Bus, Hardware, named
from harness.plan.predictor import Cost, Predictor, Subject
from harness.plan.size import Budget
from harness.plan.work import Work
from harness.record import Timing
from harness.spec import Ref
from tests.harness import cells

SHAPE = {"name": "shape", "sample": [1, 8, 8], "classes": 10}
NET = {"name": "convnet", "channels": [4, 8], "norm": "per_step"}
UNIT = Hardware("unit", "one of each", None, 1.0, 1.0, "here", tf32=2.0, bf16=4.0, fp16=8.0, bus=Bus("wire", 0.5))
"""A byte, and a float32 operation, take a second; other rates tell precisions apart."""


def subject(name="a100-40gb", **fields):
    spec = cell("bptt", NET, SHAPE, predicted=True, phases=("memory",), **({"T": 3, "batch": 4} | fields))
    hardware = name if isinstance(name, Hardware) else HARDWARE[name]
    return Subject(spec, DataInfo((1, 8, 8), 10, "here"), hardware=hardware)


def cost(about, name):
    return Predictor(about, registry.complete("methods", name, {}, "here")).base()


def call(*words):
    return CliRunner().invoke(cli.snnbench, ["plan", "--model", "convnet", "--model-option", "channels=[4]", *words])


# The table -----------------------------------------------------------------------------------------------------------


def test_names_are_unique_and_titles_too():
    assert all(name == entry.name for name, entry in HARDWARE.items())
    assert len({entry.title for entry in HARDWARE.values()}) == len(HARDWARE)
    assert len({name.lower() for name in HARDWARE}) == len(HARDWARE)


@pytest.mark.parametrize("entry", HARDWARE.values(), ids=HARDWARE)
def test_an_entry_is_one_that_there_can_be(entry):
    assert entry.source
    assert 5 <= entry.fp32 / entry.bytes_per_s <= 110
    for rate in (entry.tf32, entry.bf16, entry.fp16):
        assert rate is None or rate >= entry.fp32
    if entry.bf16 is not None:
        assert entry.bf16 == entry.fp16
        assert entry.bf16 == pytest.approx(2 * entry.tf32, rel=0.02)
    if entry.name == "cpu":
        assert (entry.memory_bytes, entry.bus, entry.device, entry.kernels) == (None, None, "cpu", False)
    else:
        assert entry.bus.bytes_per_s < entry.bytes_per_s
        assert (entry.device, entry.kernels) == ("cuda", True)


@pytest.mark.parametrize("entry", [entry for entry in HARDWARE.values() if entry.memory_bytes], ids=lambda e: e.name)
def test_a_process_sees_a_little_less_than_the_name_says(entry):
    unnamed = {"t4": 16, "l4": 24, "rtx-3090": 24, "rtx-4090": 24, "rtx-a6000": 48}
    box = unnamed.get(entry.name) or int(re.search(r"(\d+)GB", entry.title).group(1))
    assert 0.9 * box * GIB < entry.memory_bytes < box * GIB


def test_the_default_weighs_as_it_always_did():
    assert DEFAULT is named("a100-40gb", "here")
    assert DEFAULT.fp32 / DEFAULT.bytes_per_s == pytest.approx(12.5, rel=0.005)
    assert DEFAULT.bus is PCIE_4


def test_an_unknown_name_tells_the_allowed_ones():
    with pytest.raises(UsageError, match=r"--hardware: unknown hardware 'rtx4090'. Did you mean 'rtx-4090'\? Allowed"):
        named("rtx4090", "--hardware")


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("v100-32gb", "fp32", "V100 32GB SXM2"),
        ("v100-32gb", "amp-fp16", "V100 32GB SXM2"),
        ("v100-32gb", "amp-bf16", "V100 32GB SXM2, whose products in bf16 count at float32's rate"),
        ("t4", "tf32", "T4, whose products in tf32 count at float32's rate"),
        ("h100", "tf32", "H100 80GB SXM"),
        ("cpu", "amp-fp16", "CPU (AMD EPYC 7763), whose products in fp16 count at float32's rate"),
    ],
)
def test_what_hardware_lacks_is_said(name, precision, expected):
    assert HARDWARE[name].described(precision) == expected


# Counts by hand ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "rate"), [(torch.bfloat16, 4), (torch.float16, 8)])
def test_a_convolution_counts_at_the_rate_of_the_dtype_that_autocast_gave_it(dtype, rate):
    x, weight = torch.ones(2, 3, 8, 8), torch.ones(5, 3, 3, 3)
    with Work(UNIT) as work, torch.autocast("cpu", dtype):
        y = torch.conv2d(x, weight, padding=1)
        _ = y + y
    flops = 2 * (2 * 5 * 64) * 27
    casts = (4 + 2) * (x.numel() + weight.numel())
    assert y.dtype is dtype
    assert work.flops == flops
    assert work.bytes == casts + 2 * (x.numel() + weight.numel() + y.numel()) + 3 * y.nbytes
    assert work.total() == work.bytes + flops / rate


@pytest.mark.parametrize(("dtype", "tf32", "rate"), [
    (torch.float32, False, 1), (torch.float32, True, 2), (torch.float64, True, 1), (torch.bfloat16, True, 4),
])  # fmt: skip
def test_a_product_counts_at_the_rate_of_its_operands(dtype, tf32, rate):
    x = torch.ones(4, 4, dtype=dtype)
    with Work(UNIT, tf32) as work:
        _ = x @ x
    assert work.total() == 3 * x.nbytes + 128 / rate


def test_precisions_in_one_step_add_up():
    with Work(UNIT) as work:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.ones(4, 4, dtype=dtype)
            _ = x @ x
    assert work.total() - work.bytes == 128 + 128 / 4


@pytest.mark.parametrize("name", ["t4", "cpu"])
def test_a_fallback_is_a_kernel_on_a_gpu_and_its_operators_on_a_cpu(name):
    x = torch.ones(8)
    with Work(HARDWARE[name]) as work:
        for _ in range(2):
            with ledger.kernel(100):
                _ = (x * 2 + 1) @ x
    operators = 2 * 32 + 2 * 32 + (2 * 32 + 4)
    assert work.bytes == 2 * (operators if name == "cpu" else 100)
    assert work.flops == 0  # torch counts none for a dot product


def test_what_waits_on_the_host_crosses_the_bus_twice_and_ram_never():
    assert Work(UNIT).total(10) == 2 * 10 / 0.5
    assert Work(HARDWARE["a100-40gb"]).total(10) == pytest.approx(2 * 10 * 1555 / 31.5)
    assert Work(HARDWARE["v100-32gb"]).total(10) == pytest.approx(2 * 10 * 900 / 15.75)
    assert Work(HARDWARE["cpu"]).total(10) == 0


def test_what_moves_nothing_counts_nothing():
    with FakeTensorMode():
        x = torch.ones(4, 4)
        with Work(UNIT) as work:
            assert x.device.type == "cpu"
            torch.empty_like(x)
            torch.empty(9)
            x.new_empty(9)
            x.view(16)
            torch.ops.aten._unsafe_view(x, (16,))
    assert (work.bytes, work.flops) == (0, 0)


def test_a_result_is_written_once_and_an_expanded_value_read_once():
    x, out = torch.ones(8, 4), torch.empty(8, 4)
    with Work(UNIT) as work:
        torch.add(x, x, out=out)
    assert work.bytes == 3 * 128
    with Work(UNIT) as work:
        _ = torch.ones(4).expand(8, 4) + x
    assert work.bytes == 16 + (16 + 128 + 128)  # ones writes, the sum reads 4 and 32 values
    with Work(UNIT) as work:
        x.add_(1)
    assert work.bytes == 2 * 128


# Through a prediction ------------------------------------------------------------------------------------------------


def test_a_fused_neuron_gains_on_a_gpu_and_hardly_on_a_cpu():
    on = {name: {way: cost(subject(name), way).work for way in ("bptt", "bptt-fused")} for name in ("t4", "cpu")}
    assert on["t4"]["bptt-fused"] < 0.85 * on["t4"]["bptt"]
    assert 0.9 < on["cpu"]["bptt-fused"] / on["cpu"]["bptt"] < 1.1


def test_offload_on_a_cpu_costs_copies_and_saves_no_memory():
    gpu, cpu = cost(subject("a100-40gb"), "offload"), cost(subject("cpu"), "offload")
    plain = cost(subject("cpu"), "bptt")
    assert cpu.host_bytes == gpu.host_bytes > 0
    assert cpu.peak_bytes == gpu.peak_bytes + gpu.host_bytes > plain.peak_bytes
    copied = cpu.plan["host_bytes"]  # read and written on the way there, and for what the backward asks for once more
    assert 3 * copied < cpu.work - plain.work < 5 * copied
    about = subject("cpu")
    found = evaluate(about, registry.complete("methods", "offload", {}, "here"), 3 * cpu.peak_bytes, limits=True)
    on_a_gpu = evaluate(subject(), found.method, 3 * cpu.peak_bytes, limits=True)
    assert found.batch.value < on_a_gpu.batch.value


@pytest.mark.parametrize(("precision", "rate"), [("amp-bf16", "bf16"), ("amp-fp16", "fp16"), ("tf32", "tf32")])
def test_a_step_weighs_its_products_at_its_precision(precision, rate):
    slow = Hardware("slow", "slow", None, 1.0, 1.0, "here", bus=PCIE_4)
    fast = Hardware("fast", "fast", None, 1.0, 1.0, "here", bus=PCIE_4, **{rate: 1e12})
    whole, rest = (cost(subject(one, precision=precision), "bptt").work for one in (slow, fast))
    same, as_well = (cost(subject(one), "bptt").work for one in (slow, fast))
    assert same == as_well  # float32 without TF32
    # two convolutions and the read-out, T x N = 12, forward and the gradients but the input's
    forward = [2 * 12 * 4 * 64 * 9, 2 * 12 * 8 * 16 * 36, 2 * 12 * 10 * 32]
    assert whole - rest == pytest.approx(3 * sum(forward) - forward[0], rel=1e-6)


@pytest.mark.parametrize("precision", ["amp-fp16", "amp-bf16"])
def test_peaks_under_amp_are_those_of_a_real_step(precision):
    """With a gradient scaler, too, which looks at values that fake gradients do not have."""
    about = subject(precision=precision)
    real = measure_memory(about.spec.model_copy(update={"predicted": False}))
    assert cost(about, "bptt").peak_bytes == real.peak_live_bytes


def test_peaks_do_not_depend_on_the_hardware():
    assert cost(subject("t4"), "bptt").peak_bytes == cost(subject("cpu"), "bptt").peak_bytes


def test_processes_weigh_as_they_are_told():
    server = ForkServer()
    try:
        about, ref = subject("cpu"), registry.complete("methods", "bptt-fused", {}, "here")
        (found,) = pool.rows(about.spec, [(ref, False)], 2**30, server, 1, hardware=HARDWARE["cpu"])
    finally:
        server.stop()
    assert found.cost.work == cost(about, "bptt-fused").work != cost(subject(), "bptt-fused").work


# What the user sees --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "way"), [
    ("h100", "and 10 B in the host's memory, twice over PCIe 5.0 x16"), ("cpu", "with 10 B of copies"),
    (None, "and 10 B in the host's memory, twice over PCIe 4.0 x16"),
])  # fmt: skip
def test_a_row_says_which_bus(name, way):
    one = Row(Ref(name="offload"), "exact", "same", "same", "predicted", Cost(100, 50, 10, 10, 1.0))
    found = Answer(subject().spec, Budget(150, 0), [one], one, hardware=name and HARDWARE[name])
    assert way in str(found)


def test_only_measurements_on_that_kind_of_device_count():
    about = subject()
    record = cells.minimal_record(cells.job("x", run_id="r"), "ok")
    timing = Timing.model_construct(paired=True, ratio=1.5, baseline="bptt")
    cpu = about.spec.model_copy(update={"predicted": False, "device": "cpu"})
    record = record.model_copy(update={"spec": cpu, "timing": timing})
    assert weigh([record], about.spec).ratios
    assert weigh([record], about.spec, HARDWARE["cpu"]).ratios
    assert not weigh([record], about.spec, HARDWARE["t4"]).ratios


@pytest.mark.parametrize(("words", "memory", "line"), [
    (["--hardware", "rtx-4090"], "budget 23.50 GiB, of which 1.93 GiB are kept for CUDA", "RTX 4090"),
    (["--hardware", "cpu"], "budget 24.00 GiB, of which 1.95 GiB are kept for the process", "CPU (AMD EPYC 7763)"),
])  # fmt: skip
def test_the_command_says_what_it_weighed_and_takes_the_memory(words, memory, line):
    said = call("--dataset", "digits", "--methods", "bptt", "--batch", "2", "--jobs", "1", *words)
    assert said.exit_code == 0, said.stderr
    assert said.output.splitlines()[1].startswith(memory)
    assert said.output.splitlines()[2] == f"estimated slow-downs weighed as {line}"


def test_an_unknown_name_is_one_line():
    said = call("--dataset", "digits", "--hardware", "rtx-5090-ti-super")
    assert said.exit_code == 2
    assert said.stderr.count("\n") == 1
    assert "--hardware: unknown hardware 'rtx-5090-ti-super'" in said.stderr
    assert all(name in said.stderr for name in HARDWARE)


def test_from_python():
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    found = live.plan(net, input=(4, 2, 8), methods=["bptt"], hardware="t4")
    assert found.budget.total_bytes == HARDWARE["t4"].memory_bytes == int(14.5 * GIB)
    assert "estimated slow-downs weighed as T4\n" in str(found)
    assert live.plan(net, input=(4, 2, 8), methods=["bptt"], hardware="cpu").budget is None
    assert live.plan(net, (4, 2, 8), "1GiB", methods=["bptt"], hardware="t4").budget.total_bytes == GIB
    with pytest.raises(UsageError, match=r"^hardware: unknown hardware 'a100'"):
        live.plan(net, input=(4, 2, 8), hardware="a100")
