"""Step 6, Evaluate: TFMA metrics by slice, the baseline of the same run, and the gates that bless a model."""
