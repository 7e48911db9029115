"""What the server sets for TensorFlow before it is imported."""

import os
import subprocess
import sys

import pytest

ASK = """
import os
from serving.server import main
assert main(["--version"]) == 0
print(os.environ["TF_ENABLE_ONEDNN_OPTS"])
"""


@pytest.mark.parametrize(("said", "holds"), [(None, "1"), ("0", "0")])
def test_onednn_is_asked_for_unless_the_environment_says_otherwise(said, holds) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    environment |= {} if said is None else {"TF_ENABLE_ONEDNN_OPTS": said}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == holds
