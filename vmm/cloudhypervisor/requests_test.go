package cloudhypervisor_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor/api"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// Descriptors of a hand's VMM: those of a driver's as far as they go.
const (
	handDir     = "/proc/self/fd/3"
	handKernel  = "/proc/self/fd/6"
	handInitrd  = "/proc/self/fd/7"
	handRoot    = "/proc/self/fd/8"
	handScratch = "/proc/self/fd/9"
	handMore    = "/proc/self/fd/10"
	handMemory  = "/proc/self/fd/11"
)

// hand is a machine that is driven by hand: by requests of which drivers make few.
type hand struct {
	vmm.Machine // none; a TestGuest only dials
	*vmmtest.Wire
	vmmtest.TestGuest
	api      *api.Client
	dir      string
	more     []byte // what is on the disk that is there to be added
	rootSize uint64
	// scratch is the scratch disk's file.
	scratch *os.File
	linux   bool // what the guest is; a fake's has no kernel to look at, and no use for its card
}

// newHand makes one, kept to its files by Landlock where there are rules of what is not its machine's yet.
func newHand(t *testing.T, l vmm.Launcher, binary string, boot vmm.Boot, rules ...api.PathRule) *hand {
	t.Helper()
	h := &hand{dir: t.TempDir(), more: bytes.Repeat([]byte("one more"), 8<<10), Wire: vmmtest.NewWire(t)}
	scratch, more := filepath.Join(t.TempDir(), "scratch"), filepath.Join(t.TempDir(), "more")
	b, err := os.ReadFile(boot.Scratch)
	must(t, err)
	must(t, os.WriteFile(scratch, b, 0o600))
	must(t, os.WriteFile(more, h.more, 0o600))
	fd, err := unix.Open("/dev/shm", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600) // a memfd is nothing that Landlock has rules for
	must(t, err)
	memory := os.NewFile(uintptr(fd), "memory")
	must(t, memory.Truncate(int64(boot.MemoryMiB)<<20))
	var files []*os.File
	for _, path := range []string{boot.Kernel, boot.Initrd, boot.Root, scratch, more} {
		flag := os.O_RDONLY
		if path == scratch {
			flag = os.O_RDWR
		}
		f, err := os.OpenFile(path, flag, 0)
		must(t, err)
		files = append(files, f)
	}
	files = append(files, memory)
	t.Cleanup(func() {
		for _, f := range files {
			_ = f.Close()
		}
	})
	h.scratch = files[3]
	root, err := files[2].Stat()
	must(t, err)
	h.rootSize = uint64(root.Size())
	h.api = launchedIn(t, l, binary, h.dir, files...)
	ctx := within(t)
	must(t, h.api.Create(ctx, api.VM{
		CPUs: api.CPUs{Boot: 1, Max: 2, Scheduling: "Vm"},
		Memory: api.Memory{HotplugMethod: "VirtioMem", Zones: []api.Zone{{
			ID: "memory", Size: int64(boot.MemoryMiB) << 20, File: handMemory, Shared: true, HotplugSize: 256 << 20,
		}}},
		Payload: api.Payload{Kernel: handKernel, Initramfs: handInitrd, Cmdline: boot.Cmdline},
		Disks: []api.Disk{
			{ID: "root", Path: handRoot, ReadOnly: true, ImageType: "Raw"}, {ID: "scratch", Path: handScratch, ImageType: "Raw"},
		},
		RNG: api.RNG{Source: "/dev/urandom"}, Serial: api.Console{Mode: "File", File: handDir + "/console"}, Console: api.Console{Mode: "Off"},
		Vsock: &api.Vsock{ID: "vsock", CID: 3, Socket: handDir + "/vsock"}, Landlock: len(rules) > 0, Rules: rules,
	}))
	_, err = h.api.AddNet(ctx, api.Net{ID: "net", MAC: vmm.GuestMAC}, h.Tap)
	must(t, err)
	must(t, h.api.Boot(ctx))
	return h
}

// DialGuest waits until the guest listens.
func (h *hand) DialGuest(ctx context.Context) (net.Conn, error) {
	for {
		conn, err := h.try(ctx)
		if err == nil {
			return conn, nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			console, _ := os.ReadFile(h.dir + "/console")
			return nil, fmt.Errorf("%w: %w; console:\n%s", context.Cause(ctx), err, console)
		}
	}
}

