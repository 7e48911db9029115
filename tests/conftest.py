"""For all tests: TensorFlow's C++ side keeps its warnings, which can quote data, to itself, as in a pipeline run."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
