"""Groups of branches: how they are collected, stored and judged."""
