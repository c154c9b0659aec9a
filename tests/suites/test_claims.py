"""The files of suites/claims: every figure is one of the references', and every claim names things that exist."""

from harness import registry, suite
from reports.claims import load
from reports.claims.schema import BYTE_UNITS

NOT_HERE = {"tandem", "t-revsnn", "resnet-34", "vit", "rev-former"}
"""Methods and networks of the papers that nobody has written here: their claims are `not run`."""


def test_all_papers_are_there():
    papers = {claim.paper.name: claim.paper for claim in load()}
    assert set(papers) == {"gradient-checkpointing", "ndot", "ottt", "reversible-node", "revsnn", "sltt", "stdl"}
    assert all(paper.source and paper.title for paper in papers.values())


def test_methods_and_models_exist_or_are_known_to_be_missing():
    methods, models = set(registry.entries("methods")), set(registry.entries("models"))
    missing = set()
    for claim in load():
        named = {plugin.name for plugin in (claim.entry.method, claim.entry.baseline) if plugin}
        missing |= named - methods
        missing |= {claim.setting.model.name} - models if claim.setting.model else set()
    assert missing == NOT_HERE


def test_the_methods_options_are_options():
    for claim in load():
        for plugin in (claim.entry.method, claim.entry.baseline):
            if plugin is not None and plugin.name not in NOT_HERE:
                registry.complete("methods", plugin.name, plugin.options, claim.id)
        model = claim.setting.model
        if model is not None and model.name not in NOT_HERE:
            complete = registry.complete("models", model.name, model.options, claim.id)
            assert set(claim.setting.without) <= set(complete.options)


# Written down from the sources a second time, by table and not by file: a slip of the pen in one place shows.
MAIN = """
seq-cifar10      1317 4872 475  5139 0.36 1.05
sew-resnet-34    8821 309  2004 281  0.23 0.91
spikformer-8-512 34265 117 7641 94   0.22 0.80
qkformer-10-512  44571 86  5220 77   0.12 0.89
"""
ABLATION = """
sjlif 290 6131
ptlif 151 5889
melif 331 4865
melif-o1 247 2888
melif-o3 248 2349
melif-o4 271 2349
sltt 297 737
tandem 552 1707
t-revsnn 191 1089
"""
TUTORIAL = """
baseline 1022 27.6 -
level-1  834 36.6 2.6
level-2  788 33.9 37
level-3  672 35.8 90
level-4  589 27.7 451
"""
ONLINE = """
cifar10        3.00 6.35 94.60 1.09 4.58 94.59
cifar100       3.00 6.39 73.80 1.12 4.68 74.67
imagenet      28.41 73.8 66.47 8.47 66.9 66.19
cifar10-dvs    3.70 4.47 73.60 1.07 3.43 77.30
dvs128-gesture 5.82 -    97.22 1.07 -    97.92
"""
OTHERS = """
gradient-checkpointing/memory-8x 8 ratio abstract
gradient-checkpointing/speed-20-percent 0.8 fraction abstract
gradient-checkpointing/accuracy 0 pp abstract
gradient-checkpointing/sew-resnet-34.figure 8664 MiB figure
gradient-checkpointing/sew-resnet-34.share 96.7 % figure
gradient-checkpointing/spikformer-8-512.figure 34321 MiB figure
gradient-checkpointing/spikformer-8-512.share 97.2 % figure
gradient-checkpointing/resnet-34-ann 1224 MiB figure
gradient-checkpointing/resnet-34-ann.share 76.5 % figure
gradient-checkpointing/vit-ann 2121 MiB figure
gradient-checkpointing/vit-ann.share 76.8 % figure
gradient-checkpointing/cifar10-dvs.bptt.figure 6131.07 MiB figure
gradient-checkpointing/cifar10-dvs.o1.figure 2887.75 MiB figure
gradient-checkpointing/cifar10-dvs.melif-alone 0.79 fraction notes
gradient-checkpointing/tutorial-32.cupy 4966.7 unknown tutorial
gradient-checkpointing/tutorial-32.cupy.speed 349 samples/s tutorial
gradient-checkpointing/tutorial-32.triton 3830.3 unknown tutorial
gradient-checkpointing/tutorial-32.triton.speed 384 samples/s tutorial
gradient-checkpointing/tutorial-32.triton-level-4 1973.1 unknown tutorial
gradient-checkpointing/tutorial-32.triton-level-4.speed 316 samples/s tutorial
gradient-checkpointing/tutorial-32.memory 0.515 fraction tutorial
gradient-checkpointing/tutorial-32.speed 0.823 fraction tutorial
reversible-node/node-memory 58.65 ratio abstract
reversible-node/training-time 0.238 fraction abstract
reversible-node/flops 0.23 fraction abstract
reversible-node/groups 0 pp abstract
stdl/imagenet-4x 4 ratio abstract
stdl/accuracy-bptt 0 pp abstract
stdl/accuracy-local 0 pp abstract
sltt/cifar10.ottt 1.71 unknown-giga notes
sltt/cifar10.sltt-against-ottt 1.00 unknown-giga notes
sltt/cifar10.ottt.epoch 184.7 s notes
sltt/cifar10.sltt.epoch 54.5 s notes
sltt/imagenet.ottt 19.38 unknown-giga notes
ottt/cifar10 93.73 % notes
ottt/cifar100 71.11 % notes
ottt/imagenet 65.15 % notes
ottt/cifar10-dvs 77.10 % notes
ottt/dvs128-gesture 96.88 % notes
ndot/cifar10 94.9 % notes
ndot/cifar100 76.6 % notes
revsnn/resnet37.cifar10 94.77 % notes
revsnn/resnet37.cifar100 76.34 % notes
revsnn/resnet37.memory 3.79 ratio notes
revsnn/former.cifar10 95.34 % notes
revsnn/former.cifar100 79.04 % notes
revsnn/former.memory 3.00 ratio notes
revsnn/resnet24.cifar10-dvs 75.50 % notes
revsnn/resnet24.dvs128-gesture 94.44 % notes
"""


