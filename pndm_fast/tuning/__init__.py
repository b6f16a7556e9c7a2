"""Plans fitted to a network: a teacher's samples, a plan's numbers as parameters, and how well the result does."""
