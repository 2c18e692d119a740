"""Labelled data from files on this machine, checked before it is believed."""
