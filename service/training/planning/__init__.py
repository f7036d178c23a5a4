"""From a request to a plan: its names looked up, its settings filled in, its memory bounded, all of it tried out."""
