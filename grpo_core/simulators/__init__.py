"""One simulator and its state, and the simulators behind a vectorised environment."""