func (h *hand) try(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", h.dir+"/vsock")
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	_, err = fmt.Fprintf(conn, "CONNECT %d\n", vmm.GuestPort)
	for b := []byte{0}; err == nil && b[0] != '\n'; {
		_, err = conn.Read(b) // byte by byte: what follows the line is the guest's
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

func (h *hand) ask(t *testing.T, line string) string {
	t.Helper()
	answer, err := h.Ask(within(t), h, line)
	must(t, err)
	return answer
}

func (h *hand) do(t *testing.T, line string) {
	t.Helper()
	must(t, h.Do(within(t), h, line))
}

// until waits for what a guest does in its own time.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for ctx := within(t); !is(); {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("it never comes to that: %s", what)
		}
	}
}

// until asks until the guest gives that answer.
func (h *hand) until(t *testing.T, line, want string) {
	t.Helper()
	until(t, fmt.Sprintf("%q answers %q", line, want), func() bool { return h.ask(t, line) == want })
}

func (h *hand) counters(t *testing.T) map[string]map[string]uint64 {
	t.Helper()
	all, err := h.api.Counters(within(t))
	must(t, err)
	return all
}

func (h *hand) state(t *testing.T, want string) {
	t.Helper()
	i, err := h.api.Info(within(t))
	must(t, err)
	if i.State != want {
		t.Errorf("it is %s, want %s", i.State, want)
	}
}

// requests are what a VMM does with a machine that was booted, and what its guest sees of that: the real one as the fake.
func requests(t *testing.T, h *hand) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *hand)
	}{
		{"refusals", refusals},
		{"counters", counters},
		{"a disk is resized", diskResized},
		{"a disk comes and goes", diskComesAndGoes},
		{"power button", powerButton},
		{"reboot", reboot},
		{"shut down and booted", shutDownAndBooted},
	} {
		if !t.Run(c.name, func(t *testing.T) { c.test(t, h) }) {
			return // the next are of the same machine
		}
	}
}

func TestRealRequests(t *testing.T) {
	boot := linux(t)
	vmmtest.NoLeaks(t)
	h := newHand(t, vmm.Direct{}, binary(t), boot)
	h.linux = true
	requests(t, h)
}

func TestFakeRequests(t *testing.T) {
	l, _ := newFakes(t, "v53.0")
	l.lax = true // no processor is to be refused by the VMM, not by the description
	vmmtest.NoLeaks(t)
	requests(t, newHand(t, l, "", fakeBoot(t)))
}

