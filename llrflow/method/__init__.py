"""The mathematics: threat, probe, terms, the search, the objective."""
