"""What makes this engine a part of other libraries, each of which is imported in its own file alone."""
