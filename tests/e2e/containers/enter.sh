#!/bin/sh
# Runs as root of a new user namespace: builds a root folder that is read-only but for /data and tmpfs, and runs the
# program in it: enter.sh ROOT DATA HOSTS "READ-ONLY FOLDERS" "TMPFS FOLDERS" PROGRAM ARGUMENT…
set -eu
root=$1 data=$2 hosts=$3 folders=$4 tmpfs=$5
shift 5
ip link set lo up
mount -t tmpfs tmpfs "$root"
for folder in $tmpfs; do
  mkdir -p "$root$folder"
  mount -t tmpfs -o mode=1777 tmpfs "$root$folder"
done
for folder in $folders; do  # the program may lie below one of those
  [ -e "$folder" ] || continue
  mkdir -p "$root$folder"
  mount --bind "$folder" "$root$folder"
  mount -o remount,bind,ro "$root$folder"
done
for folder in /proc /dev; do
  mkdir -p "$root$folder"
  mount --rbind "$folder" "$root$folder"
done
mkdir -p "$root/data"
mount --bind "$data" "$root/data"
mount --bind "$hosts" "$root/etc/hosts"
mount -o remount,ro "$root"
cd "$root"
pivot_root . .
umount -l .
cd /
exec "$@"
