"""The README's two commands, links and pictures."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def command(marker: str) -> str:
    block = re.search(rf"<!-- {marker} -->\n```bash\n(.+?)\n```", README, re.S)
    assert block, marker
    return block[1].replace("\\\n", "")


def kit_commands() -> list[list[str]]:
    """The demo's commands after the installation, run with this environment's kit."""
    parts = [shlex.split(part) for part in command("demo").split(" && ")]
    return [[sys.executable, "-m", "kit", *part[1:]] for part in parts if part[0].endswith("/kit")]


def test_ci_runs_the_test_command():
    assert "<!-- test -->" in (ROOT / ".ci/run").read_text()
    assert command("test").endswith("pytest")


def test_the_demo_trains_submits_and_scores():
    assert [part[3] for part in kit_commands()] == ["run", "submit", "score"]


def test_the_picture_is_there():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file()


def test_links_to_files_hold():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_the_demo_reaches_its_score(tmp_path: Path):
    """`kit run quickstart`, `kit submit`, `kit score` in an empty folder: Jaccard at least 0.75 on unseen mosaics."""
    output = ""
    for part in kit_commands():
        done = subprocess.run(part, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        output = done.stdout
    word, score = output.splitlines()[-1].split()
    assert word == "pooled"
    assert float(score) >= 0.75
    for fold in (0, 1):
        folder = tmp_path / f"runs/quickstart/fold{fold}"
        for name in ("settings.json", "log.csv", "checkpoint.pt", "best.safetensors", "curves.png"):
            assert (folder / name).is_file()
        assert len(list((folder / "overlays").glob("*.png"))) == 3
        assert list((folder / "oof").glob("*.tif"))
    chips = sorted((tmp_path / "submissions/quickstart-test").glob("*.tif"))
    assert len(chips) == len(list((tmp_path / "sample/test").glob("*/*.tif")))
    with rasterio.open(chips[0]) as mask:
        assert (mask.width, mask.height, mask.count, mask.dtypes[0]) == (1024, 1024, 1, "uint8")
    shutil.rmtree(tmp_path / "data")  # what was exported needs none of it
    snippet = re.search(r"```python\n(.+?)```", README, re.S)
    assert snippet
    code = (
        snippet[1] + "print(tuple(probability.shape), tuple(mask.shape), sorted(set(mask.unique().tolist()) - {0, 1}))"
    )
    alone = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert alone.stdout.strip() == "(1, 1, 600, 800) (1, 1, 600, 800) []"
