"""What users touch: the command line, figures and tables."""
