"""Spiking networks as lists of stages."""
