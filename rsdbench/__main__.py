"""`python -m rsdbench`, and the command `rsdbench`: its installed script names this module, which does not move."""

from rsdbench.cli.main import main

if __name__ == "__main__":
    main()
