"""Training that doubts its data: one contract for published methods, and one loop that runs them all."""
