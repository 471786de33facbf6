"""Maps a country on workers that dask-jobqueue asks SLURM for (pip install dask-jobqueue). Run it on the login node.

python map_dask_jobqueue.py /shared/scenes --weights lite0 --root /shared/kit
"""

import subprocess
import sys

from dask_jobqueue import SLURMCluster

WORKERS = 40


def main() -> int:
    """Starts a scheduler here and workers in jobs, and runs `kit map` with them."""
    with SLURMCluster(cores=1, processes=1, memory="4GB", walltime="12:00:00") as cluster:  # one thread: one cell
        cluster.scale(jobs=WORKERS)
        command = [sys.executable, "-m", "kit", "map", *sys.argv[1:], "--cluster", cluster.scheduler_address]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
