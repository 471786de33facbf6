"""The machine: files, CPU cores, devices, ranks, processes, workers."""
