"""What one row does to the registers: a reference in plain torch, C++, Triton; one face for the three."""
