"""The weight market of paper 003: the programme, its solver, and what is computed from both."""
