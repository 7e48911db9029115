"""The Transform user function, run by tensorflow_transform itself, and its graph as serving uses it."""

import functools
import tempfile

import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from apache_beam.testing.util import assert_that  # noqa: F401  (Beam must be importable for this module)
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

from components.errors import DataError
from components.transform.preprocessing import preprocessing_fn

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "pain", "fell", "##s", "no", ".", "a"]
CLS, SEP, UNK = 2, 3, 1
