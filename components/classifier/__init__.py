"""The classifier: the encoder, a CNN head over its token embeddings, and the output layer."""
