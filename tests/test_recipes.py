"""The recipes of docs/recipes, as far as they can be tried without a cluster: commands on PATH record how they are called."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from svt_jax.run.command_line import parse_config

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "docs" / "recipes"
SCRIPTS = sorted([*RECIPES.glob("*.sh"), *RECIPES.glob("*.sbatch")])
OPTIONS = [
    "--config",
    "rte",
    "--svt.function",
    "soft_decay",
    "--svt.layers",
    "[-1,-2]",
    "--run.name",
    'it\'s a "name" $HOME',
]
SAVES = ["--checkpoint.every_steps", "500"]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_bash_without_warnings(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


class Machine:
    """A home folder, and a PATH on which commands record their arguments and do what a test tells them."""

    def __init__(self, folder):
        self.home, self.bin, self.calls_file = folder / "home", folder / "bin", folder / "calls"
        self.home.mkdir()
        self.bin.mkdir()
        for name in ("bash", "tee", "sh", "env", "cat"):
            (self.bin / name).symlink_to(shutil.which(name))

    def command(self, name, program="", at=None):
        """Adds a command: Python that has its arguments as `args`, after they have been recorded."""
        path = (at or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"#!{sys.executable}\nimport json, os, sys, subprocess\nargs = sys.argv[1:]\n"
            f"with open({str(self.calls_file)!r}, 'a') as file:\n    print(json.dumps([{name!r}, *args]), file=file)\n{program}"
        )
        path.chmod(0o755)

    def run(self, script, *arguments, **variables):
        environment = {"PATH": str(self.bin), "HOME": str(self.home), **variables}
        return subprocess.run(
            ["bash", script, *arguments], env=environment, cwd=self.home, capture_output=True, text=True, timeout=60
        )

    def calls(self, name):
        calls = [json.loads(line) for line in self.calls_file.read_text().splitlines()]
        return [call[1:] for call in calls if call[0] == name]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


# A slice of one host: what gcloud is told to run there runs here. `states` are what it is found in, from call to call;
# `ends` are the exit statuses of the training.
GCLOUD = """
action = args[3]
place = os.path.join(os.environ["HOME"], "slice")
if action == "describe":
    if not os.path.exists(place):
        sys.exit(1)
    print(open(place).read())
if action == "create":
    open(place, "w").write("READY")
if action == "delete":
    os.remove(place)
if action == "ssh":
    sys.exit(subprocess.run(["bash", "-c", args[args.index("--command") + 1]]).returncode)
"""
SVT_JAX = """
ends = os.path.join(os.environ["HOME"], "ends")
left = open(ends).read().split()
open(ends, "w").write(" ".join(left[1:]))
if left[0] == "143":
    open(os.path.join(os.environ["HOME"], "slice"), "w").write("PREEMPTED")
