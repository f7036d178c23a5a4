"""Drive the simulators behind a vectorised environment one by one."""
