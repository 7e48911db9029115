#!/usr/bin/env bash
# Makes the environment of the inference benchmark's peers in .tools/peers, apart from the product's own:
#
#   tests/benchmarks/peers.sh          # prints its interpreter; 1.6 GB, once (7 GB where there is no CPU wheel of torch)
#
# Every file is held against its hash (peers.txt). pip's own settings (index, links, proxy, certificates) apply.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
peers=$root/.tools/peers
wanted=$(cat "$here"/peers*.txt "$here/peers.sh" | sha256sum | cut -d' ' -f1)
if [ "$(cat "$peers/stamp" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$peers"
  python=${PYTHON:-python3.11}
  "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
    { echo "peers.sh: $python is not Python 3.11, which peers.txt is resolved for; set PYTHON" >&2; exit 1; }
  "$python" -m venv "$peers"
  install=("$peers/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes)
  "${install[@]}" -r "$here/peers.txt" >&2
  # The default wheel of torch is linked against CUDA's libraries; the CPU wheel is not.
  "$peers/bin/python" -c 'import torch' 2>/dev/null || "${install[@]}" -r "$here/peers_cuda.txt" >&2
  "$peers/bin/python" -c 'import torch, transformers, onnxruntime, openvino' >&2
  echo "$wanted" > "$peers/stamp"
fi
echo "$peers/bin/python"
