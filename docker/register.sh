#!/bin/sh
# register HOST:PORT CA FOLDER: register the public keys of the SuperNodes, FOLDER/*.pub, at the SuperLink.
# Keys that are already registered are skipped, so you can run it again after adding a site. A key that was unregistered
# cannot be registered again: such a site needs a new one.
set -eu
address=$1 ca=$2 folder=$3

FLWR_HOME=$(mktemp -d)
export FLWR_HOME
trap 'rm -rf "$FLWR_HOME"' EXIT
cat > "$FLWR_HOME/config.toml" <<TOML
[superlink]
default = "here"
[superlink.here]
address = "$address"
root-certificates = "$ca"
TOML

for key in "$folder"/*.pub; do
    name=$(basename "$key" .pub)
    if answer=$(flwr supernode register "$key" here --name "$name" 2>&1); then
        echo "$name: registered"
    else
        case $answer in
            *"already in use"*) echo "$name: registered before (if it was unregistered since, it needs a new key)" ;;
            *) echo "$name: $answer" >&2; exit 1 ;;
        esac
    fi
done
