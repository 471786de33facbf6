"""`kit submit --part` and `--merge`: the same files as from one call."""

from pathlib import Path

import pytest

from kit.deploy.engine.backends import EngineOptions
from kit.deploy.submission.submit import SubmitOptions, merge_parts, submit, submit_part
from kit.errors import SubmissionError
from kit.pipeline.export import Exported

OPTIONS = SubmitOptions(EngineOptions(tuning=False))


def test_parts_and_merge_give_the_files_of_one_call(chips: Path, tiny_weights: Exported, tmp_path: Path):
    whole = submit(chips, tiny_weights.path, tmp_path / "one" / "s", OPTIONS)
    folder = tmp_path / "two" / "s"
    assert submit_part(chips, tiny_weights.path, folder, OPTIONS, (2, 3)) == 1
    with pytest.raises(SubmissionError, match="3 of 4 chips are not predicted yet, of parts 1/3, 3/3") as caught:
        merge_parts(chips, tiny_weights.path, folder, OPTIONS)
    assert "--part 1/3" in caught.value.hint
    assert submit_part(chips, tiny_weights.path, folder, OPTIONS, (3, 3)) == 1
    assert submit_part(chips, tiny_weights.path, folder, OPTIONS, (1, 3)) == 2
    merged = merge_parts(chips, tiny_weights.path, folder, OPTIONS)
    assert merged.path.read_bytes() == whole.path.read_bytes()
    assert (folder / "submission.csv").read_bytes() == (tmp_path / "one" / "s" / "submission.csv").read_bytes()
    assert submit(chips, tiny_weights.path, folder, OPTIONS) == merged  # nothing is left to do


def test_a_rerun_of_a_part_predicts_nothing(
    chips: Path, tiny_weights: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for _ in range(2):
        submit_part(chips, tiny_weights.path, tmp_path / "s", OPTIONS, (1, 2))
    assert capsys.readouterr().err.count("predict chips 2/2") == 1
