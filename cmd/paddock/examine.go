package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/worker/host"
	"github.com/paddockvm/paddock/worker/jail"
	"github.com/paddockvm/paddock/worker/jail/stub"
)

// examination is what the doctor looks at.
type examination struct {
	state   string // state directory
	images  string // image store; empty means images below it
	nats    string
	options []client.Option
}

// run looks at everything: what runs machines, what they are made of, where things are kept, who answers.
func (e examination) run(ctx context.Context) []finding {
	list := append(examineQEMU(ctx), examineCloudHypervisor(ctx))
	list = append(append(list, examineJail(ctx)...), examineNetwork(ctx)...)
	list = append(list, examineSize(), examineTools(), examineAgent(), e.examineImages())
	return append(list, e.examineState(), e.examineServer(ctx))
}

func examineQEMU(ctx context.Context) []finding {
	dir, err := os.MkdirTemp("", "pd-")
	if err != nil {
		return []finding{{"qemu", missing, err.Error(), "give it a directory for temporary files with TMPDIR"}}
	}
	defer os.RemoveAll(dir)
	d, err := qemu.New(qemu.Config{RunDir: dir, Launcher: vmm.Direct{}})
	if err != nil {
		return []finding{{"qemu", missing, err.Error(), "apt-get install qemu-system-x86"}}
	}
	defer d.Close() //nolint:errcheck // it has no templates
	caps, err := d.Probe(ctx)
	if err != nil {
		return []finding{{"qemu", missing, err.Error(), "apt-get install qemu-system-x86, or name another with paddock up --qemu"}}
	}
	list := []finding{{"qemu", ok, fmt.Sprintf("%s, machine type %s", caps.Version, caps.Machine), ""}}
	if caps.Accel == "kvm" {
		list = append(list, finding{"kvm", ok, fmt.Sprintf("a guest ran with it in %s", caps.BootProbe.Round(time.Millisecond)), ""})
	} else {
		list = append(list, examineKVM())
	}
	return append(list, examineVsock(caps, d.VsockError(ctx)))
}

// examineVsock says by what QEMU's machines reach their agent, and why not by vsock.
func examineVsock(caps vmm.Caps, err error) finding {
	const instead = "; machines have a serial port, and no vsock"
	switch {
	case err == nil:
		return finding{"vsock", ok, "machines have it, and nobody listens on this host's whom they would reach", ""}
	case caps.Accel != "kvm":
		return finding{"vsock", note, err.Error() + instead, ""}
	}
	return finding{"vsock", degraded, err.Error() + instead, "for the faster way: modprobe -a vhost_vsock vsock_diag, and end who listens (ss --vsock -lp)"}
}

// examineKVM says why machines run without KVM.
func examineKVM() finding {
	const instead = "; machines run under TCG: correct, 10 to 50 times slower, and QEMU's project promises no isolation"
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err == nil {
		_ = f.Close()
		return finding{"kvm", degraded, "/dev/kvm is there, but no guest runs with it" + instead, "the hypervisor below this host is at fault: use another, or enable nested virtualisation there"}
	}
	if errors.Is(err, os.ErrPermission) {
		return finding{"kvm", degraded, "this user may not open /dev/kvm" + instead, "run as root, or: adduser " + envOr("USER", "YOU") + " kvm"}
	}
	return finding{"kvm", degraded, "no /dev/kvm" + instead, "use a host with hardware virtualisation (modprobe kvm_intel or kvm_amd), or enable it for this guest in the host below"}
}

// examineJail tries a jail, and gives a line more for each wall that this host cannot give.
func examineJail(ctx context.Context) []finding {
	l, err := jail.New(jail.Config{Self: []string{"/proc/self/exe", stub.Command}}) //nolint:contextcheck // it tries for milliseconds
	if err != nil {
		return []finding{{"jail", missing, err.Error(), "run as root; or paddock up --jail off, which starts VMMs without walls of their own"}}
	}
	defer l.Close() //nolint:errcheck // nothing is left in it
	p, err := l.Launch(ctx, vmm.Command{Name: "doctor", Path: "/bin/true"})
	if err == nil {
		err = p.Err()
	}
	if err != nil {
		return []finding{{"jail", missing, err.Error(), "paddock up --jail off starts VMMs without it"}}
	}
	lacks := l.Lacks()
	list := []finding{{"jail", ok, "namespaces, own root, no capabilities, resource limits", ""}}
	if len(lacks) == 0 {
		list[0].Detail += ", own uid, cgroup, filter of system calls: all walls"
	}
	for _, lack := range lacks {
		list = append(list, finding{lack.Name, degraded, lack.Why, jailAdvice(lack.Name)})
	}
	return list
}

// jailAdvice says what to do for a wall that is missing; docs/jail.md says more.
func jailAdvice(lack string) string {
	switch {
	case lack == jail.NoUID:
		return "run as root: without, a guest that escapes from its VMM is this user, in an empty root"
	case lack == jail.NoCgroup && os.Geteuid() != 0:
		return "run as root, or as a service with Delegate=yes: without, machines are not bounded in processor time and memory"
	case lack == jail.NoCgroup:
		return "mount a cgroup file system writable, or name a cgroup that is, with --cgroup-parent"
	case lack == jail.NoCgroup+".io":
		return "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1) and a kernel with CONFIG_BLK_CGROUP"
	case strings.HasPrefix(lack, jail.NoCgroup+"."):
		return "enable the controller: Delegate=yes in the service's unit, cgroup_enable=" + strings.TrimPrefix(lack, jail.NoCgroup+".") + " for the kernel"
	case lack == jail.NoSwap:
		return "boot with swapaccount=1, or turn swap off: swapoff -a"
	case lack == jail.NoSeccomp:
		return "use x86_64, and a kernel with CONFIG_SECCOMP_FILTER"
	}
	return "processes that do not die wait for a disk or a network file system: see dmesg; they are removed at the next start"
}

