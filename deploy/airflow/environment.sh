#!/usr/bin/env bash
# Makes an environment with Airflow alone, apart from the pipeline's own; prints its `airflow` program:
#
#   deploy/airflow/environment.sh [FOLDER]          # default: .tools/airflow, once
#
# Locked with hashes in requirements.txt, which `make lock` resolves anew. pip's own settings apply. Airflow 2.11 runs on
# Python 3.10 to 3.12, whatever the pipeline runs on: set PYTHON to choose one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${1:-$root/.tools/airflow}
uv=$root/.tools/venv/bin/uv
[ -x "$uv" ] || { echo "airflow: make setup first" >&2; exit 1; }
python=
candidates=(python3 python3.12 python3.11 python3.10)
[ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
for candidate in "${candidates[@]}"; do
  if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || {
  echo "airflow: needs Python 3.10, 3.11 or 3.12, and ${PYTHON:-python3} is none; set PYTHON=/path/to/python3.12" >&2
  exit 1
}
# The programs of an environment name its folder: one that was moved is made anew.
wanted=$( { cat "$here/requirements.txt"; echo "$folder"; "$python" -V; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$folder/stamp" 2>/dev/null)" != "$wanted" ]; then
  if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
    index=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
    [ -z "$index" ] || export UV_DEFAULT_INDEX=$index
  fi
  [ -n "${SSL_CERT_FILE:-}" ] || [ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE=$PIP_CERT
  export UV_CACHE_DIR=${UV_CACHE_DIR:-$root/.tools/cache} UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never
  export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180}
  rm -rf "$folder"
  "$uv" venv --quiet --python "$python" "$folder"
  "$uv" pip install --quiet --python "$folder/bin/python" --require-hashes -r "$here/requirements.txt"
  echo "$wanted" > "$folder/stamp"
fi
echo "$folder/bin/airflow"