print("trained")
sys.exit(int(left[0]))
"""


@pytest.fixture
def slice_of_one(machine):
    def make(*ends):
        venv = machine.home / "venv" / "bin"
        machine.command("gcloud", GCLOUD)
        machine.command("git", "if args[0] == 'clone': os.mkdir(args[2])")
        machine.command("curl", "print('true')")
        machine.command("uv", at=machine.home / ".local" / "bin")
        machine.command("svt-jax", SVT_JAX, at=venv)
        (machine.home / "ends").write_text(" ".join(map(str, ends)))
        return machine

    return make


PLACE = {"PROJECT": "p", "ZONE": "z", "BUCKET": "gs://b", "REPOSITORY": "https://host/a repository", "COMMIT": "abc"}


def test_a_tpu_slice_is_made_installed_and_trains_with_every_argument_as_it_was_given(slice_of_one):
    machine = slice_of_one(0)
    done = machine.run(RECIPES / "tpu-vm-slice.sh", *OPTIONS, **PLACE)
    assert done.returncode == 0, done.stderr + done.stdout
    assert machine.calls("svt-jax") == [["train", "--run.output_dir", "gs://b/runs", *SAVES, *OPTIONS]]
    actions = [call[3] for call in machine.calls("gcloud")]
    assert actions == ["describe", "create", "ssh", "ssh"]
    assert ["clone", "https://host/a repository", "svt_jax"] in machine.calls("git")
    assert ["checkout", "-q", "abc"] in machine.calls("git")
    venv, install = machine.calls("uv")
    assert venv[:4] == ["venv", "-q", "--python", "3.12"]
    assert install[-2:] == ["-e", ".[tpu,gcs]"]
    assert "trained" in (machine.home / "svt-jax.log").read_text()
    assert "gcloud compute tpus tpu-vm delete svt-jax --project p --zone z" in done.stdout


def test_a_slice_that_is_taken_away_is_made_again_and_the_same_command_resumes(slice_of_one):
    machine = slice_of_one(143, 134, 0)
    done = machine.run(RECIPES / "tpu-vm-slice.sh", *OPTIONS, **PLACE)
    assert done.returncode == 0, done.stderr
    first, *others = machine.calls("svt-jax")
    assert others == [first, first]
    actions = [call[3] for call in machine.calls("gcloud")]
    again = ["describe", "delete", "create", "ssh", "ssh"]
    assert actions == ["describe", "create", "ssh", "ssh", *again, "describe", "ssh", "ssh"]
    assert "try 1 of 20 ended with status 143" in (machine.home / "svt-jax.log").read_text()


@pytest.mark.parametrize(("ends", "tries", "status"), [((2,), "20", 2), ((3,), "20", 3), ((4, 4), "2", 4)])
def test_bad_input_is_not_tried_again_and_tries_come_to_an_end(slice_of_one, ends, tries, status):
    machine = slice_of_one(*ends)
    assert machine.run(RECIPES / "tpu-vm-slice.sh", *OPTIONS, TRIES=tries, **PLACE).returncode == status
    assert len(machine.calls("svt-jax")) == len(ends)


def test_a_slice_needs_a_bucket(machine):
    done = machine.run(RECIPES / "tpu-vm-slice.sh", PROJECT="p", ZONE="z")
    assert done.returncode != 0
    assert "BUCKET: a bucket, as gs://name" in done.stderr


SRUN = """
first = next(n for n, each in enumerate(args) if not each.startswith("-"))
sys.exit(subprocess.run(args[first:]).returncode)
"""


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [
        (0, "0", False),
        (143, "0", True),
        (4, "3", True),
        (134, "0", True),
        (137, "0", True),
        (143, "20", False),
        (2, "0", False),
        (3, "0", False),
    ],
)
def test_slurm_trains_with_every_argument_and_requeues_what_can_resume(machine, status, restarts, requeued):
    machine.command("srun", SRUN)
    machine.command("scontrol")
    machine.command("svt-jax", f"sys.exit({status})", at=machine.home / "venv" / "bin")
    numbers = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": restarts}
    done = machine.run(RECIPES / "slurm-gpus.sbatch", *OPTIONS, RUNS="/shared/my runs", **numbers)
    assert done.returncode == status, done.stderr
    assert machine.calls("srun")[0][:2] == ["--kill-on-bad-exit=0", "--wait=120"]
    assert machine.calls("svt-jax") == [["train", "--run.output_dir", "/shared/my runs", *SAVES, *OPTIONS]]
    assert machine.calls("scontrol") == ([["requeue", "17"]] if requeued else [])


def test_slurm_gives_each_task_a_gpu_and_the_time_to_save():
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", (RECIPES / "slurm-gpus.sbatch").read_text(), re.M))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"] == "TERM@120"  # without B: it goes to the tasks, not to the shell
    assert {"requeue", "open-mode", "output"} <= options.keys()


# Fields of the APIs jobset.x-k8s.io/v1alpha2, batch/v1 Job and v1 Pod that the recipe may use. A list holds its items'.
POD = {
    "restartPolicy": str, "terminationGracePeriodSeconds": int, "serviceAccountName": str, "nodeSelector": dict,
    "containers": [{
        "name": str, "image": str, "command": [str], "args": [str], "ports": [{"containerPort": int}],
        "env": [{"name": str, "value": str}], "resources": {"requests": dict, "limits": dict},
    }],
}  # fmt: skip
JOB = {
    "parallelism": int, "completions": int, "completionMode": str, "backoffLimit": int,
    "podFailurePolicy": {
        "rules": [{"action": str, "onExitCodes": {"containerName": str, "operator": str, "values": [int]}}]
    },
    "template": {"metadata": dict, "spec": POD},
}  # fmt: skip
JOBSET = {
    "apiVersion": str, "kind": str, "metadata": {"name": str, "annotations": dict},
    "spec": {
        "failurePolicy": {"maxRestarts": int, "rules": [{"name": str, "action": str, "onJobFailureReasons": [str]}]},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"metadata": dict, "spec": JOB}}],
    },
}  # fmt: skip


def misfits(value, schema, path=""):
    """Where a value is not of its schema."""
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{path} is {value!r}"]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [each for n, item in enumerate(value) for each in misfits(item, schema[0], f"{path}[{n}]")]
    unknown = [f"{path}.{name} is unknown" for name in value.keys() - schema.keys()]
    return unknown + [
        each for name in value.keys() & schema.keys() for each in misfits(value[name], schema[name], f"{path}.{name}")
    ]


@pytest.fixture
def jobset():
    return yaml.safe_load((RECIPES / "gke-tpu-jobset.yaml").read_text())


def test_the_jobset_has_fields_of_its_api(jobset):
    assert misfits(jobset, JOBSET) == []
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = jobset["spec"]["replicatedJobs"]
    assert misfits({"spec": {"replicatedJob": []}}, JOBSET) == [".spec.replicatedJob is unknown"]
    spec = job["template"]["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "a podFailurePolicy needs it"
    for name in (jobset["metadata"]["name"], job["name"]):
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_the_jobset_asks_for_all_hosts_of_its_slice_and_does_not_restart_bad_input(jobset):
    from svt_jax.errors import BAD_INPUT, NOT_FINITE

    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    x, y = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == x * y // chips
    codes = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert (codes["values"], codes["containerName"]) == ([BAD_INPUT, NOT_FINITE], container["name"])
    assert job["backoffLimit"] == 0


def test_the_jobsets_arguments_are_a_config(jobset):
    container = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["svt-jax", "train"]
    config = parse_config([*container["args"], "--model.path", "m"])
    assert (config.data.task, config.run.output_dir, list(config.svt.layers)) == ("rte", "gs://BUCKET/runs", [-1, -2])


def test_the_options_of_these_tests_are_a_config():
    assert parse_config([*OPTIONS, "--model.path", "m", "--data.source", "."]).run.name == OPTIONS[-1]


def test_the_dockerfile_copies_what_is_there_and_installs_extras_that_exist():
    text = (RECIPES / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert {"pyproject.toml", "README.md", "LICENSE", "svt_jax", "configs"} == set(copied)  # what the build reads
    assert "FROM python:3.12" in text


@pytest.mark.parametrize("page", [*SCRIPTS, RECIPES / "Dockerfile", ROOT / "README.md"], ids=lambda page: page.name)
def test_extras_that_are_named_exist(page):
    named = re.findall(r"\.\[([\w,]+)\]|EXTRAS=([\w,]+)", page.read_text(encoding="utf-8"))
    assert {extra for pair in named for each in pair if each for extra in each.split(",")} <= EXTRAS.keys()


def test_accelerators_bring_the_plugins_of_the_same_jax():
    assert (EXTRAS["tpu"], EXTRAS["cuda13"]) == (["jax[tpu]"], ["jax[cuda13]"])
