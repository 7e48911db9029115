"""The exported model's precision: bfloat16 and int8 encoders, and the proof that an export runs where it will serve."""