// refusals are what a machine that runs, or is paused, cannot do.
func refusals(t *testing.T, h *hand) {
	c, ctx := h.api, within(t)
	h.do(t, "set kept")
	memory := int64(1 << 30)
	info, err := c.Info(ctx)
	must(t, err)
	zone := func(more int64) func() error {
		return func() error { return c.ResizeZone(ctx, api.ResizeZone{ID: "memory", RAM: info.MemorySize + more}) }
	}
	resize := func(n int) func() error {
		return func() error { return c.Resize(ctx, api.Resize{VCPUs: &n}) }
	}
	unknown := "Failed to find device corresponding to the given identifier: no"
	disk := api.Disk{ID: "more", Path: handMore, ReadOnly: true, ImageType: "Raw"}
	other := func(id, path string) api.Disk { d := disk; d.ID, d.Path = id, path; return d }
	add := func(d api.Disk) func() error {
		return func() error { _, err := c.AddDisk(ctx, d); return err }
	}
	walk(t, []step{
		{"create", func() error {
			return c.Create(ctx, api.VM{Payload: api.Payload{Kernel: handKernel}, CPUs: api.CPUs{Boot: 1, Max: 1}, RNG: api.RNG{Source: "/dev/urandom"}, Serial: api.Console{Mode: "Null"}, Console: api.Console{Mode: "Off"}})
		}, 500, "VM is already created"},
		{"boot", func() error { return c.Boot(ctx) }, 500, "VM is already created"},
		{"restore", func() error { return c.Restore(ctx, api.Restore{Source: "file:///no/such"}) }, 500, "VM is already created"},
		{"resume", func() error { return c.Resume(ctx) }, 500, "Invalid transition: InvalidStateTransition(Running, Running)"},
		{"snapshot", func() error { return c.Snapshot(ctx, "file://"+handDir) }, 500, "Trying to snapshot while VM is running"},
		{"no processor", resize(0), 500, "Requested zero vCPUs"},
		{"a processor too many", resize(3), 500, "Requested vCPUs exceed maximum"},
		{"more memory", func() error { return c.Resize(ctx, api.Resize{RAM: &memory}) }, 500, "Impossible to resize guest memory"},
		{"another zone", func() error { return c.ResizeZone(ctx, api.ResizeZone{ID: "no", RAM: memory}) }, 500, "Failed resizing a memory zone"},
		{"less than the zone", zone(-1 << 20), 500, "below boot size"},
		{"more than the zone can have", zone(384 << 20), 500, "is bigger than region_size"},
		{"part of what is taken at once", zone(1 << 20), 500, "is not aligned on block_size"},
		{"what the zone has", zone(0), 500, "requested_size are identical"},
		{"more of the zone", zone(128 << 20), 0, ""},
		{"just that again", zone(128 << 20), 500, "requested_size are identical"},
		{"what it had", zone(0), 0, ""},
		{"resize what there is not", func() error { return c.ResizeDisk(ctx, api.ResizeDisk{ID: "no", Size: 1 << 20}) }, 500, unknown},
		{"half a sector", func() error { return c.ResizeDisk(ctx, api.ResizeDisk{ID: "scratch", Size: 1<<20 + 256}) }, 500, "Disk image size is not a multiple of 512"},
		{"resize what is read-only", func() error { return c.ResizeDisk(ctx, api.ResizeDisk{ID: "root", Size: 1 << 20}) }, 500, "Disk resize failed"},
		{"a disk of another's name", add(other("scratch", handMore)), 500, "Identifier scratch is not unique"},
		{"a disk of a card's name", add(other("net", handMore)), 500, "Identifier net is not unique"},
		{"a disk of no file", add(other("more", handDir+"/none")), 500, "Error from device manager"},
		{"a second vsock", func() error {
			_, err := c.AddVsock(ctx, api.Vsock{ID: "second", CID: 4, Socket: handDir + "/second"})
			return err
		}, 500, "Too many virtio-vsock devices"},
		{"a device of no path", func() error {
			_, err := c.AddDevice(ctx, api.Device{ID: "gpu", Path: "/sys/bus/pci/devices/none"})
			return err
		}, 500, "The device could not be added to the VM"},
		{"remove what there is not", func() error { return c.RemoveDevice(ctx, "no") }, 500, unknown},
		{"a second processor", resize(2), 0, ""},
		{"pause", func() error { return c.Pause(ctx) }, 0, ""},
		{"pause again", func() error { return c.Pause(ctx) }, 500, "Invalid transition: InvalidStateTransition(Paused, Paused)"},
		{"boot what is paused", func() error { return c.Boot(ctx) }, 500, "VM is already created"},
		{"count what is paused", func() error { _, err := c.Counters(ctx); return err }, 0, ""},
		// What a guest is to let go of, and this one cannot now, is told by 429 alone; as many as there are is no fault, and they go all the same.
		{"one processor", resize(1), 0, ""},
		{"one, once more", resize(1), 429, "Too Many Requests"},
		{"two, as there are", resize(2), 0, ""},
		{"one, after that", resize(1), 429, "Too Many Requests"},
	})
	h.state(t, api.Paused)
	must(t, c.Resume(ctx))
	h.state(t, api.Running)
	until(t, "the guest lets go of the second", func() bool { return resize(1)() == nil })
	if got := h.ask(t, "get"); got != "kept" {
		t.Errorf("value: %q", got)
	}
}

