"""`python -m llrflow` is the command line."""

from llrflow.cli import main

if __name__ == "__main__":
    main()
