"""The search for hyperparameters: what TFX's Tuner calls (`tuner_fn.tuner_fn`), and its parts."""
