"""From a resolved spec to compiled programs."""
