#!/bin/sh
# certs.sh SERVER_NAMES SITE...: make all files for TLS and authentication, in `certs` of the current folder.
#
#   ./certs.sh superlink.example.org,192.0.2.7 site-0 site-1
#
# SERVER_NAMES are all names and addresses by which sites and users reach the SuperLink, separated by commas. The names
# for access within its host (superlink, localhost, 127.0.0.1) are added automatically.
# certs/ca/       the authority's key: keep it offline; everyone who has it can pose as the server
# certs/server/   for the server's host; supernodes/ holds the sites' public keys
# certs/SITE/     for that site's host alone
# certs/user/     for users, who start runs: the authority's certificate
# Existing files are kept, so you can call it again with more sites. With other SERVER_NAMES it makes a new server
# certificate. Certificates are valid for 825 days: remove superlink.* and supernode.* to renew them.
set -eu
[ $# -ge 1 ] || { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 2; }
names=$1,superlink,localhost,127.0.0.1
shift
umask 077
days=825

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

certificate() { # FOLDER NAME NAMES: a key and a certificate for NAMES, signed by the authority
    [ -f "$1/$2.crt" ] && [ "$(cat "$1/$2.names")" = "$3" ] && return
    quietly openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -subj "/CN=$2" \
        -keyout "$1/$2.key" -out "$1/$2.csr"
    san "$3" > "$1/$2.ext"
    quietly openssl x509 -req -in "$1/$2.csr" -CA certs/ca/ca.crt -CAkey certs/ca/ca.key -CAcreateserial \
        -days $days -extfile "$1/$2.ext" -out "$1/$2.crt"
    rm "$1/$2.csr" "$1/$2.ext"
    printf '%s' "$3" > "$1/$2.names"
    echo "$1/$2.crt: for $3"
}

secret() { # FILE: the secret that a SuperExec shows to its SuperLink or SuperNode
    [ -f "$1" ] || openssl rand -hex 32 | tr -d '\n' > "$1"
}

for site in "$@"; do
    case $site in
        ca | server | user | "" | *[!A-Za-z0-9._-]*) echo "certs.sh: a site cannot be called '$site'" >&2; exit 2 ;;
    esac
done
mkdir -p certs/ca certs/user certs/server/supernodes
if [ ! -f certs/ca/ca.crt ]; then
    quietly openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -days 3650 -subj "/CN=FedDDPM CA" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
        -keyout certs/ca/ca.key -out certs/ca/ca.crt
    echo "certs/ca/ca.crt: the authority"
fi
cp certs/ca/ca.crt certs/user/
cp certs/ca/ca.crt certs/server/
certificate certs/server superlink "$names"
secret certs/server/superexec.secret

for site in "$@"; do
    folder=certs/$site
    mkdir -p "$folder"
    cp certs/ca/ca.crt "$folder/"
    certificate "$folder" supernode "supernode,$site,localhost,127.0.0.1"
    secret "$folder/superexec.secret"
    [ -f "$folder/auth" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -f "$folder/auth" -C ""
    cp "$folder/auth.pub" "certs/server/supernodes/$site.pub"
done
