"""Pages and tables about finished work, made from the files of run folders and sweeps alone."""