// counters grow with what goes to and from disks and cards.
func counters(t *testing.T, h *hand) {
	before := h.counters(t)
	h.ask(t, "sum /dev/vda")
	h.do(t, "disk-put counted")
	want := map[string]map[string]uint64{"root": {"read_bytes": h.rootSize, "read_ops": 1}, "scratch": {"write_bytes": 512, "write_ops": 1}, "net": {}}
	if h.linux {
		in, out := vmmtest.Frame(true, strings.Repeat("in", 100)), vmmtest.Frame(false, strings.Repeat("out", 200))
		h.do(t, "frame-listen")
		must(t, h.Send(in))
		if got := h.ask(t, "frame-get"); got != hex.EncodeToString(in) {
			t.Errorf("the guest got %s", got)
		}
		h.sends(t, out)
		want["net"] = map[string]uint64{"rx_frames": 1, "rx_bytes": uint64(len(in)), "tx_frames": 1, "tx_bytes": uint64(len(out))}
	}
	for device, counters := range want {
		if before[device] == nil {
			t.Errorf("nothing of %s: %v", device, before)
		}
		for counter, least := range counters { // which grow a little after the guest, or who waits for a frame, has what is counted
			until(t, fmt.Sprintf("%s of %s grows by %d", counter, device, least), func() bool {
				return h.counters(t)[device][counter]-before[device][counter] >= least
			})
		}
	}
	after := h.counters(t)
	if n := after["root"]["write_bytes"]; n != 0 {
		t.Errorf("to the root, which is read-only, %d bytes were written", n)
	}
	t.Logf("counters: %v, then %v", before, after)
}

// sends has the guest send a frame, and waits for it; the VMM may send announcements of its own.
func (h *hand) sends(t *testing.T, frame []byte) {
	t.Helper()
	h.do(t, "frame-send "+hex.EncodeToString(frame))
	for {
		got, err := h.Receive(time.Minute)
		must(t, err)
		if bytes.Equal(got, frame) {
			return
		}
	}
}

// diskResized grows the scratch disk and makes it smaller again: its last sector is where the guest thinks that it is.
func diskResized(t *testing.T, h *hand) {
	info, err := h.scratch.Stat()
	must(t, err)
	was := info.Size() / 512 * 512
	for _, size := range []int64{was + 1<<20, was} {
		must(t, h.api.ResizeDisk(within(t), api.ResizeDisk{ID: "scratch", Size: size}))
		if info, err = h.scratch.Stat(); err != nil || info.Size() != size {
			t.Errorf("the file has %d bytes, want %d, %v", info.Size(), size, err)
		}
		value := fmt.Sprintf("at the end of %d bytes", size)
		last := make([]byte, 512)
		until(t, "the last sector is the guest's", func() bool {
			_ = h.ask(t, "disk-put "+value) // refused while it takes the disk for larger than it is
			_, err := h.scratch.ReadAt(last, size-512)
			must(t, err)
			return string(bytes.TrimRight(last, "\x00")) == value
		})
		h.until(t, "disk-get", value)
	}
}

// diskComesAndGoes twice, by one name.
func diskComesAndGoes(t *testing.T, h *hand) {
	ctx := within(t)
	want := fmt.Sprintf("%x", sha256.Sum256(h.more))
	for range 2 {
		h.until(t, "sum /dev/vdc", "open /dev/vdc: no such file or directory")
		a, err := h.api.AddDisk(ctx, api.Disk{ID: "more", Path: handMore, ReadOnly: true, ImageType: "Raw"})
		must(t, err)
		if a.ID != "more" || !strings.HasPrefix(a.BDF, "0000:00:") {
			t.Errorf("added: %+v", a)
		}
		h.until(t, "sum /dev/vdc", want)
		until(t, "all of the disk was read", func() bool { return h.counters(t)["more"]["read_bytes"] >= uint64(len(h.more)) })
		must(t, h.api.RemoveDevice(ctx, "more"))
		// Twice is an error, whether or not the guest has let go of it meanwhile.
		walk(t, []step{{"remove again", func() error { return h.api.RemoveDevice(ctx, "more") }, 500, "given identifier: more"}})
		// The VMM has it until the guest has let go of it.
		until(t, "the disk is gone", func() bool { return h.counters(t)["more"] == nil })
	}
	h.until(t, "sum /dev/vdc", "open /dev/vdc: no such file or directory")
	// One that is there when it is booted anew.
	_, err := h.api.AddDisk(ctx, api.Disk{ID: "more", Path: handMore, ReadOnly: true, ImageType: "Raw"})
	must(t, err)
	h.until(t, "sum /dev/vdc", want)
}