def sources():
    """Value, unit and provenance of every figure, by the id of its claim."""
    found = {}

    def add(claim, value, unit, provenance):
        if value != "-":
            found[claim] = (float(value), unit.replace("unknown-giga", "unknown (giga)"), provenance)

    for name, base, speed, peak, fast, memory, ratio in map(str.split, MAIN.split("\n")[1:-1]):
        start = f"gradient-checkpointing/{name}"
        for end, value, unit in (("bptt", base, "MiB"), ("bptt.speed", speed, "samples/s"), ("o4", peak, "MiB"),
                                 ("o4.speed", fast, "samples/s"), ("memory", memory, "fraction"),
                                 ("speed", ratio, "fraction")):  # fmt: skip
            add(f"{start}.{end}", value, unit, "notes")
    for name, speed, peak in map(str.split, ABLATION.split("\n")[1:-1]):
        add(f"gradient-checkpointing/cifar10-dvs.{name}", peak, "MiB", "notes")
        add(f"gradient-checkpointing/cifar10-dvs.{name}.speed", speed, "samples/s", "notes")
    for name, peak, step, plan in map(str.split, TUTORIAL.split("\n")[1:-1]):
        for end, value, unit in (("", peak, "unknown"), (".step", step, "ms"), (".plan", plan, "s")):
            add(f"gradient-checkpointing/tutorial.{name}{end}", value, unit, "tutorial")
    for name, *row in map(str.split, ONLINE.split("\n")[1:-1]):
        for method, values in (("bptt", row[:3]), ("sltt", row[3:])):
            ends = zip(("", ".hours", ".accuracy"), values, ("unknown (giga)", "h", "%"), strict=True)
            for end, value, unit in ends:
                add(f"sltt/{name}.{method}{end}", value, unit, "notes")
    for line in OTHERS.split("\n")[1:-1]:
        add(*line.split())
    return found


def test_every_figure_is_the_sources():
    assert {c.id: (c.entry.value, c.entry.unit, c.entry.provenance) for c in load()} == sources()


def test_the_conditions_are_the_sources():
    """T, batch, precision and kind of memory of every table, as published or unknown."""
    conditions = {}
    for claim in load():
        setting = claim.setting
        key = claim.paper.name, claim.entry.setting
        conditions[key] = (setting.T, setting.batch, tuple(setting.precision or ()))
        if claim.entry.metric == "peak_memory":
            kind = {"sltt": "reserved", "gradient-checkpointing": "allocated"}[claim.paper.name]
            assert claim.entry.memory == ("unknown" if claim.entry.provenance == "figure" else kind), claim.id
    amp, fp32 = ("amp-fp16", "amp-bf16"), ("fp32",)
    expected = {
        "gradient-checkpointing": {
            "seq-cifar10": (32, 128, fp32), "sew-resnet-34": (4, 32, fp32), "spikformer-8-512": (4, 32, fp32),
            "qkformer-10-512": (4, 32, fp32), "vgg-tebn": (10, 32, fp32), "vgg-online": (10, 32, fp32),
            "tutorial-8": (10, 8, fp32), "tutorial-32": (10, 32, fp32), "resnet-34-ann": (None, None, ()),
            "vit-ann": (None, None, ()),
        },
        "sltt": {"cifar10": (6, 128, amp), "cifar100": (6, 128, amp), "imagenet": (6, None, amp),
                 "cifar10-dvs": (10, 128, amp), "dvs128-gesture": (20, None, amp)},
        "ottt": {"cifar10": (6, None, ()), "cifar100": (6, None, ()), "imagenet": (6, None, ()),
                 "cifar10-dvs": (10, None, ()), "dvs128-gesture": (20, None, ())},
        "ndot": {"cifar10": (6, None, ()), "cifar100": (6, None, ())},
        "revsnn": {"resnet24-cifar10-dvs": (10, None, ())},
    }  # fmt: skip
    for (paper, setting), found in conditions.items():
        assert found == expected.get(paper, {}).get(setting, (None, None, ())), (paper, setting)


def test_a_network_of_another_size_is_not_the_published_one():
    """What makes a network the published one is in the claim: a default may change, and users measure other sizes."""
    sizes = {"depth", "depths", "width", "cfg", "channels"}
    for claim in load():
        model = claim.setting.model
        if model is not None and model.name not in NOT_HERE | {"node"}:
            known = sizes & set(registry.complete("models", model.name, {}, claim.id).options)
            asked = set(model.options) & known
            assert asked, f"{claim.id}: {model.label} leaves all of {sorted(known)} open"


def test_memory_claims_of_full_conditions_are_predicted_at_full_size():
    """A suite's profile predict holds a cell for each, so that only figures of missing methods are never judged."""
    cells = [cell for name in ("cifar", "dvs", "imagenet", "scaling") for cell in suite.load(name).expand("predict")]
    known = {(c.method.name, c.model.name, c.T, c.batch) for c in cells}
    for claim in load():
        setting, entry = claim.setting, claim.entry
        full = None not in (setting.model, setting.T, setting.batch, setting.data)
        if entry.unit in BYTE_UNITS and full and not {entry.method.name, setting.model.name} & NOT_HERE:
            assert (entry.method.name, setting.model.name, setting.T, setting.batch) in known, claim.id
