"""Weights of networks in the files of other programs: read without running anything, by the names they have there."""
