"""Commands from outside: help, usage, and what each mistake is told."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from factories import write_catalog, write_scene

Cli = Callable[..., tuple[int, str, str]]
COMMANDS = (
    "sample", "prepare", "folds", "repair", "recipes", "check", "lr-find", "run", "runs", "compare", "export", "best",
    "weights", "verify", "submit", "pseudo", "check-submission", "mosaic", "map", "score", "doctor",
)  # fmt: skip


def test_python_m_kit_works():
    done = subprocess.run([sys.executable, "-m", "kit", "--version"], capture_output=True, text=True, check=True)
    version, others = done.stdout.splitlines()
    assert version.count(".") == 2
    assert re.fullmatch(r"Python 3\.\d+\.\d+, torch \S+ on .+, GDAL 3\.\d+\.\d+", others)


def test_quiet_leaves_results_and_errors(cli: Cli, tmp_path: Path):
    write_catalog(tmp_path / "train", {"kam": {"a": {"seed": 1}}})
    arguments = ("prepare", tmp_path / "train", "--grid", "native", "--side", 64, "--root", tmp_path)
    for place in (0, 1, len(arguments)):
        code, out, err = cli(*arguments[:place], "--quiet", *arguments[place:])
        assert (code, err) == (0, "")
        assert "kam/a" in out
    code, _, err = cli("weights", "--quiet", "--root", tmp_path)
    assert (code, err) == (0, "")
    assert "no weights here yet" in cli("weights", "--root", tmp_path)[2]
    assert cli("--quiet", "verify", "none", "--root", tmp_path)[2].startswith("error: no weights")


def test_the_shell_completes_commands():
    words = {"COMP_WORDS": "kit veri", "COMP_CWORD": "1", "_KIT_COMPLETE": "complete_bash"}
    command = [sys.executable, "-m", "kit"]
    done = subprocess.run(command, env=os.environ | words, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["verify"]


def test_doctor_examines_this_machine(cli: Cli, tmp_path: Path):
    code, out, _ = cli("doctor", "--json", "--root", tmp_path / "new")
    assert code == 0
    findings = {each["check"]: each["result"] for each in json.loads(out)}
    assert list(findings) == [
        "python", "torch", "gpu", "cores", "bfloat16", "memory", "disk", "gdal", "hub", "extras",
    ]  # fmt: skip
    assert not [result for result in findings.values() if result.startswith("failed")]
    assert findings["disk"].endswith(str(tmp_path))
    assert cli("doctor")[1].splitlines()[0].split() == ["check", "result", "advice"]


def test_help_imports_nothing_heavy():
    """What makes `kit --help` slow is importing torch or rasterio; the time itself is measured in benchmarks/."""
    code = (
        "import sys; sys.argv = ['kit', '--help']\n"
        "import kit.cli\n"
        "try: kit.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'fastai', 'timm', 'rasterio', 'numpy', 'pandas', 'shapely'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(cli: Cli, command: str):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert f"Example: kit {command}" in " ".join(out.split())
    for option in ("--root", "--debug"):
        assert option in out


def test_usage_errors_are_two(cli: Cli):
    assert cli("prepare")[0] == 2
    assert cli("no-such-command")[0] == 2
    assert cli("run", "lite0", "--fold", "first")[0] == 2
    assert cli("sample", "--seed", -1)[0] == 2


@pytest.mark.parametrize("option", [("--seed", -1), ("--seed", 2**32), ("--minutes", "inf"), ("--minutes", 1e308)])
def test_numbers_that_no_run_can_take(cli: Cli, option: tuple[str, object]):
    assert cli("run", "lite0", *option)[0] == 2


def failed(cli: Cli, *arguments: object) -> str:
    """Runs a command that must fail for the user to mend: exit 1, an error and a hint, nothing on stdout."""
    code, out, err = cli(*arguments)
    assert code == 1, err
    assert out == ""
    assert err.splitlines()[-2].startswith("error: "), err
    assert err.splitlines()[-1].startswith("hint: "), err
    assert "Traceback" not in err
    return err


def test_missing_catalogue(cli: Cli, tmp_path: Path):
    err = failed(cli, "prepare", tmp_path / "nowhere", "--root", tmp_path)
    assert f"no STAC catalogue at {tmp_path / 'nowhere'}" in err
    assert list(tmp_path.iterdir()) == []


def test_scene_without_labels(cli: Cli, tmp_path: Path):
    write_catalog(tmp_path / "c", {"kam": {"a": {}}}, labels=False)
    assert "first kam/a" in failed(cli, "prepare", tmp_path / "c", "--root", tmp_path)
    assert not (tmp_path / "data").exists()


def test_truncated_tiff(cli: Cli, tmp_path: Path, catalog: Path):
    file = catalog / "kam/a/a.tif"
    file.write_bytes(file.read_bytes()[:9000])
    code, out, err = cli("prepare", catalog, "--root", tmp_path, "--side", "64")
    assert code == 1
    assert "kam/b" in out  # what could be cut is told
    assert "a.tif" in err
    assert err.splitlines()[-1].startswith("hint: ")
    assert "failed.csv" in err


def test_unknown_recipe_offers_the_nearest(cli: Cli, tmp_path: Path):
    assert "did you mean 'lite0'?" in failed(cli, "run", "lite00", "--root", tmp_path)


def test_no_data_set(cli: Cli, tmp_path: Path):
    assert "kit prepare CATALOG" in failed(cli, "run", "lite0", "--root", tmp_path)


def test_unknown_fold(cli: Cli, workplace: Path):
    assert "no fold 9" in failed(cli, "run", "tiny", "--fold", "9", "--root", workplace)
    assert not (workplace / "runs").exists()


def test_unknown_device(cli: Cli, workplace: Path):
    assert "no device 'abacus'" in failed(cli, "run", "tiny", "--device", "abacus", "--root", workplace)


def test_weights_that_are_not_ours(cli: Cli, tmp_path: Path):
    (tmp_path / "w.pt").write_bytes(b"not weights")
    write_scene(tmp_path / "chips/one.tif")
    err = failed(cli, "submit", tmp_path / "chips", "--weights", tmp_path / "w.pt", "--root", tmp_path)
    assert "w.pt is not a weights file" in err
    assert not (tmp_path / "submissions").exists()


def test_no_weights_yet(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kit.deploy.weights.load.choose_starter", lambda: None)
    failed(cli, "submit", tmp_path, "--root", tmp_path)


def test_a_fault_of_kit_is_told_without_a_traceback(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("1 / 0")

    monkeypatch.setattr("kit.sample.sample.draw_sample", broken)
    err = failed(cli, "sample", "--root", tmp_path)
    assert "ZeroDivisionError" in err
    assert "--debug" in err


def test_interrupted(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kit.sample.sample.draw_sample", interrupted)
    assert "error: interrupted" in failed(cli, "sample", "--root", tmp_path)


@pytest.mark.slow
def test_recipes_are_listed_whole_when_piped(cli: Cli, tmp_path: Path):
    code, out, _ = cli("recipes", "--root", tmp_path)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["recipe", "encoder", "params_m", "gflop_512", "purpose"]
    assert {line.split()[0] for line in lines[1:]} >= {"lite0", "quickstart"}
    assert "…" not in out


@pytest.mark.slow
def test_a_killed_submission_goes_on(cli: Cli, workplace: Path, tmp_path: Path):
    """SIGINT to a real process: exit 1, a clear word, and the rerun finishes."""
    import signal

    import numpy as np
    import rasterio

    assert cli("run", "tiny", "--root", workplace, "--no-pretrained", "--fold", "0")[0] == 0
    (tmp_path / "chips").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 512, 512), dtype=np.uint8)
    for number in range(120):
        with rasterio.open(
            tmp_path / f"chips/c{number:03}.tif", "w", driver="GTiff", width=512, height=512, count=3, dtype="uint8"
        ) as file:
            file.write(pixels)
    command = [sys.executable, "-m", "kit", "submit", str(tmp_path / "chips"), "--root", str(workplace)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in jobs that a shell runs behind
    )
    folder = workplace / "submissions/tiny-chips"
    deadline = time.monotonic() + 240
    while len(list(folder.glob("*.tif"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1, err
    assert out == ""
    assert "error: interrupted" in err
    assert "Traceback" not in err
    assert not (workplace / "submissions/tiny-chips.tgz").exists()
    finished = {p.name: p.stat().st_mtime_ns for p in folder.glob("c*.tif")}
    assert 0 < len(finished) < 120
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("tiny-chips.tgz")
    assert {name: (folder / name).stat().st_mtime_ns for name in finished} == finished


@pytest.mark.parametrize("option", [("--workers", "-3"), ("--workers", "1.5"), ("--gsd", "nan"), ("--tier", "one")])
def test_numbers_that_kit_may_choose_are_checked(cli: Cli, option: tuple[str, str]):
    code, _, err = cli("prepare", "nowhere", *option)
    assert code == 2
    assert "expected auto or" in err


@pytest.mark.parametrize(
    "option", ["--workers=auto", "--workers=0", "--gsd=auto", "--gsd=0", "--tier=0", "--workers=2"]
)
def test_auto_and_its_former_spellings_are_taken(cli: Cli, tmp_path: Path, option: str):
    assert "no STAC catalogue" in failed(cli, "prepare", tmp_path / "nowhere", option, "--root", tmp_path)


def test_help_groups_the_commands_by_stage(cli: Cli):
    out = cli("--help")[1]
    stages = ("Data", "Training", "Weights", "Prediction")
    assert sorted(stages, key=lambda stage: out.index(f"─ {stage} ─")) == list(stages)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_starts_with_a_verb(command: str):
    import typer.main

    from kit.cli import app

    first = typer.main.get_command(app).commands[command].help.split()[0]  # type: ignore[attr-defined]
    verbs = "Assign Check Choose Compare Cut Draw Find Freeze Label List Map Predict Repair Score Test Train Verify"
    assert first in verbs.split()


@pytest.mark.parametrize(
    "arguments", [("sample",), ("folds", "city"), ("check", "lite0"), ("lr-find", "lite0"), ("run", "lite0"),
                  ("mosaic", "chips"), ("prepare", "city")],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
@pytest.mark.parametrize("obstacle", ["file", "link"])
def test_a_root_that_cannot_be_written_is_one_error(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...], obstacle: str
):
    root = tmp_path / "root"
    (tmp_path / "chips").mkdir()
    if obstacle == "link":
        root.symlink_to(tmp_path / "gone")
    else:
        root.touch()
    write_catalog(tmp_path / "city", {"kam": {"a": {}}})
    command, *rest = arguments
    given = [tmp_path / text if (tmp_path / text).is_dir() else text for text in rest] if command != "folds" else rest
    err = failed(cli, command, *given, "--root", root)
    assert f"cannot write {root}/" in err
    assert "is a dangling link" in err or "is a file, expected a folder" in err
