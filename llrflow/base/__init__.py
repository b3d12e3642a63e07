"""What knows nothing of machine learning: errors, files, progress, words."""
