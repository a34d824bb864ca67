"""On a CPU: forwards and steps compiled ahead of time (torch.export and AOTInductor)."""
