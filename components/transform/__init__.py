"""Text to token ids inside the TensorFlow graph, the same in training and in serving."""
