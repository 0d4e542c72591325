#!/bin/sh
# Make the password of the queue's server, once: compose/compose.yaml mounts it as a secret.
#
#   compose/make_secrets.sh
#
# Run again it changes nothing. For a new password, delete compose/secrets, run it, and
# recreate the containers. The directory is yours alone; its files are readable by all,
# because the containers that they are mounted into run as users of their own.
set -eu

secrets=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/secrets
if [ -e "$secrets/letta_redis_password" ] && [ -e "$secrets/valkey-queue-users.conf" ]; then
    echo "$secrets has a password already"
    exit 0
fi
umask 077
mkdir -p "$secrets"
chmod 700 "$secrets"
password=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
if command -v sha256sum >/dev/null 2>&1; then
    digest=$(printf %s "$password" | sha256sum | cut -d' ' -f1)
else
    digest=$(printf %s "$password" | shasum -a 256 | cut -d' ' -f1)
fi
printf '%s\n' "$password" > "$secrets/letta_redis_password"
cat > "$secrets/valkey-queue-users.conf" <<EOF
# Read by valkey-queue.conf. The password itself is in letta_redis_password.
protected-mode no

# Workers and clients of the queue.
user letta-redis on #$digest ~* &* +@all

# The Letta server's own locks and streams: it can give no password, so whoever reaches the
# port without one can do this much and no more. PING is the health check's.
user default on nopass resetkeys resetchannels ~letta_cache:* ~agent:send_message:run_id:* ~conversation:lock:* ~otid:run:* ~memory_repo:lock:* ~sse:run:* -@all +ping +hello +auth +select +client|setname +client|setinfo +get +set +del +unlink +exists +expire +pexpire +ttl +pttl +incrby +decrby +sadd +srem +smembers +smismember +scard +xadd +xread +xrange +xrevrange +xlen +xdel +xtrim +xinfo|stream +eval +evalsha +script|load +multi +exec
EOF
chmod 644 "$secrets/letta_redis_password" "$secrets/valkey-queue-users.conf"
echo "made a password in $secrets"
