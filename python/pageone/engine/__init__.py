"""The page engine: page status, periods, queue, plan; numpy arrays in and out, no system calls."""
