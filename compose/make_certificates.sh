#!/bin/sh
# Make the certificates of the queue's and the cache's servers, for compose/tls.yaml. Needs openssl.
#
#   compose/make_certificates.sh
#
# Run again it keeps the authority, and makes a server's certificate anew when it ends within
# 60 days: run it each month, and recreate both servers when it says so. For a new authority,
# delete compose/secrets/valkey-ca.*, run it, and recreate all containers.
set -eu

secrets=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/secrets
umask 077
mkdir -p "$secrets"
chmod 700 "$secrets"
cd "$secrets"

# Its key stays here: no container gets it.
if [ ! -s valkey-ca.crt ] || [ ! -s valkey-ca.key ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
        -subj "/CN=letta-redis authority" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout valkey-ca.key -out valkey-ca.crt 2>/dev/null
    rm -f valkey-queue.crt valkey-cache.crt
fi
made=
for server in valkey-queue valkey-cache; do
    if openssl x509 -noout -checkend 5184000 -in "$server.crt" >/dev/null 2>&1; then
        continue
    fi
    # `localhost` is the queue's published port.
    printf '%s\n' "subjectAltName=DNS:$server,DNS:localhost,IP:127.0.0.1" \
        "extendedKeyUsage=serverAuth" "basicConstraints=CA:FALSE" > "$server.ext"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$server" \
        -keyout "$server.key" -out "$server.csr" 2>/dev/null
    openssl x509 -req -in "$server.csr" -CA valkey-ca.crt -CAkey valkey-ca.key -CAcreateserial \
        -days 365 -extfile "$server.ext" -out "$server.crt" 2>/dev/null
    rm "$server.csr" "$server.ext"
    made="$made $server"
done
# Readable by all below a directory that is yours alone, as the passwords are.
chmod 644 valkey-ca.crt valkey-queue.crt valkey-queue.key valkey-cache.crt valkey-cache.key
if [ -n "$made" ]; then
    echo "made the certificates of$made in $secrets"
else
    echo "$secrets has certificates already"
fi
