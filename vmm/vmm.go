// Package vmm is what Paddock asks of a virtual machine monitor: boot a machine from an image, snapshot it into a template, and
// clone that template many times by copy-on-write. It knows nothing of jobs or images. A driver is one package below this one;
// vmm/vmmtest is the conformance suite that each of them runs. It may import the standard library only.
package vmm

import (
	"context"
	"errors"
	"net"
	"os"
	"time"
)

// Driver runs machines of one kind of VMM. Its methods may be called concurrently.
type Driver interface {
	// Name is the driver's name, part of every template's key: "qemu".
	Name() string
	// Probe runs something real and tells what works here. It takes seconds at most; the error says what is missing and what to do.
	Probe(ctx context.Context) (Caps, error)
	// Boot starts a machine from its kernel, with memory that Snapshot can turn into a template. It returns once the VMM runs;
	// DialGuest waits for the guest.
	Boot(ctx context.Context, b Boot, a Attach) (Machine, error)
	// Prepare spawns a VMM that needs nothing but the template's state to become a machine: all the work that can be done early.
	Prepare(ctx context.Context, t Template, a Attach) (Prepared, error)
}

// Attach is what of the host one machine is given for itself. What is in it stays the caller's.
type Attach struct {
	// Tap is the host's end of the machine's network card, where it has one: a descriptor that is attached to a tap interface
	// (TUNSETIFF with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR; kernel: Documentation/networking/tuntap.rst), in whatever network namespace.
	Tap *os.File
}

// Releaser is a Driver that keeps templates in memory for their clones.
type Releaser interface {
	// Release gives up what the driver keeps in memory for clones of the template in dir. Machines that run, and VMMs that are prepared,
	// are not touched; who prepares another has it loaded again.
	Release(dir string) error
}

// Prepared is a VMM process without a machine in it. It is used once.
type Prepared interface {
	// Restore clones the template into the VMM and resumes it. On success the machine owns the VMM; on error it is gone.
	Restore(ctx context.Context) (Machine, error)
	// Close ends the VMM, unless Restore was called, and leaves nothing behind. It is idempotent.
	Close() error
}

// Machine is one virtual machine. Its methods may be called concurrently.
type Machine interface {
	// ID is unique on this host: "m-" and 16 hexadecimal digits.
	ID() string
	// DialGuest opens the byte stream to the guest's agent; there is one at a time, a second call ends the first's.
	// It waits until the VMM accepts it, not until the guest answers.
	DialGuest(ctx context.Context) (net.Conn, error)
	// Pause stops the machine's processors, unless they stand. Where it fails, and also where its caller gives up, a machine that ran runs on,
	// or is over by its own Exit. A Resume that fails may have left it paused.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Snapshot writes a booted machine into dir as a template and ends the machine: nothing of it runs on. dir exists, is empty
	// and is on the file system where Boot.Dir is; the files become read-only.
	Snapshot(ctx context.Context, dir string) (Template, error)
	// Done is closed when the machine is over, by whatever cause; Exit then tells which.
	Done() <-chan struct{}
	Exit() Exit
	// Console gives the last lines that the guest printed, for diagnostics. Guests lie.
	Console() string
	// Close ends the machine at once, waits until its process is gone, and leaves no process, socket, file or mount behind.
	// It is idempotent and may be called from several goroutines; all return when it is done.
	Close() error
}

// HostFault is a Machine that knows when its host let it down while it ran on: what the guest then says of its programs is the host's
// doing, not theirs.
type HostFault interface {
	// HostFault gives the first fault that the machine has met; nil for none until now. It does not block, and may be asked after Close.
	// The VMM tells of a fault before it tells the guest. What a guest asks of its devices against their rules is no fault.
	HostFault() error
}

// Resizer is a Machine whose size can be changed while it runs.
type Resizer interface {
	// Resize gives the machine that many processors and that much memory, within what it was booted for; the guest's agent brings into
	// use what comes and gives up what goes. The error says what is not possible, and the machine is then as it was before.
	Resize(ctx context.Context, vcpus, memoryMiB int) error
}

// Checkpointer is a Machine whose state can be kept while it runs on.
type Checkpointer interface {
	// Checkpoint pauses the machine, takes its devices' state, its memory and its scratch disk as they are at that moment, and lets it run
	// on; then it writes what differs from base into dir, in the files of package vmm/checkpoint, all of them read-only. dir exists and is
	// empty. base is the template that the machine was cloned from, or another of the same size, as an earlier checkpoint of the machine
	// made it. A machine that was booted has no base, and is paused for longer. A machine that was paused stays so. Where Checkpoint fails,
	// the machine runs on all the same, or is over by its own Exit; what is in dir then is of no use.
	Checkpoint(ctx context.Context, dir string, base Template) (Checkpoint, error)
}

// Checkpoint tells what was taken of a machine.
type Checkpoint struct {
	// Driver and Boot are the machine's, as a Template has them.
	Driver string
	Boot   Boot
	// Full says that the files hold all of the machine, and no base is needed.
	Full bool
	// Paused is how long the machine stood still.
	Paused time.Duration
	// MemoryBytes and ScratchBytes are how much differed from the base.
	MemoryBytes, ScratchBytes int64
}

// Exit tells how a machine ended.
type Exit struct {
	// Guest says that the guest ended it: it powered off, rebooted or panicked; Reason tells which ("shutdown", "reset", "panic").
	Guest  bool
	Reason string
	// Err is set where the VMM itself failed.
	Err error
}

