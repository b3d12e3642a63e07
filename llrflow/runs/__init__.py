"""Running a program: training, evaluation, checkpoints, and the files of a run folder."""
