"""Deriving a specification of symmetries from the graph of a module, whatever it is called."""
