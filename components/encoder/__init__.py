"""BERT in Keras 3 over packed tokens, its geometry, and pretrained weights into it."""
