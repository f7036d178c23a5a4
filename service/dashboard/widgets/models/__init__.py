"""What the page of a model shows: films, evaluations, an observation to try by hand, versions, ways to use it."""
