"""What a sweep tries: domains of parameters, the trials that follow, their cost."""
