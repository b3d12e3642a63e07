"""What decides: searches that learn, schedulers, populations, the guard."""
