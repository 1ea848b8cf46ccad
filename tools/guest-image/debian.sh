# How a Debian disk is made. Sourced by recipes, after lib.sh.

guest_image=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
suite=bookworm

# as_root_of_image COMMAND...: run with the ids of the image's files, as root or in a user namespace.
as_root_of_image() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else mmdebstrap --unshare-helper "$@"; fi
}

# The host's own apt sources, so that its mirror is used; without them, Debian's default.
host_sources() {
    if [ -s /etc/apt/sources.list.d/debian.sources ]; then
        cat /etc/apt/sources.list.d/debian.sources
    elif grep -qs '^deb ' /etc/apt/sources.list; then
        grep '^deb ' /etc/apt/sources.list
    else
        die "found no Debian sources in /etc/apt/sources.list or /etc/apt/sources.list.d/debian.sources"
    fi
}

# make_debian OUT DISK SIZE PACKAGES_FILE: install the packages with systemd, then write the ext4 disk OUT/DISK.
make_debian() {
    local out=$1 disk=$2 size=$3 packages
    packages=$(paste -sd, "$4")
    host_sources | mmdebstrap --variant=minbase --format=tar --include="$packages" \
        --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"; echo "COMPRESS=zstd" >"$1/etc/initramfs-tools/conf.d/polder"' \
        --customize-hook="copy-in $guest_image/debian/files/etc $guest_image/debian/files/usr /" \
        --customize-hook="chroot \"\$1\" sh -eu </dev/null -c \"\$(cat $guest_image/debian/customize)\"" \
        "$suite" "$out/root.tar"
    as_root_of_image bash "$guest_image/write-disk" "$out" "$disk" "$size"
    rm "$out/root.tar"
    fast_initrd "$out"
}

# fast_initrd OUT: an initramfs that only mounts the root disk; made for the modules in OUT/modules.tar.
fast_initrd() {
    local out=$1 root=$1/fast
    mkdir "$out/modules"
    tar -C "$out/modules" -xf "$out/modules.tar"
    busybox_root "$root"
    find "$root/bin" -type l ! -name sh ! -name mount ! -name modprobe ! -name switch_root ! -name sleep ! -name sed -delete
    install -m 755 "$guest_image/debian/init-fast" "$root/init"
    copy_modules "$out/modules" "$root" virtio_pci virtio_blk crc32c_generic crc32c_intel
    pack_initramfs "$root" "$out/initrd-fast"
    rm -rf "$root" "$out/modules" "$out/modules.tar"
}
