package guestagent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// restore makes this clone a machine of its own, in this order: entropy before anything draws from it, the clock before anything
// notes the time, its disk, who it is, and its way out last. It runs once in a clone, and no program has run before. A clone of a machine
// that lived already, a snapshot, is restored once more: it keeps the disk that it has.
func (g *guest) restore(m *machine, r *wire.Restore) (*wire.Ready, error) {
	at := time.Now() // of r.TimeUnixNS, as near as can be told here
	if g.epoch != nil && bytes.Equal(g.epoch, r.Epoch) {
		return nil, &wire.Error{Kind: wire.ErrRequest, Message: "restored already"}
	}
	ready := &wire.Ready{Epoch: r.Epoch, BootID: uuid(r.Epoch), StepMS: map[string]float64{}}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"entropy", func() error { return reseed(r.Entropy) }},
		{"clock", func() error { return setClock(r.TimeUnixNS + int64(time.Since(at))) }},
		{"scratch", func() error {
			if g.epoch != nil {
				m.disk.newLife()
				return nil
			}
			return g.freshRoot(m, r.Scratch)
		}},
		{"identity", func() error { return g.identify(r, ready.BootID) }},
		{"network", func() error { return connect(r.Network) }},
	} {
		start := time.Now()
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("after-restore %s: %w", step.name, err)
		}
		ready.StepMS[step.name] = milliseconds(time.Since(start))
	}
	g.epoch = bytes.Clone(r.Epoch)
	return ready, nil
}

// Requests of random(4).
const (
	rndAddEntropy = 0x40085203
	rndReseedCRNG = 0x5207
)

// reseed mixes the host's bytes into the kernel's generator and makes it use them now (random(4)).
func reseed(entropy []byte) error {
	if len(entropy) < 32 {
		return &wire.Error{Kind: wire.ErrRequest, Message: "less than 32 bytes of entropy"}
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()                         // nothing was written
	info := make([]byte, 8, 8+len(entropy)) // struct rand_pool_info: bits of entropy, size, bytes
	binary.NativeEndian.PutUint32(info[0:], uint32(len(entropy)*8))
	binary.NativeEndian.PutUint32(info[4:], uint32(len(entropy)))
	info = append(info, entropy...)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndAddEntropy, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0); errno != 0 {
		return fmt.Errorf("reseed: %w", errno)
	}
	return nil
}

// setClock steps the clock to the host's: that of the request and what has passed since it came. The way here is far shorter than what matters.
func setClock(unixNS int64) error {
	t := unix.NsecToTimespec(unixNS)
	return unix.ClockSettime(unix.CLOCK_REALTIME, &t)
}

// onTheWay bounds how long a request takes to come here.
const onTheWay = time.Second

// correctClock sets a clock that is wrong for certain to the time at which a request was written: one that is behind it, or ahead by more than the
// request can have taken.
func correctClock(unixNS int64) error {
	if ahead := time.Now().UnixNano() - unixNS; ahead >= 0 && ahead < int64(onTheWay) {
		return nil
	}
	return setClock(unixNS)
}

// freshRoot leaves the warm root for one that nothing has written to.
func (g *guest) freshRoot(m *machine, scratch bool) error {
	if err := g.initramfs.Chdir(); err != nil {
		return err
	}
	if err := chroot("."); err != nil {
		return err
	}
	layer := mount{"tmpfs", "/scratch", "tmpfs", 0, ""}
	if scratch {
		layer = mount{scratchDev, "/scratch", "ext4", unix.MS_NOATIME, "noinit_itable"}
	}
	if err := layer.mount(); err != nil {
		return err
	}
	top, err := os.Open("/scratch")
	if err != nil {
		return err
	}
	m.disk = &disk{root: top}
	if err := overlay("/new", "/scratch"); err != nil {
		return err
	}
	return become("/new")
}

// bootIDFile is what the kernel says of its boot.
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// identify gives the machine its names. Where it has some already, whatever stands in their place goes first: programs may have put it there.
func (g *guest) identify(r *wire.Restore, bootID string) error {
	if err := unix.Sethostname([]byte(r.Hostname)); err != nil {
		return err
	}
	if g.epoch != nil {
		if err := unix.Unmount(bootIDFile, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("take the old boot id away: %w", err)
		}
	}
	for _, f := range []struct{ name, content string }{
		{"/etc/machine-id", r.MachineID + "\n"},
		{"/etc/hostname", r.Hostname + "\n"},
		{"/etc/hosts", "127.0.0.1 localhost " + r.Hostname + "\n::1 localhost\n"},
		{"/run/boot_id", bootID + "\n"},
	} {
		if g.epoch != nil {
			if err := os.RemoveAll(f.name); err != nil {
				return err
			}
		}
		if err := os.WriteFile(f.name, []byte(f.content), 0o444); err != nil {
			return err
		}
	}
	return unix.Mount("/run/boot_id", bootIDFile, "", unix.MS_BIND, "")
}
