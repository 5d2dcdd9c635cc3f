"""Session processes, clocks, GPU state, memory and byte floors."""
