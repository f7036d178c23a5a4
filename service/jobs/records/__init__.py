"""Jobs as they are remembered: in memory, and on the disk."""
