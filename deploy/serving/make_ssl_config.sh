#!/usr/bin/env bash
# Writes ssl.config (an SSLConfig text proto) from PEM files, for --ssl_config_file.
#   make_ssl_config.sh KEY CERTIFICATE [CLIENT_AUTHORITY] > ssl.config
# With CLIENT_AUTHORITY, clients must show a certificate that it signed (mutual TLS). The output holds the private key:
# keep it in a secret.
set -euo pipefail

if [[ $# -lt 2 || $# -gt 3 ]]; then
  sed -n '2,5s/^# //p' "$0" >&2
  exit 2
fi

field() { # NAME FILE: the file as one escaped string
  printf '%s: "' "$1"
  awk '{ gsub(/\\/, "\\\\"); gsub(/"/, "\\\""); printf "%s\\n", $0 }' "$2"
  printf '"\n'
}

for file in "$@"; do
  grep -q -- '-----BEGIN' "$file" || { echo "$file: not a PEM file" >&2; exit 1; }
done
field server_key "$1"
field server_cert "$2"
if [[ $# -eq 3 ]]; then
  field custom_ca "$3"
  echo 'client_verify: true'
fi
