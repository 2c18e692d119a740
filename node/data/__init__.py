"""Data from files on this machine, checked before it is believed, or from a seed."""