func examineSize() finding {
	mib := hostMemoryMiB()
	r, err := capacityOf(config{ReserveMemoryMiB: defaultReserve(mib), OvercommitVCPUs: 1, OvercommitMemory: 1})
	if err != nil {
		return finding{"size", degraded, err.Error(), "use a host with 2 GiB of memory at least"}
	}
	f := finding{"size", ok, fmt.Sprintf("%d processors; %d MiB of memory for machines, %d jobs of one vCPU at once", r.VCPUs, r.MemoryMiB, r.VCPUs), ""}
	if _, err := (host.Reader{}).Pressure("memory"); err != nil {
		f.Status, f.Advice = degraded, err.Error()
	}
	mib = r.MemoryMiB
	if mib < 1024 {
		f.Status, f.Advice = degraded, "a machine takes 256 MiB and more; use a host with 2 GiB at least"
	}
	return f
}

// tools build images; each is in a Debian package.
var tools = map[string]string{"mmdebstrap": "mmdebstrap", "mkfs.erofs": "erofs-utils", "mkfs.ext4": "e2fsprogs", "dpkg-deb": "dpkg", "depmod": "kmod", "xz": "xz-utils"}

func examineTools() finding {
	var lacks []string
	for tool, pkg := range tools {
		if _, err := exec.LookPath(tool); err == nil {
			continue
		}
		if _, err := os.Stat("/usr/sbin/" + tool); err != nil {
			lacks = append(lacks, pkg)
		}
	}
	slices.Sort(lacks)
	switch {
	case len(lacks) > 0:
		return finding{"image tools", degraded, "images cannot be built", "apt-get install " + strings.Join(lacks, " ")}
	case os.Geteuid() != 0:
		return finding{"image tools", degraded, "all are there, and building an image needs root", "sudo paddock image build base python"}
	}
	return finding{"image tools", ok, "images can be built", ""}
}

func examineAgent() finding {
	path, err := agentPath(os.Getenv("PADDOCK_AGENT"))
	if err != nil {
		return finding{"agent", missing, err.Error(), "put paddock-agent beside paddock, or name it with PADDOCK_AGENT"}
	}
	return finding{"agent", ok, path, ""}
}

func (e examination) examineImages() finding {
	dir := e.images
	if dir == "" {
		dir = filepath.Join(e.state, "images")
	}
	if _, err := os.Stat(dir); err != nil {
		return finding{"images", note, "none yet in " + dir, "paddock up builds what it needs, paddock image build all that you name"}
	}
	s, err := images.Open(dir)
	if err != nil {
		return finding{"images", degraded, err.Error(), "run as who owns it, or choose another with --image-dir"}
	}
	list, err := s.List()
	if err != nil {
		return finding{"images", degraded, err.Error(), "paddock image verify says which; build it anew"}
	}
	names := []string{}
	for _, i := range list {
		names = append(names, i.Name)
	}
	if len(names) == 0 {
		return finding{"images", note, "none yet in " + dir, "paddock up builds what it needs, paddock image build all that you name"}
	}
	return finding{"images", ok, strings.Join(names, ", ") + " in " + dir, ""}
}

// examineState looks at the directory that is there, or that would get the state directory.
func (e examination) examineState() finding {
	dir, err := filepath.Abs(e.state)
	if err != nil {
		return finding{"state", missing, err.Error(), ""}
	}
	there := dir
	for {
		if _, err := os.Stat(there); err == nil || there == filepath.Dir(there) {
			break
		}
		there = filepath.Dir(there)
	}
	if err := unix.Access(there, unix.W_OK|unix.X_OK); err != nil {
		return finding{"state", missing, fmt.Sprintf("%s: this user may not write to %s", dir, there), "run as root, or choose another with --state-dir"}
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(there, &st); err != nil {
		return finding{"state", missing, fmt.Sprintf("%s: %v", there, err), "choose another with --state-dir"}
	}
	free := float64(st.Bavail) * float64(st.Bsize) / (1 << 30)
	f := finding{"state", ok, fmt.Sprintf("%s, %.1f GiB free", dir, free), ""}
	if free < 4 {
		f.Status, f.Advice = degraded, "free some, or choose another --state-dir: an image takes about 0.4 GiB, events up to 8 GiB"
	}
	return f
}

func (e examination) examineServer(ctx context.Context) finding {
	c, err := client.Connect(e.nats, e.options...)
	if err != nil {
		return finding{"server", note, "none answers at " + e.nats, "start one with paddock up, or say where it is with --nats or PADDOCK_NATS"}
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	_, err = c.List(ctx, jobs.ListRequest{Limit: 1})
	if err != nil {
		return finding{"server", degraded, "a NATS server answers at " + e.nats + ", and no dispatcher", "start paddock up or paddock dispatcher, or say where it is with --nats or PADDOCK_NATS"}
	}
	return finding{"server", ok, "a dispatcher answers at " + e.nats, ""}
}
