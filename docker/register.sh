#!/bin/sh
# register HOST:PORT CA FOLDER: let the SuperLink know the public keys of the SuperNodes, FOLDER/*.pub.
# Keys that it knows already are passed over, so it can be run again when a site has been added.
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
            *"already in use"*) echo "$name: registered before" ;;
            *) echo "$name: $answer" >&2; exit 1 ;;
        esac
    fi
done
