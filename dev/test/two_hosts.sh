#!/usr/bin/env bash
# Two hosts on this machine, for tests: two network namespaces with host names of their own, joined by a cable.
#
#   two_hosts.sh DIRECTORY COMMAND...
#
# Runs COMMAND on the first host, east; /etc/hosts knows both. `DIRECTORY/agent west COMMAND...` runs one on the other,
# as ssh would. The cable is cut as soon as the file DIRECTORY/cut appears. Everything is made in namespaces that end
# with this script, whatever becomes of it, with all processes in them: nothing has a name outside.
# Exit code: COMMAND's; 77, after one sentence, if such namespaces are not permitted here.
set -eu
directory=$1
shift

if [ -z "${TWO_HOSTS_INSIDE:-}" ]; then
    user=
    [ "$(id -u)" = 0 ] || user=--map-root-user
    command -v ip > /dev/null || { echo "no ip: install iproute2"; exit 77; }
    inside="unshare $user --net --uts --mount --pid --fork --kill-child --mount-proc"
    probe='ip link add cable type veth peer name plug && unshare --net --uts true'
    $inside sh -c "$probe" > /dev/null 2>&1 || { echo "network namespaces with veth are not permitted here"; exit 77; }
    TWO_HOSTS_INSIDE=yes exec $inside "$0" "$directory" "$@"
fi
unset TWO_HOSTS_INSIDE
export TMPDIR=$directory  # for what a killed launcher leaves behind

unshare --net --uts sleep infinity &
west=$!
while [ "$(readlink /proc/$west/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
there="nsenter --target $west --net --uts"

hostname east
$there hostname west
ip link add cable type veth peer name cable netns $west
ip address add 10.99.0.1/24 dev cable
$there ip address add 10.99.0.2/24 dev cable
for link in lo cable; do
    ip link set $link up
    $there ip link set $link up
done
printf '%s\n' '127.0.0.1 localhost' '10.99.0.1 east' '10.99.0.2 west' > "$directory/etc_hosts"
mount --bind "$directory/etc_hosts" /etc/hosts
printf '#!/bin/sh\nshift\nexec %s sh -c "$*"\n' "$there" > "$directory/agent"
chmod +x "$directory/agent"

{
    until [ -e "$directory/cut" ]; do sleep 0.1; done
    ip link set cable down
} &
"$@"
