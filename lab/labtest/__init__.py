"""What lab/test is made of: reading dumps, the truth, the comparison, and the readers."""
