"""`python -m rsdbench`."""

from rsdbench.cli.main import main

main()
