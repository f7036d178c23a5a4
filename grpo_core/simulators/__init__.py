"""Single simulators, their states, and banks of the simulators behind a vectorised environment."""
