# Steps that recipes share. Sourced, never run.

lib_apt_options=()
[ "$(id -u)" -ne 0 ] || lib_apt_options+=(-o APT::Sandbox::User=root)

die() { echo "$*" >&2; exit 1; }

# fetch_package NAME DIR [APT_OPTION...]: unpack Debian package NAME into DIR without installing it.
fetch_package() {
    local name=$1 dir=$2 debs
    shift 2
    debs=$(mktemp -d)
    (cd "$debs" && apt-get -q "${lib_apt_options[@]}" "$@" download "$name") ||
        { rm -rf "$debs"; die "cannot download package $name; run 'apt-get update' and try again"; }
    mkdir -p "$dir"
    dpkg-deb -x "$debs"/*.deb "$dir"
    rm -rf "$debs"
}

# copy_modules FROM TO NAME...: copy kernel modules with all they depend on from FROM/lib/modules to TO/lib/modules.
copy_modules() {
    local from=$1 to=$2 version file
    shift 2
    version=$(ls "$from/lib/modules")
    /sbin/modprobe -d "$from" -S "$version" --show-depends -a "$@" | awk '$1 == "insmod" { print $2 }' | sort -u |
        while read -r file; do
            file=${file##*/lib/modules/}
            install -D -m 644 "$from/lib/modules/$file" "$to/lib/modules/$file"
        done
    cp "$from/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$to/lib/modules/$version/"
    /sbin/depmod -b "$to" "$version"
    rm -f "$to/lib/modules/$version"/modules.{*.bin,builtin.modinfo,order}
}

# pack_initramfs ROOT OUT: a compressed newc archive, the same bytes for the same content.
pack_initramfs() {
    (cd "$1" && find . -print0 | sort -z | xargs -0 touch -hd @0 && find . -print0 | sort -z |
        cpio --null --create --format=newc --owner=0:0 --reproducible --quiet | gzip -n9) >"$2"
}

# busybox_root DIR: the folders every initramfs here starts with, and busybox under all its names.
busybox_root() {
    mkdir -p "$1"/{bin,dev,proc,sys,tmp,run,etc,mnt,root,test}
    cp "$(command -v busybox)" "$1/bin/busybox"
    "$1/bin/busybox" --list | while read -r name; do
        [ "$name" = busybox ] || ln -sf busybox "$1/bin/$name"
    done
}
