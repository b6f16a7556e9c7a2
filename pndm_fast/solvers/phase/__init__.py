"""Integrators of phase space: sequences of sub-updates, fused to one row a network call."""
