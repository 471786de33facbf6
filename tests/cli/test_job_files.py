"""The job files in examples/cluster: valid syntax, and commands of kit with options that exist."""

import ast
import inspect
import re
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from kit.cli import app

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"
FILES = sorted(FOLDER.iterdir())
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_every_way_has_a_job_file():
    assert {file.name for file in FILES} == {
        "map_slurm_array.sh", "train_slurm_torchrun.sh", "map_kubernetes.yaml", "map_dask_jobqueue.py"
    }  # fmt: skip


@pytest.mark.parametrize("file", [file for file in FILES if file.suffix == ".sh"], ids=lambda file: file.name)
def test_shell_scripts_parse(file: Path):
    assert subprocess.run(["bash", "-n", file], capture_output=True, text=True, check=False).stderr == ""


def test_the_kubernetes_job_is_an_indexed_job():
    job = yaml.safe_load((FOLDER / "map_kubernetes.yaml").read_text())
    assert (job["kind"], job["apiVersion"], job["spec"]["completionMode"]) == ("Job", "batch/v1", "Indexed")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert f'/{job["spec"]["completions"]}"' in container["args"][0]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]
    }


def test_the_jobqueue_script_fits_its_package():
    jobqueue = pytest.importorskip("dask_jobqueue")
    tree = ast.parse((FOLDER / "map_dask_jobqueue.py").read_text())
    (call,) = (
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "SLURMCluster"
    )
    known = inspect.signature(jobqueue.core.Job.__init__).parameters
    assert {keyword.arg for keyword in call.keywords} <= set(known) | {"walltime"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_options_of_kit_exist(file: Path):
    text = file.read_text().replace("\\\n", " ").replace('"map", *sys.argv[1:]', "kit map")
    for line in re.findall(r"\bkit (map|run)\b(.*?)(?:$|\n\n|\")", text, re.M):
        command, rest = line
        known = {option for parameter in COMMANDS[command].params for option in parameter.opts}
        for option in re.findall(r"(?<!\S)--[a-z]+", rest):
            assert option in known, f"{file.name}: kit {command} {option}"
