"""Commands about this machine."""

import json
from dataclasses import asdict

from kit.cli.application import HERE, Debug, Json, Root, app
from kit.console import result, table


@app.command(rich_help_panel="Environment")
def doctor(as_json: Json = False, root: Root = HERE, debug: Debug = False) -> None:
    """Check this machine: versions, GPU, cores, bfloat16, memory, disk, GDAL, model hub; one line of advice each.

    Example: kit doctor
    """
    from kit.system.doctor import examine

    findings = examine(root)
    if as_json:
        result(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        table(("check", "result", "advice"), [(each.check, each.result, each.advice) for each in findings])
