#!/bin/sh
# Copy all that the queue's server holds into one file, while it runs.
#
#   ops/backup/backup.sh FILE
#
# VALKEY_CLI is how the server is reached, by a user that may SYNC. The default is the server
# of the compose file; elsewhere VALKEY_CLI="valkey-cli -h queue --user operator". Its password
# comes from REDISCLI_AUTH, or else from compose/secrets.
#
# The file has every job that was acknowledged before this began, and may lack later ones. It
# holds arguments and bodies in clear text. ops/backup/restore.sh makes a data directory of it.
set -eu

[ $# -eq 1 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
compose=$(CDPATH='' cd -- "$(dirname -- "$0")/../../compose" && pwd)
if [ -z "${REDISCLI_AUTH:-}" ] && [ -r "$compose/secrets/valkey_operator_password" ]; then
    REDISCLI_AUTH=$(cat "$compose/secrets/valkey_operator_password")
fi
export REDISCLI_AUTH="${REDISCLI_AUTH:-}"
: "${VALKEY_CLI:=docker compose -f $compose/compose.yaml exec -T -e REDISCLI_AUTH valkey-queue valkey-cli --user operator}"

umask 077
part=$1.part
trap 'rm -f "$part" "$part.cut"' EXIT
# The words of VALKEY_CLI are the command.
# shellcheck disable=SC2086
$VALKEY_CLI --rdb - > "$part"
# Into a pipe, valkey-cli writes the mark by which it knew the end, 40 hexadecimal digits, too.
# A snapshot ends with a byte FF and its checksum, so it never ends so itself.
if tail -c 40 "$part" | LC_ALL=C grep -qaE '^[0-9a-f]{40}$'; then
    head -c "$(($(wc -c < "$part") - 40))" "$part" > "$part.cut"
    mv "$part.cut" "$part"
fi
# Neither an error that valkey-cli printed nor half a snapshot is a backup.
case $(head -c 5 "$part" | tr -d '\0')$(tail -c 9 "$part" | od -An -tx1 | cut -c2-3) in
    REDISff | VALKEff) ;;
    *) echo "the server sent no whole snapshot: $(head -c 200 "$part" | tr -cd '[:print:]')" >&2; exit 1 ;;
esac
sync
mv "$part" "$1"
echo "$1: $(wc -c < "$1" | tr -d ' ') bytes"