// powerButton is heard by nobody in the guest, which goes on: to its kernel a press is an interrupt, and images have no module for buttons.
func powerButton(t *testing.T, h *hand) {
	presses := func() string { return "" }
	if h.linux {
		presses = func() string {
			for line := range strings.SplitSeq(h.ask(t, "read /proc/interrupts"), `\n`) {
				if strings.Contains(line, "ACPI:Ged") {
					return line
				}
			}
			t.Fatal("the guest has no interrupt for it")
			return ""
		}
		if got, want := h.ask(t, "read /sys/bus/acpi/drivers/button/bind"), "open /sys/bus/acpi/drivers/button/bind: no such file or directory"; got != want {
			t.Errorf("the guest has a driver for buttons: %s", got)
		}
	}
	h.do(t, "set pressed")
	before := presses()
	must(t, h.api.PowerButton(within(t)))
	if h.linux {
		until(t, "the press comes to the guest", func() bool { return presses() != before })
		t.Logf("%s, then %s", before, presses())
	}
	h.state(t, api.Running)
	if got := h.ask(t, "get"); got != "pressed" {
		t.Errorf("value: %q", got)
	}
}

// reboot: the machine is a new one with the same devices, those that came later too.
func reboot(t *testing.T, h *hand) {
	const bootID = "read /proc/sys/kernel/random/boot_id"
	before := ""
	if h.linux {
		before = h.ask(t, bootID)
	}
	must(t, h.api.Reboot(within(t)))
	h.state(t, api.Running)
	h.anew(t)
	if got, want := h.ask(t, "sum /dev/vdc"), fmt.Sprintf("%x", sha256.Sum256(h.more)); got != want {
		t.Errorf("the disk that was added is %s", got)
	}
	if n := h.counters(t)["scratch"]["write_bytes"]; n != 0 {
		t.Errorf("to the scratch disk of a machine that was just booted %d bytes were written", n)
	}
	if h.linux {
		if after := h.ask(t, bootID); after == before || len(after) != len(before) {
			t.Errorf("boot id: %s, then %s", before, after)
		}
		h.do(t, "frame-listen")
		h.sends(t, vmmtest.Frame(false, "after a reboot")) // the card has its tap
	}
}

// anew wants a guest that knows nothing of what was before, but what is on its disk.
func (h *hand) anew(t *testing.T) {
	t.Helper()
	if got := h.ask(t, "get"); got != "" {
		t.Errorf("value: %q", got)
	}
	if got := h.ask(t, "disk-get"); !strings.HasPrefix(got, "at the end of") {
		t.Errorf("on disk: %q", got)
	}
}

// shutDownAndBooted ends a machine, boots it again, and deletes it while it runs.
func shutDownAndBooted(t *testing.T, h *hand) {
	ctx := within(t)
	h.do(t, "set kept")
	must(t, h.api.Shutdown(ctx))
	h.state(t, api.Created)
	if conn, err := h.try(ctx); err == nil {
		_, err = io.ReadAll(conn)
		t.Errorf("a guest answers that is shut down: %v", err)
	}
	walk(t, []step{
		{"shut down again", func() error { return h.api.Shutdown(ctx) }, 500, "VM is not running"},
		{"power button", func() error { return h.api.PowerButton(ctx) }, 500, "VM is not running"},
		{"reboot", func() error { return h.api.Reboot(ctx) }, 404, "VM is not created"},
		{"counters", func() error { _, err := h.api.Counters(ctx); return err }, 500, "VM is not running"},
		{"remove what there is not", func() error { return h.api.RemoveDevice(ctx, "no") }, 500, `No device with id "no" to remove`},
		{"remove", func() error { return h.api.RemoveDevice(ctx, "more") }, 0, ""},
		{"boot", func() error { return h.api.Boot(ctx) }, 0, ""},
	})
	h.anew(t)
	h.until(t, "sum /dev/vdc", "open /dev/vdc: no such file or directory")
	must(t, h.api.Delete(ctx))
	walk(t, []step{{"info", func() error { _, err := h.api.Info(ctx); return err }, 404, "VM is not created"}})
	must(t, h.api.ShutdownVMM(ctx))
}
