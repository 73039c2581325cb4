# Makes the files of the host's image in the working directory: kernel, modules.cpio, disk, emulator. Usage: bash image.sh
# PACKAGE,PACKAGE… SUITE, where the suite of Debian is that of the kernel.
# What it needs meanwhile is in work, and goes.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8
here=$PWD
mkdir work
root=$here/work/root

# The emulator is Debian 13's QEMU with its libraries, unpacked: that of Debian 12 goes on executing code that was patched (docs/kvm-host.md).
mmdebstrap --mode=root --variant=extract --format=directory --quiet --include=qemu-system-x86 \
  --aptopt='APT::Install-Recommends "false"' trixie work/emulator &
emulator=$!

# The kernel's package is unpacked, not installed: nothing here wants an initramfs of Debian's, which takes longest of all.
export SUITE=$2
cat >work/kernel-hook <<'HOOK'
#!/bin/sh
set -e
if [ "$SUITE" != bookworm ]; then
  echo "deb http://deb.debian.org/debian $SUITE main" >"$1/etc/apt/sources.list.d/kernel.list"
  chroot "$1" apt-get update -q
fi
deb=$(chroot "$1" apt-cache -o APT::Default-Release="$SUITE" depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
test -n "$deb" || { echo "no kernel package behind linux-image-amd64" >&2; exit 1; }
chroot "$1" sh -c "cd /tmp && apt-get download -q $deb"
mv "$1"/tmp/linux-image-*.deb "$(dirname "$0")/kernel.deb"
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/* "$1"/etc/resolv.conf "$1"/etc/hostname
echo '127.0.0.1 localhost' >"$1/etc/hosts"
HOOK
chmod +x work/kernel-hook
mmdebstrap --mode=root --variant=minbase --format=directory --quiet --include="$1" \
  --aptopt='APT::Install-Recommends "false"' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/icons/*' \
  --customize-hook="$here/work/kernel-hook" bookworm "$root"

dpkg-deb -x work/kernel.deb work/deb
mv work/deb/boot/vmlinuz-* kernel
modules=$(echo work/deb/lib/modules/*)
version=$(basename "$modules")
for without in sound drivers/gpu drivers/media drivers/infiniband drivers/staging drivers/iio drivers/hwmon drivers/usb drivers/scsi \
  drivers/net/ethernet drivers/net/wireless drivers/isdn drivers/input drivers/hid drivers/mmc drivers/mtd drivers/edac; do
  rm -rf "$modules/kernel/$without"
done
find "$modules" -name '*.ko.xz' -exec xz -d {} + # as newer kernels have them; the initramfs loads them as they are
mkdir -p "$root/lib/modules"
mv "$modules" "$root/lib/modules/"
depmod -b "$root" "$version"

# What the host needs to mount its root, in the order in which it can be loaded.
mkdir -p work/initrd/modules
for module in virtio_pci virtio_blk virtio_console virtio_rng crc32c_generic ext4; do
  modprobe -d "$root" -S "$version" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
done | awk '!seen[$0]++' | while read -r file; do
  cp "$file" work/initrd/modules/
  basename "$file" >>work/initrd/modules.order
done
(cd work/initrd && find . | cpio -o -H newc --quiet >"$here/modules.cpio")

wait "$emulator"
mkdir -p emulator/lib emulator/share
cp -a work/emulator/usr/bin/qemu-system-x86_64 emulator/
cp -a work/emulator/usr/lib/x86_64-linux-gnu/*.so* emulator/lib/
cp -aL work/emulator/usr/share/qemu/*.bin work/emulator/usr/share/seabios/bios-256k.bin emulator/share/

mkdir -p "$root/paddock"
truncate -s 6G disk
mkfs.ext4 -q -F -m 0 -O '^has_journal,^resize_inode' -E lazy_itable_init=1 -L kvmhost -d "$root" disk
chmod 0444 kernel modules.cpio disk
