#!/bin/sh
# Make the passwords of the queue's and the cache's servers, the tokens of the operators'
# page and the password of Grafana's `admin`, once: compose/compose.yaml mounts them as secrets.
#
#   compose/make_secrets.sh
#
# Run again it keeps the passwords, and writes the users anew only if they are those of an
# older release. For new passwords, delete compose/secrets, run it, and recreate the
# containers. The directory is yours alone; its files are readable by all, because the
# containers that they are mounted into run as users of their own.
set -eu

secrets=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/secrets
umask 077
mkdir -p "$secrets"
chmod 700 "$secrets"

# Nobody learns the names of others' keys and channels, changes the server, or loads, removes
# or stops what another user runs. The cache's commands also look for its keys (SCAN).
rights='-@all +@read +@write +@connection +@transaction +@scripting -@dangerous +info +time'
rights="$rights -dbsize -randomkey -function -script|flush -script|kill"
# Workers hear of the queue's changes by client tracking, on the channel of that name.
queue_rights="~arq:* &arq:* &__redis__:invalidate $rights +publish +subscribe +unsubscribe -scan"
cache_rights="~lc:* $rights"

# Nobody is this user, but the queue's needs all rights: Valkey 8.1 and others read what a script
# or a transaction wrote back from the append-only file with the rights of `default`. Whatever
# they forbid would be lost at the next start. The cache keeps no file.
queue_default='~* &* +@all'
cache_default='resetkeys resetchannels -@all'

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

# write_users SERVER PASSWORD_FILE RIGHTS RIGHTS_OF_DEFAULT: write the users of valkey-SERVER.conf.
write_users() {
    client=$(digest_of "$secrets/$2")
    operator=$(digest_of "$secrets/valkey_operator_password")
    cat > "$secrets/valkey-$1-users.conf" <<END
# Release 2 of the users, read by valkey-$1.conf. The passwords are in $2,
# and in valkey_operator_password, which no container gets.
protected-mode no

# Workers and clients.
user letta-redis on #$client resetkeys resetchannels $3

# Whoever looks after the server: MONITOR, CONFIG, backups.
user operator on #$operator ~* &* +@all

# The health check's.
user probe on nopass resetkeys resetchannels -@all +ping

user default off resetpass $4
END
    chmod 644 "$secrets/$2" "$secrets/valkey-$1-users.conf"
}

# is_current SERVER: whether its users are those of this release.
is_current() {
    grep -qs '^# Release 2 ' "$secrets/valkey-$1-users.conf"
}

for name in letta_web_token letta_web_read_token grafana_password; do
    digest_of "$secrets/$name" >/dev/null
    chmod 644 "$secrets/$name"
done
if is_current queue && is_current cache && is_current single; then
    echo "$secrets has passwords already"
    exit 0
fi
write_users queue letta_redis_password "$queue_rights" "$queue_default"
write_users cache letta_cache_redis_password "$cache_rights" "$cache_default"
# For compose/single.yaml, on which both share the queue's server.
write_users single letta_redis_password "$queue_rights" "$queue_default"
cat >> "$secrets/valkey-single-users.conf" <<END

# The cache's.
user letta-cache on #$(digest_of "$secrets/letta_cache_redis_password") resetkeys resetchannels $cache_rights
END
echo "made passwords in $secrets"
