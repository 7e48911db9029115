#!/usr/bin/env bash
# Makes .venv: the locked environment of this checkout, on any Linux with Python 3.11 to 3.13.
#
#   deploy/bootstrap/bootstrap.sh          (what `make run`, `make test` and `make check` call first)
#
# Nothing outside the checkout changes: uv lives in .tools, the environment in .venv and, where the
# system's C library is older than the wheels need, a private one in .runtime (see runtime.sh).
# Set PYTHON to choose the interpreter. A second call finds the stamp of the first and returns at once.
set -euo pipefail
umask 022
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
here=$root/deploy/bootstrap
stamp=$root/.venv/bootstrap.stamp
cd "$root"

say() { printf 'bootstrap: %s\n' "$*" >&2; }

# ---- which Python -------------------------------------------------------------------------------
suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
python=
candidates=(python3 python3.13 python3.12 python3.11)
[ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
for candidate in "${candidates[@]}"; do
  if command -v "$candidate" >/dev/null 2>&1 && suits "$candidate"; then
    python=$(command -v "$candidate"); break
  fi
done
# An activated environment may be .venv itself, which a set-up deletes: what it was made from is the interpreter.
# (sys._base_executable is not always that: where a copy of it is called by a link's name, it is the copy.)
interpreter=none
if [ -n "$python" ]; then
  interpreter=$("$python" -c 'import os, sys
names = ["%s/bin/python%d.%d" % (sys.base_prefix, *sys.version_info[:2]), sys.executable]
print(os.path.realpath(next(filter(os.path.exists, names))))')
  "$python" -c 'import sys; sys.exit(sys.prefix != sys.base_prefix)' || python=$interpreter
fi

# ---- what a second call looks at: the lock, these scripts, the interpreter and the C library ----
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | awk '{print $2}')
wanted=$( { cat "$here"/*.txt "$here"/bootstrap.sh "$here"/runtime.sh; echo "$root $interpreter ${glibc:-none}"
            [ -z "$python" ] || "$python" -V; } | sha256sum | cut -d' ' -f1)
project=$(sha256sum pyproject.toml | cut -d' ' -f1)
ready() { [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; }
if ready && [ "$(cat "$stamp.project" 2>/dev/null)" = "$project" ]; then exit 0; fi

# ---- everything that is missing is named before anything else happens ---------------------------
missing=()
[ "$(uname -s)/$(uname -m)" = Linux/x86_64 ] ||
  missing+=("Linux on x86_64: ml-metadata and tensorflow-data-validation publish wheels for nothing else ($(uname -s)/$(uname -m) here)")
[ -n "$glibc" ] || missing+=("glibc: the wheels are built for it; musl systems such as Alpine cannot load them")
if [ -z "$python" ]; then
  missing+=("Python 3.11, 3.12 or 3.13 (${PYTHON:+PYTHON=$PYTHON does not give one; }apt-get install python3, or set PYTHON=/path/to/python3.12)")
else
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    missing+=("Python's venv module for $python (apt-get install python3-venv)")
  [ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
    missing+=("Python's headers for $python, version $version (apt-get install python3-dev)")
fi
# pyfarmhash, which TFX needs, is built from source: by CXX, or the compiler that built this Python, or any other.
[ -n "${CXX:-}" ] || [ -z "$python" ] ||
  built_by=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("CXX") or "")')
compilers=("${CXX:-${built_by:-g++}}")
[ -n "${CXX:-}" ] || compilers+=(g++ c++ clang++)
compiler=
for candidate in "${compilers[@]}"; do
  if command -v "${candidate%% *}" >/dev/null 2>&1; then compiler=$candidate; break; fi
done
if [ -z "$compiler" ]; then
  missing+=("a C++ compiler (${CXX:+CXX=$CXX does not give one; }apt-get install g++, or set CXX): pyfarmhash, which TFX needs, is built from source")
elif [ "$compiler" != "${compilers[0]}" ]; then
  export CXX=$compiler
fi
command -v make >/dev/null 2>&1 || missing+=("make (apt-get install make)")
if [ ${#missing[@]} -gt 0 ]; then
  say "this machine lacks:"
  for item in "${missing[@]}"; do say "  - $item"; done
  say "install the above, then call again; nothing has been changed."
  exit 1
fi

# ---- two calls at once: the second waits --------------------------------------------------------
mkdir -p .tools
exec 9>.tools/lock
if command -v flock >/dev/null 2>&1; then
  flock -n 9 || { say "another set-up is running in this checkout; waiting for it"; flock 9; }
fi
began=$SECONDS
uv=$root/.tools/venv/bin/uv
# uv does not read pip's configuration: where a mirror is set there, it is used here too.
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
  index=$("$python" -m pip config get global.index-url 2>/dev/null || true)
  index=${PIP_INDEX_URL:-$index}
  [ -z "$index" ] || export UV_DEFAULT_INDEX=$index
fi
[ -n "${SSL_CERT_FILE:-}" ] || [ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE=$PIP_CERT
export PIP_CACHE_DIR=${PIP_CACHE_DIR:-$root/.tools/cache/pip}
export UV_CACHE_DIR=${UV_CACHE_DIR:-$root/.tools/cache} UV_LINK_MODE=${UV_LINK_MODE:-hardlink} UV_NO_CONFIG=1
unset UV_BUILD_CONSTRAINT  # uv would split it at spaces
export UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180}
install_project() {  # the checkout itself; its entry points and names follow pyproject.toml
  "$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
  echo "$project" > "$stamp.project"
}
if ready; then
  [ "$(cat "$stamp.project" 2>/dev/null)" = "$project" ] || install_project
  exit 0
fi

say "setting up .venv with $("$python" -V) (3.2 GB; once)"
rm -rf .venv
if [ "$(cat .tools/stamp 2>/dev/null)" != "$wanted" ]; then
  rm -rf .tools/venv
  "$python" -m venv .tools/venv
  .tools/venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$here/tools.txt"
  echo "$wanted" > .tools/stamp
fi
"$python" -m venv --without-pip .venv
if [ "$(printf '%s\n' 2.38 "$glibc" | sort -V | head -n1)" != 2.38 ]; then
  bash "$here/runtime.sh" "$root" "$python"
fi
"$uv" pip install --quiet --python .venv/bin/python --require-hashes -r "$here/requirements.txt" \
  --build-constraints "$here/build.txt"
install_project
# So that the first run does not pay for it; without the two fifths of which next to nothing is ever imported.
.venv/bin/python -m compileall -q -j 0 -x '/(transformers|google/cloud|vertexai|tests?|testing)/' .venv/lib \
  >/dev/null 2>&1 || true
echo "$wanted" > "$stamp"
say "ready in $((SECONDS - began)) s: .venv/bin/biobert-cnn --help"