// Boot is a machine to start from a kernel. Paths are the host's.
type Boot struct {
	Kernel, Initrd string
	// Root is a read-only disk image, the guest's first virtio disk.
	Root string
	// Scratch is a formatted disk image of which every machine gets a private sparse copy, its second virtio disk. Empty: none.
	Scratch string
	Cmdline string
	VCPUs   int
	// MemoryMiB is the guest's memory.
	MemoryMiB int
	// NIC is whether the machine has a network card: virtio, with the hardware address GuestMAC. Whoever boots or prepares one attaches a Tap.
	NIC bool
	// MaxVCPUs and MaxMemoryMiB are how far a Resizer's machines can grow; 0 means not at all.
	MaxVCPUs, MaxMemoryMiB int
}

// GuestMAC is the hardware address of every machine's network card: clones of a template must have the same. It is a locally administered
// one (IEEE 802, bit 2 of the first octet).
const GuestMAC = "02:fc:00:00:00:05"

// GuestPort is the port on which a guest's agent listens where the way to it is AF_VSOCK.
const GuestPort = 1024

// Template is a snapshotted machine on this host: a directory of immutable files. It can be cloned by the driver and version that made it only.
type Template struct {
	// Dir holds the driver's own files.
	Dir    string `json:"-"`
	Driver string `json:"driver"`
	// Boot is what the machine was booted with: clones need the same disks.
	Boot Boot `json:"boot"`
}

// Caps is what a driver can do on this host.
type Caps struct {
	// Version is the VMM's; Accel is "kvm", "tcg" or "none"; Machine is the versioned machine type; CPU the model that guests see.
	Version, Accel, Machine, CPU string
	// Channel is the device that leads to the guest's agent, where a driver has more than one: "vsock" or "serial".
	Channel string
	// Isolated is false where the "machine" is only a process of this host.
	Isolated bool
	// Degraded names walls that cannot be given here.
	Degraded []string
	// BootProbe is how long the probe's guest took to run.
	BootProbe time.Duration
}

// Key is what of a driver a template depends on, besides the image and the machine's size.
func (c Caps) Key() string {
	return c.Version + "|" + c.Accel + "|" + c.Machine + "|" + c.CPU + "|" + c.Channel
}

// ErrUnsupported is returned by a driver that cannot do what was asked.
var ErrUnsupported = errors.New("not supported by this driver")

// Launcher starts VMM processes, jailed or not. worker/jail implements it.
type Launcher interface {
	// Launch starts the command. Cancelling ctx later does not end it: the Process does.
	Launch(ctx context.Context, c Command) (Process, error)
	// Degraded names walls that this launcher cannot give on this host.
	Degraded() []string
}

// Command is a VMM process to start. All paths are the host's and appear under the same names inside the jail.
type Command struct {
	// Name is the machine's id: it names what the jail makes.
	Name string
	Path string
	Args []string
	// Files become descriptors 3, 4, … of the process; Launch does not close them.
	Files []*os.File
	// ReadOnly are files and directories that the process may read, Writable directories that it may also write.
	ReadOnly, Writable []string
	// Devices are device nodes that it may open: "/dev/kvm".
	Devices []string
	// AddressSpaceBytes is the most that it may map, which is no memory yet: what it may use of that is in Share. 0 is any.
	AddressSpaceBytes int64
	// FileBytes is how large a file may become by what it writes, if none of Files is larger already. 0 is any.
	FileBytes int64
	// Share is what it may use of the host.
	Share Share
	// Stderr takes what the process says, bounded by whoever reads it.
	Stderr *os.File
}

// Share bounds what a VMM process, its guest included, uses of its host; a zero field does not. A launcher without cgroups cannot enforce it.
type Share struct {
	// CPUs is the most processor time per time: 1.5 is one and a half processors.
	CPUs float64
	// MemoryBytes is the most memory of its own: private pages and page cache that it brought in, not what it shares with the template's
	// other clones. It has no swap.
	MemoryBytes int64
	// PIDs is the most threads and processes.
	PIDs int
	// DiskBytesPerSecond bounds reads and writes of block devices, each.
	DiskBytesPerSecond int64
	// Weight is what the machine counts for against others; where a field is zero, as much as it may use.
	Weight Weight
}

// Weight is how much a machine gets compared with others where there is not enough for all of them.
type Weight struct {
	// CPUs weighs for processor time, and for the disks.
	CPUs float64
	// MemoryBytes is what is left to it as long as others have more than theirs that can be taken.
	MemoryBytes int64
}

// Weigher is a Process whose weight can be changed while it runs.
type Weigher interface {
	// Weigh has it weigh so much from now on. A zero field leaves things as they are.
	Weigh(w Weight) error
}

// Weigh changes a process's weight where it can be changed.
func Weigh(p Process, w Weight) error {
	if weigher, ok := p.(Weigher); ok {
		return weigher.Weigh(w)
	}
	return nil
}

// Bounder is a Process whose Share.MemoryBytes can be changed while it runs.
type Bounder interface {
	// BoundMemory has it use that much memory at most from now on. One that uses more, and cannot give it back, may be ended.
	BoundMemory(bytes int64) error
}

// BoundMemory changes the bound on a process's memory where it can be changed.
func BoundMemory(p Process, bytes int64) error {
	if bounder, ok := p.(Bounder); ok {
		return bounder.BoundMemory(bytes)
	}
	return nil
}

// DiskLimits bound what a machine does to its disks, reading and writing together; a zero field does not. They are the host's, not a
// template's: clones of one template may have others.
type DiskLimits struct {
	BytesPerSecond, OpsPerSecond int64
}

// Process is a started VMM. Its end can be waited for by many.
type Process interface {
	PID() int
	// Done is closed once the process is reaped; Err then gives nil for exit status 0.
	Done() <-chan struct{}
	Err() error
	// Kill ends it and all it started, waits for that, and removes what the jail made. It is idempotent.
	Kill() error
	// UID owns what the process shall write.
	UID() int
}
