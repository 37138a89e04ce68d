"""Prompts tuned with pseudo-labels: towers stay frozen, and what is learned is a few vectors among their tokens."""
