"""Neurons and packed operators that run over a whole sequence at once."""
