"""What is kept and shown of a sweep: its folder, records, outcome, mirror, trackers."""
