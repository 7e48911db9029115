#!/usr/bin/env bash
# Tries the set-up without the private C library: a fresh clone of this checkout in a Debian 13 userland.
#
#   deploy/bootstrap/try_debian13.sh FOLDER [COMMAND …]        (as root; needs debootstrap)
#
# FOLDER holds the userland and is kept, so that a second call is quick. COMMAND runs in the clone as an ordinary
# user; default: make check. The mirror is the one that this machine's apt uses; pip's settings are passed on.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
userland=${1:?give the folder for the userland}
shift
[ $# -gt 0 ] || set -- make check
[ "$(id -u)" = 0 ] || { echo "try_debian13: needs root, for debootstrap and chroot" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "try_debian13: apt-get install debootstrap" >&2; exit 1; }

if [ ! -x "$userland/usr/bin/python3" ]; then
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n1)
  debootstrap --variant=minbase --include=python3,python3-venv,python3-dev,g++,make,git,ca-certificates \
    trixie "$userland" "$mirror"
fi
mkdir -p "$userland/etc/ssl/certs"
cp -L /etc/resolv.conf /etc/hosts "$userland/etc/"  # Beam asks for this machine by its name
[ ! -f /etc/ssl/certs/ca-certificates.crt ] ||
  cp -L /etc/ssl/certs/ca-certificates.crt "$userland/etc/ssl/certs/ca-certificates.crt"
for mount in proc dev; do mountpoint -q "$userland/$mount" || mount --rbind "/$mount" "$userland/$mount"; done
trap 'umount -l "$userland/proc" "$userland/dev"' EXIT

chroot "$userland" id builder >/dev/null 2>&1 || chroot "$userland" useradd --create-home builder
rm -rf "$userland/home/builder/checkout"
git clone --quiet "$root" "$userland/home/builder/checkout"
chroot "$userland" chown -R builder:builder /home/builder/checkout
settings=()
while IFS= read -r line; do settings+=("$line"); done < <(env | grep -E '^(PIP_(CERT|INDEX_URL|EXTRA_INDEX_URL|DEFAULT_TIMEOUT)|UV_|SSL_CERT_FILE|https?_proxy|HTTPS?_PROXY|no_proxy)')
chroot "$userland" su builder -s /bin/bash -c \
  "cd ~/checkout && env $(printf '%q ' "${settings[@]}") $(printf '%q ' "$@")"
