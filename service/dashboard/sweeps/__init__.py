"""The pages of all sweeps and of one."""
