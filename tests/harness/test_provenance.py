import copy
import json
import os
import platform
import subprocess
import sys
import time

import pytest

from harness.provenance import code as codefacts
from harness.provenance import collect, fingerprint, machine
from harness.provenance.facts import Facts, NotAvailableError, read
from tests.harness.distributions import installed


@pytest.fixture(scope="module")
def facts():
    return collect("cpu", 2)


def nulls(table, place=""):
    """Dotted names of all nulls."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from nulls(value, f"{place}{key}.")
        elif value is None:
            yield f"{place}{key}"


class TestCollect:
    def test_every_null_has_a_reason(self, facts):
        unset = {f"environment.{name}" for name in facts["environment"]}
        assert set(nulls(facts)) - unset == set(facts["reasons"])
        assert all(facts["reasons"].values())

    def test_what_every_linux_machine_tells(self, facts):
        assert facts["device"] == "cpu"
        assert facts["threads"] == 2
        # the index's CUDA builds name their CUDA in torch.__version__ only
        assert facts["packages"]["torch"] in (facts["torch"]["version"], facts["torch"]["version"].split("+")[0])
        assert {"spikingjelly", "numpy", "snnbench", "tonic", "torchvision"} <= facts["packages"].keys()
        assert facts["python"]["version"] == platform.python_version()
        assert facts["cpu"]["cores"] >= facts["cpu"]["usable_cores"] >= 1
        assert facts["memory"]["total_bytes"] > 2**28
        assert len(facts["code"]["sha256"]) == 64
        assert len(facts["load_average"]) == 3
        assert set(facts["determinism"]) >= {"cudnn_benchmark", "matmul_allow_tf32", "deterministic_algorithms"}

    def test_is_json_and_names_no_host(self, facts):
        text = json.dumps(facts, allow_nan=False)
        assert len(facts["system"]["host"]) == 12
        if len(platform.node()) > 4:
            assert platform.node() not in text

    def test_is_quick(self):
        seconds = []
        for _ in range(3):
            begin = sum(os.times()[:4])  # of the processor, with children's: others may be busy beside it
            collect("cpu", 1)
            seconds.append(sum(os.times()[:4]) - begin)
        assert min(seconds) < 1.5

    def test_initialises_no_cuda(self):
        use = "from harness.provenance import collect; collect('cuda', 1)"
        script = f"import torch; {use}; print(torch.cuda.is_initialized())"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"

    def test_settings_are_read_now(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        monkeypatch.setenv("LD_PRELOAD", "")
        assert collect("cpu", 1)["environment"]["OMP_NUM_THREADS"] == "7"

    def test_preloaded_libraries_are_named_without_their_folders(self):
        script = "from harness.provenance import collect; print(collect('cpu', 1)['environment']['LD_PRELOAD'])"
        environment = {**os.environ, "LD_PRELOAD": "/home/someone/libnone.so:/x/libother.so"}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "libnone.so libother.so"

    def test_third_party_plugins_are_named_with_their_version(self, tmp_path):
        with installed(tmp_path):
            assert collect("cpu", 1)["code"]["plugins"] == {"acme": "1.2"}


class TestFingerprint:
    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("code", "sha256"), "0" * 64),
            (("packages", "torch"), "2.99"),
            (("packages", "spikingjelly"), "2.0.1"),
            (("cpu", "model"), "Another CPU"),
            (("threads",), 3),
            (("device",), "cuda"),
            (("torch", "cuda"), "0.1"),
            (("torch", "git"), "0" * 40),
            (("python", "version"), "3.99"),
        ],
    )
    def test_changes_with_what_numbers_depend_on(self, facts, place, value):
        assert fingerprint(changed(facts, place, value)) != fingerprint(facts)

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("code", "git_sha"), "0" * 40),
            (("code", "git_dirty"), "x"),
            (("packages", "submitit"), "99"),
            (("load_average",), [9, 9, 9]),
            (("system", "host"), "another"),
            (("memory", "total_bytes"), 1),
            (("gpu", "devices"), [{"name": "H200"}]),
            (("reasons",), {}),
        ],
    )
    def test_ignores_the_rest(self, facts, place, value):
        assert fingerprint(changed(facts, place, value)) == fingerprint(facts)

    def test_gpus_count_where_they_were_used_and_by_model(self, facts):
        def on(*names):
            devices = [{"name": name, "uuid": f"GPU-{i}{name}"} for i, name in enumerate(names)]
            return fingerprint(changed(changed(facts, ("device",), "cuda"), ("gpu", "devices"), devices))

        assert on("H200") != on("A100")
        assert on("H200", "A100") == on("A100", "H200")

    def test_form(self, facts):
        assert len(fingerprint(facts)) == 16
        assert fingerprint(facts) == fingerprint(json.loads(json.dumps(facts)))
        assert len(fingerprint({})) == 16


def changed(facts, place, value):
    facts = copy.deepcopy(facts)
    table = facts
    for key in place[:-1]:
        table = table[key]
    assert table.get(place[-1]) != value
    table[place[-1]] = value
    return facts


class TestSources:
    @pytest.fixture
    def package(self, tmp_path):
        folder = tmp_path / "pack"
        (folder / "inner").mkdir(parents=True)
        (folder / "a.py").write_text("x = 1\n")
        (folder / "inner" / "b.py").write_text("y = 1\n")
        return folder

    def digest(self, folder):
        return codefacts.hash_sources({"pack": folder})

    @pytest.mark.parametrize("change", ["edit", "rename", "add", "remove", "kernel"])
    def test_every_change_of_code_shows(self, package, change):
        before = self.digest(package)
        if change == "edit":
            (package / "a.py").write_text("x = 2\n")
        elif change == "rename":
            (package / "a.py").rename(package / "c.py")
        elif change == "add":
            (package / "inner" / "c.py").write_text("")
        elif change == "remove":
            (package / "inner" / "b.py").unlink()
        else:
            (package / "k.cu").write_text("")
        assert self.digest(package) != before

    def test_what_no_cell_runs_does_not(self, package):
        before = self.digest(package)
        for name in ("cli/main.py", "regression/bench.py", "__pycache__/a.py", "notes.md", "suite.toml"):
            (package / name).parent.mkdir(exist_ok=True)
            (package / name).write_text("z = 1\n")
        assert self.digest(package) == before

    def test_place_does_not_count(self, package, tmp_path):
        before = self.digest(package)
        assert self.digest(package.rename(tmp_path / "moved")) == before

    def test_covers_the_harness_and_our_plugins_and_no_other(self, tmp_path):
        with installed(tmp_path):
            assert set(codefacts.package_folders()) == {"harness", "methods", "suites"}


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


class TestGit:
    @pytest.fixture
    def checkout(self, tmp_path):
        folder = tmp_path / "checkout"
        (folder / "pack").mkdir(parents=True)
        (folder / "pack" / "a.py").write_text("x = 1\n")
        (folder / ".gitignore").write_text(".venv/\n")
        git(folder, "init", "-q")
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", "first")
        return folder

    def test_commit_and_dirty_flag(self, checkout):
        package = checkout / "pack"
        root = codefacts.git_root(package)
        assert root.samefile(checkout)
        assert len(codefacts.git_commit(root)) == 40
        assert codefacts.git_dirty(root, [package]) is False
        (checkout / "README.md").write_text("elsewhere")
        assert codefacts.git_dirty(root, [package]) is False
        (package / "new.py").write_text("")
        assert codefacts.git_dirty(root, [package]) is True

    def test_edits_are_dirty(self, checkout):
        (checkout / "pack" / "a.py").write_text("x = 2\n")
        assert codefacts.git_dirty(checkout, [checkout / "pack"]) is True

    def test_an_installed_copy_inside_a_checkout_is_none(self, checkout):
        folder = checkout / ".venv" / "lib" / "pack"
        folder.mkdir(parents=True)
        with pytest.raises(NotAvailableError, match="installed code, not a checkout: git ignores it in checkout"):
            codefacts.git_root(folder)

    def test_no_checkout_and_no_commit(self, tmp_path):
        with pytest.raises(NotAvailableError, match="not a git repository"):
            codefacts.git_root(tmp_path)
        git(tmp_path, "init", "-q")
        with pytest.raises(NotAvailableError, match="HEAD"):
            codefacts.git_commit(tmp_path)

    def test_no_git(self, checkout, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(NotAvailableError, match="git is not installed"):
            codefacts.git_root(checkout)

    def test_git_that_hangs(self, checkout, monkeypatch, tmp_path):
        script = tmp_path / "git"
        script.write_text("#!/bin/sh\nexec sleep 60\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setattr(codefacts, "GIT_TIMEOUT_S", 0.2)
        begin = time.perf_counter()
        with pytest.raises(NotAvailableError, match=r"git took more than 0\.2 s"):
            codefacts.git_root(checkout)
        assert time.perf_counter() - begin < 50  # it would sleep for 60


class TestMachine:
    def test_cpu_model_by_architecture(self, tmp_path):
        info = tmp_path / "cpuinfo"
        info.write_text("processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7B13\nmodel name\t: other\n")
        assert machine.cpu_model(tmp_path) == "AMD EPYC 7B13"
        info.write_text("processor : 0\nModel : Raspberry Pi 5\n")
        assert machine.cpu_model(tmp_path) == "Raspberry Pi 5"

    def test_memory(self, tmp_path):
        (tmp_path / "meminfo").write_text("MemFree: 1 kB\nMemTotal:    8000 kB\n")
        assert machine.total_memory(tmp_path) == 8_192_000
        (tmp_path / "meminfo").write_text("")
        with pytest.raises(NotAvailableError, match="no MemTotal"):
            machine.total_memory(tmp_path)

    @pytest.mark.parametrize(
        ("cgroup", "files", "limit"),
        [
            ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "5000", "memory.max": "9000"}, 5000),
            ("0::/host/path", {"memory.max": "7000"}, 7000),
            ("4:memory:/x\n3:cpu:/y", {"memory/x/memory.limit_in_bytes": "3000"}, 3000),
            ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
            ("0::/", {"memory.max": "max"}, None),
            ("0::/", {}, None),
        ],
    )
    def test_tightest_cgroup_limit(self, tmp_path, cgroup, files, limit):
        proc, sys_root = tmp_path / "proc", tmp_path / "sys"
        (proc / "self").mkdir(parents=True)
        (proc / "self" / "cgroup").write_text(cgroup + "\n")
        for name, text in files.items():
            file = sys_root / "fs/cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        if limit is None:
            with pytest.raises(NotAvailableError, match="no cgroup limits memory"):
                machine.cgroup_limit(proc, sys_root)
        else:
            assert machine.cgroup_limit(proc, sys_root) == limit

    @pytest.mark.parametrize(("mask", "names"), [(None, None), ("0, 2", ["0", "2"]), ("GPU-ab", ["GPU-ab"])])
    def test_visible_gpus(self, monkeypatch, mask, names):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if mask is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
        assert machine.visible_gpus() == names

    @pytest.mark.parametrize("mask", ["", "-1", " , "])
    def test_hidden_gpus_say_why(self, monkeypatch, mask):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
        with pytest.raises(NotAvailableError, match="CUDA_VISIBLE_DEVICES hides all devices"):
            machine.visible_gpus()
        facts = collect("cpu", 1)
        assert facts["gpu"] == {"devices": None, "driver": None, "cuda": None}
        assert "hides all" in facts["reasons"]["gpu.devices"]

    def test_chosen_gpus(self):
        devices = [{"name": "A", "uuid": "GPU-abc"}, {"name": "B", "uuid": "GPU-def"}]
        assert machine.choose(devices, None) == devices
        assert machine.choose(devices, ["1"]) == devices[1:]
        assert machine.choose(devices, ["GPU-de", "0"]) == devices[::-1]
        with pytest.raises(NotAvailableError, match="NVML lists no device MIG-x"):
            machine.choose(devices, ["MIG-x"])

    def test_gpus_or_the_reason(self):
        """Whichever this machine has."""
        gpu, reasons = (facts := collect("cuda", 1))["gpu"], facts["reasons"]
        if gpu["devices"] is None:
            assert reasons["gpu.devices"].startswith(("NVML: ", "CUDA_VISIBLE_DEVICES"))
        else:
            assert all(device["name"] and device["memory_bytes"] > 0 for device in gpu["devices"])
            assert gpu["driver"]


class TestFacts:
    def test_answers_and_reasons(self, tmp_path):
        facts = Facts()
        facts.ask("a.b.c", lambda: 1)
        facts.ask("a.b.d", lambda: read(tmp_path / "none"))
        assert facts.values["a"] == {"b": {"c": 1, "d": None}}
        assert facts.values["reasons"]["a.b.d"].endswith("none: No such file or directory")

    def test_mistakes_are_not_swallowed(self):
        with pytest.raises(ZeroDivisionError):
            Facts().ask("x", lambda: 1 / 0)
