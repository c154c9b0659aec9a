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


def test_a_few_figures_are_those_of_the_sources():
    value = {claim.id: (claim.entry.value, claim.entry.unit, claim.entry.provenance) for claim in load()}
    assert value["gradient-checkpointing/sew-resnet-34.figure"] == (8664, "unknown", "figure")
    assert value["gradient-checkpointing/qkformer-10-512.o4"] == (5220, "MiB", "notes")
    assert value["gradient-checkpointing/tutorial-32.triton-level-4"] == (1973.1, "unknown", "tutorial")
    assert value["reversible-node/node-memory"] == (58.65, "ratio", "abstract")
    assert value["sltt/imagenet.bptt.accuracy"] == (66.47, "%", "notes")
    assert value["ottt/dvs128-gesture"] == (96.88, "%", "notes")
    assert value["revsnn/former.cifar100"] == (79.04, "%", "notes")


def test_memory_claims_of_full_conditions_are_predicted_at_full_size():
    """A suite's profile predict holds a cell for each, so that only figures of missing methods are never judged."""
    cells = [cell for name in ("cifar", "dvs", "imagenet", "scaling") for cell in suite.load(name).expand("predict")]
    known = {(c.method.name, c.model.name, c.T, c.batch) for c in cells}
    for claim in load():
        setting, entry = claim.setting, claim.entry
        full = None not in (setting.model, setting.T, setting.batch, setting.data)
        if entry.unit in BYTE_UNITS and full and not {entry.method.name, setting.model.name} & NOT_HERE:
            assert (entry.method.name, setting.model.name, setting.T, setting.batch) in known, claim.id
