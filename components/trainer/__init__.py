"""Training and export: what TFX's Trainer runs (`run_fn.run_fn`), and its parts."""
