# The guest's kernel, initramfs and root disk: sourced by scripts/vm.
#
# vm_image makes $image/{kernel,initrd,root.ext4}, or leaves them if they were
# made from the same recipe (this folder's image.sh, packages, init and guest/,
# and the release of Debian). The guest is of the host's release, so that
# programs linked on the host run in it, and comes from the host's mirrors.

image=$vm/image
. /etc/os-release
release=${VERSION_CODENAME:-}

vm_image() {
    local recipe
    recipe=$(recipe)
    [ "$(cat "$image/recipe" 2>/dev/null)" != "$recipe" ] || return 0
    [ "$(id -u)" -eq 0 ] || die "building the image needs root"
    [ "${ID:-}-$(dpkg --print-architecture)" = debian-amd64 ] ||
        die "the image is made from Debian's packages for amd64, on such a machine"
    (
        flock 9
        # Another process may have made it meanwhile.
        [ "$(cat "$image/recipe" 2>/dev/null)" != "$recipe" ] || exit 0
        say "building the image (the whole output is in $vm/build.log)"
        new=$vm/image.new
        rm -rf "$new"
        mkdir -p "$new"
        { fetch_root && fetch_kernel && fill_root && pack_initrd && pack_root; } >"$vm/build.log" 2>&1 9>&- || {
            tail -n 20 "$vm/build.log" >&2
            die "building the image failed (the whole output is in $vm/build.log)"
        }
        rm -rf "$new/root" "$new/initrd.d" "$image"
        echo "$recipe" >"$new/recipe"
        mv "$new" "$image"
        say "built $image in $SECONDS s"
    ) 9>"$vm/lock"
}

recipe() {
    (
        cd "$here"
        echo "$release"
        find image.sh packages init guest -type f | LC_ALL=C sort | xargs sha256sum
    ) | sha256sum | cut -d' ' -f1
}

# All steps below say set -e anew: bash forgets it in what `||` follows.

fetch_root() (
    set -e
    mapfile -t packages < <(sed 's/#.*//' "$here/packages" | tr -s ' ' '\n' | grep .)
    # The host's proxy and the like hold for the guest's packages as well.
    mapfile -t options < <(apt-config dump | grep -E '^Acquire::(https?::Proxy|Check-|Retries)' | sed 's/^/--aptopt=/')
    sources | mmdebstrap --mode=root --variant=apt --format=directory \
        --include="$(IFS=,; echo "${packages[*]}")" \
        --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' "${options[@]}" \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        "$release" "$new/root" -
)

# The host's own sources for this release, or Debian's if it has none.
sources() {
    local own
    own=$(apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        grep -E " $release(-updates|-security)? main\$" | sort -u)
    echo "${own:-deb http://deb.debian.org/debian $release main}"
}

# The cloud kernel, unpacked and never installed: the host keeps its own.
fetch_kernel() (
    set -e
    mkdir "$new/deb"
    cd "$new/deb"
    download() {
        local package
        package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
        apt-get -o APT::Sandbox::User=root download "${package:?linux-image-cloud-amd64 is unknown}"
    }
    download || { apt-get update; download; }
    dpkg -x ./*.deb .
    mv boot/vmlinuz-* "$new/kernel"
    # Debian's /lib is a link to /usr/lib.
    cp -a lib/modules "$new/root/usr/lib/"
    cd ..
    rm -r deb
    chroot root depmod "$(ls root/usr/lib/modules)"
)

fill_root() (
    set -e
    cp -r --no-preserve=ownership "$here/guest/." "$new/root/"
    cd "$new/root"
    echo kiln-vm >etc/hostname
    echo 127.0.0.1 localhost kiln-vm >etc/hosts
    : >etc/resolv.conf
    # Without one systemd takes this for the first boot and sets the system up.
    echo "$recipe" | cut -c-32 >etc/machine-id
    chroot . useradd --uid 1000 --create-home --shell /bin/bash user
    echo user:100000:65536 | tee etc/subuid >etc/subgid
    mkdir -p var/lib/systemd/linger
    : >var/lib/systemd/linger/user
    units=etc/systemd/system
    chroot . systemctl --quiet enable kiln-command.service
    chroot . systemctl --quiet set-default multi-user.target
    # Nobody logs in, and what a long-lived machine cares about costs boot time.
    chroot . systemctl --quiet mask getty.target systemd-update-utmp.service \
        systemd-update-utmp-runlevel.service systemd-random-seed.service \
        systemd-journal-flush.service systemd-pstore.service hwclock.service \
        apparmor.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer \
        sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
        modprobe@.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount
)

# virtio is all in modules, in the order in which they load; ext4 is as well.
pack_initrd() (
    set -e
    work=$new/initrd.d version=$(ls "$new/root/usr/lib/modules")
    mkdir -p "$work"/{bin,dev,modules,root}
    cp "$new/root/bin/busybox" "$work/bin/"
    cp "$here/init" "$work/init"
    for module in virtio_pci virtio_blk ext4 crc32c_generic virtio_console qemu_fw_cfg; do
        chroot "$new/root" modprobe --set-version "$version" --show-depends "$module"
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r path; do
        cp "$new/root$path" "$work/modules/"
        basename "$path"
    done >"$work/modules.list"
    mv "$work/modules.list" "$work/modules/list"
    cd "$work"
    find . | "$work/bin/busybox" cpio -o -H newc >"$new/initrd"
)

# Its blocks are allocated as they are written: on the host it takes what is in
# it. No journal: a run's writes go to a snapshot that is thrown away.
pack_root() { ext4 "$new/root.ext4" 4G "$new/root"; }

# ext4 IMAGE SIZE FOLDER
ext4() { mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=1 -m 0 -d "$3" "$1" "$2" >/dev/null; }
