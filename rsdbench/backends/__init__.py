"""How the phases of a block are executed, beside the models' own forwards: compiled code, CUDA graphs."""
