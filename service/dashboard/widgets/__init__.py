"""The parts of the dashboard's pages."""
