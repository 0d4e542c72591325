#!/bin/sh
# Make the passwords of the queue's server, once: compose/compose.yaml mounts them as secrets.
#
#   compose/make_secrets.sh
#
# Run again it keeps the passwords, and writes the users anew only if they are those of an
# older release. For new passwords, delete compose/secrets, run it, and recreate the
# containers. The directory is yours alone; its files are readable by all, because the
# containers that they are mounted into run as users of their own.
set -eu

secrets=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/secrets
users=$secrets/valkey-queue-users.conf
umask 077
mkdir -p "$secrets"
chmod 700 "$secrets"

# digest_of FILE: make a password in the file if there is none, and print its digest.
digest_of() {
    [ -s "$1" ] || od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$1"
    password=$(cat "$1")
    if command -v sha256sum >/dev/null 2>&1; then
        printf %s "$password" | sha256sum | cut -d' ' -f1
    else
        printf %s "$password" | shasum -a 256 | cut -d' ' -f1
    fi
}

queue=$(digest_of "$secrets/letta_redis_password")
operator=$(digest_of "$secrets/valkey_operator_password")
if grep -qs '^user operator ' "$users"; then
    echo "$secrets has passwords already"
    exit 0
fi
cat > "$users" <<EOF
# Read by valkey-queue.conf. The passwords are in letta_redis_password, and in
# valkey_operator_password, which no container gets.
protected-mode no

# Workers and clients of the queue.
user letta-redis on #$queue resetkeys resetchannels ~arq:* &arq:* +@all -@dangerous +info

# Whoever looks after the server: MONITOR, CONFIG, backups.
user operator on #$operator ~* &* +@all

# The health check's.
user probe on nopass resetkeys resetchannels -@all +ping

# Nobody is this user, but it needs all rights: Valkey 8.1 and others read what a script or a
# transaction wrote back from the append-only file with the rights of \`default\`. Whatever they
# forbid would be lost at the next start.
user default off resetpass ~* &* +@all
EOF
chmod 644 "$secrets/letta_redis_password" "$users"
echo "made passwords in $secrets"
