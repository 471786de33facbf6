"""The machine: files and locks, CPU cores, devices, ranks, processes, workers."""
