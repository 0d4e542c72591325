#!/bin/sh
# Make the data directory of a server out of a backup, before the server starts.
#
#   ops/backup/restore.sh FILE DIRECTORY
#
# The directory is what the server has as /data: ~/.letta/.persist/redis for the compose file.
# It must hold no data: this overwrites nothing. Restored jobs that ran or ended after the
# backup run again.
#
# A copy named dump.rdb would be ignored: a server with an append-only file reads nothing else,
# and starts empty. So the backup becomes the base of an append-only file.
set -eu

[ $# -eq 2 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
case $(head -c 5 "$1" | tr -d '\0')$(tail -c 9 "$1" | od -An -tx1 | cut -c2-3) in
    REDISff | VALKEff) ;;
    *) echo "$1 is no whole snapshot" >&2; exit 1 ;;
esac
if [ -e "$2/appendonlydir" ] || [ -e "$2/dump.rdb" ]; then
    echo "$2 has data already: move appendonlydir and dump.rdb away first" >&2
    exit 1
fi
mkdir -p "$2/appendonlydir.part"
cp "$1" "$2/appendonlydir.part/appendonly.aof.1.base.rdb"
echo "file appendonly.aof.1.base.rdb seq 1 type b" > "$2/appendonlydir.part/appendonly.aof.manifest"
sync
mv "$2/appendonlydir.part" "$2/appendonlydir"
echo "restored into $2/appendonlydir; start the server"
