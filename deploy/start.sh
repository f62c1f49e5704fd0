#!/bin/sh
# Starts the server in the container of compose.yaml, with an access token for Prometheus.
#
#   start.sh CONFIGURATION TOKEN_FILE
#
# Each start makes a new access token, which permits only to read the metrics, and writes it to TOKEN_FILE.
# Prometheus reads this file before each scrape. The access token also keeps the server from being open to
# everybody: without one it would not listen to other containers.
set -eu
config=$1
token_file=$2
name=compose-prometheus

tiller token revoke "$name" --config "$config" >/dev/null 2>&1 || true # there is none at the first start
created=$(tiller token new "$name" --scope metrics --config "$config")
printf '%s\n' "$created" | sed -n 's/^Token: //p' >"$token_file.new"
chmod 644 "$token_file.new" # Prometheus runs as another user
mv "$token_file.new" "$token_file"

exec tiller serve --config "$config"
