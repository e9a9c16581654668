#!/bin/sh
# certs.sh: make the files for TLS and authentication, in `certs` of the current folder. No secret of a site ever has
# to leave it, and the authority that sites and users trust signs the server's certificate alone.
#
#   ./certs.sh server superlink.example.org,192.0.2.7     once, by the server's operator, on a safe machine
#   ./certs.sh site hospital-a                            at each site, on its own host
#
# The names and addresses of `server` are all those by which sites and users reach the SuperLink, separated by commas.
# Those for access within its host (superlink, localhost, 127.0.0.1) are added automatically.
# certs/ca/       the authority's key: keep it offline; everyone who has it can pose as the server
# certs/server/   for the server's host; supernodes/ holds the sites' public keys, as NAME.pub
# certs/user/     ca.crt, the authority's certificate, for users and sites; it is not secret
# certs/NAME/     of a site: only auth.pub leaves it. If the operator's files are in the same `certs` (a try on one
#                 machine), `site` also exchanges ca.crt and auth.pub with them.
# Existing files are kept. With other names, `server` makes a new certificate. Certificates are valid for 825 days:
# remove superlink.* or supernode.* to renew them.
set -eu
days=825
umask 077

usage() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit 2
}

quietly() { # run a command, and show its output only if it fails
    if ! said=$("$@" 2>&1); then
        echo "$said" >&2
        echo "certs.sh: this failed: $*" >&2
        exit 1
    fi
}

san() { # turn names with commas into a subjectAltName
    printf 'subjectAltName='
    echo "$1" | tr -d ' ' | tr ',' '\n' | sort -u | while read -r name; do
        case $name in
            "") ;;
            *:*) printf 'IP:%s,' "$name" ;;
            *[!0-9.]*) printf 'DNS:%s,' "$name" ;;
            *) printf 'IP:%s,' "$name" ;;
        esac
    done | sed 's/,$//'
}

authority() { # FILE SUBJECT: FILE.key and FILE.crt, which may sign certificates of hosts and nothing below them
    quietly openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -days 3650 -subj "/CN=$2" \
        -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign,cRLSign \
        -keyout "$1.key" -out "$1.crt"
}

certificate() { # FILE NAMES AUTHORITY: a key, and a certificate of a host with these NAMES
    quietly openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -subj "/CN=$(basename "$1")" \
        -keyout "$1.key" -out "$1.csr"
    {
        san "$2"
        printf '\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n'
    } > "$1.ext"
    quietly openssl x509 -req -in "$1.csr" -CA "$3.crt" -CAkey "$3.key" -CAcreateserial -days $days \
        -extfile "$1.ext" -out "$1.crt"
    rm "$1.csr" "$1.ext"
    printf '%s' "$2" > "$1.names"
    echo "$1.crt: for $2"
}

is_current() { # FILE NAMES: whether there is a certificate with these names
    [ -f "$1.crt" ] && [ "$(cat "$1.names")" = "$2" ]
}

secret() { # FILE: the secret that a SuperExec shows to its SuperLink or SuperNode
    [ -f "$1" ] || openssl rand -hex 32 | tr -d '\n' > "$1"
}

server() { # NAMES
    names=$1,superlink,localhost,127.0.0.1
    mkdir -p certs/ca certs/user certs/server/supernodes
    if [ ! -f certs/ca/ca.crt ]; then
        authority certs/ca/ca "FedDDPM CA"
        echo "certs/ca/ca.crt: the authority"
    fi
    cp certs/ca/ca.crt certs/user/
    cp certs/ca/ca.crt certs/server/
    is_current certs/server/superlink "$names" || certificate certs/server/superlink "$names" certs/ca/ca
    secret certs/server/superexec.secret
    echo "certs/user/ca.crt has the $(openssl x509 -in certs/ca/ca.crt -noout -fingerprint -sha256)"
}

site() { # NAME
    case $1 in
        ca | server | user | "" | .* | *[!A-Za-z0-9._-]*) echo "certs.sh: a site cannot be called '$1'" >&2; exit 2 ;;
    esac
    folder=certs/$1 names=supernode,$1,localhost,127.0.0.1
    mkdir -p "$folder"
    # Only the site's own ClientApp trusts the authority `inside`. Its key signs once, and is removed.
    if ! is_current "$folder/supernode" "$names"; then
        authority "$folder/inside" "SuperNode of $1"
        certificate "$folder/supernode" "$names" "$folder/inside"
        rm -f "$folder/inside.key" "$folder/inside.srl"
    fi
    secret "$folder/superexec.secret"
    [ -f "$folder/auth" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -f "$folder/auth" -C ""
    [ ! -f certs/user/ca.crt ] || cp certs/user/ca.crt "$folder/"
    [ ! -d certs/server/supernodes ] || cp "$folder/auth.pub" "certs/server/supernodes/$1.pub"
    echo "Send $folder/auth.pub, and nothing else, to the server's operator: $(ssh-keygen -lf "$folder/auth.pub")"
    [ -f "$folder/ca.crt" ] || echo "Put the ca.crt of the server's operator into $folder, and compare its fingerprint."
}

[ $# -eq 2 ] || usage
case $1 in
    server | site) "$1" "$2" ;;
    *) usage ;;
esac
