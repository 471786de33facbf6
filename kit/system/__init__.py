"""The machine: devices, ranks, processes, workers."""
