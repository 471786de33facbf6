"""The files of an audit: written with their columns, and refused where the data set is another one now."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from kit.data.audits import BLOCKS, SETTINGS, AuditSettings, BlockShift, check_audit, data_checksum, write_findings
from kit.errors import DataError
from kit.system.files import write_json

BLOCK = BlockShift("a_s_b0_0", "a", "s", 0, 0, 100, 100, "EPSG:32736", 1.5, -0.5, None, 3, False, "few buildings")


def audited(tmp_path: Path) -> tuple[Path, Path]:
    """Returns the folder of an audit and the index of its data set."""
    index = tmp_path / "index.csv"
    index.write_text("tile,fold,mask\nt0,0,masks/t0.tif\nt1,1,masks/t1.tif\n")
    settings = AuditSettings("d", data_checksum(index), "w", "0" * 64, 0.1, 100.0)
    write_json(tmp_path / "audit" / SETTINGS, asdict(settings))
    return tmp_path / "audit", index


def test_columns_of_blocks(tmp_path: Path):
    write_findings(tmp_path / BLOCKS, [BLOCK], BlockShift)
    table = pd.read_csv(tmp_path / BLOCKS)
    assert {"block", "left", "bottom", "right", "top", "crs", "dx_m", "dy_m", "sigma_m", "buildings", "trusted"} <= set(
        table
    )
    assert table["trusted"].dtype == bool
    assert pd.isna(table["sigma_m"][0])


def test_an_empty_table_keeps_its_columns(tmp_path: Path):
    write_findings(tmp_path / BLOCKS, [], BlockShift)
    assert "trusted" in pd.read_csv(tmp_path / BLOCKS)


def test_other_folds_are_the_same_data_set(tmp_path: Path):
    folder, index = audited(tmp_path)
    index.write_text(index.read_text().replace("t0,0", "t0,4"))
    assert check_audit(folder, index).data == "d"


def test_another_version_of_the_data_set(tmp_path: Path):
    folder, index = audited(tmp_path)
    index.write_text(index.read_text() + "t2,0,masks/t2.tif\n")
    with pytest.raises(DataError, match="another version of d"):
        check_audit(folder, index)


def test_no_audit(tmp_path: Path):
    _, index = audited(tmp_path)
    with pytest.raises(DataError, match=r"settings\.json cannot be read"):
        check_audit(tmp_path / "none", index)
