"""`python -m rsdbench`."""

from rsdbench.faces.cli import main

main()
