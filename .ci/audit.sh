#!/bin/sh
# audit.sh BIN: known faults of the packages that are installed in a virtual environment, by the OSV database. Where the
# database cannot be reached, say so and succeed, since nothing is known then.
set -eu
report=$(mktemp)
errors=$(mktemp)
trap 'rm -f "$report" "$errors"' EXIT

if "$1/pip-audit" --vulnerability-service osv --skip-editable --progress-spinner off --timeout 15 \
    > "$report" 2> "$errors"; then
    cat "$errors" "$report"
elif [ -s "$report" ] || ! grep -qE 'ConnectionError|ConnectTimeout|ReadTimeout' "$errors"; then
    cat "$errors" "$report"
    exit 1
else
    tail -n 1 "$errors" >&2
    echo "NOTICE: the dependencies were NOT audited, because the database of known faults cannot be reached from here." >&2
fi
