"""The command line: the composition root, which alone knows both roles."""
