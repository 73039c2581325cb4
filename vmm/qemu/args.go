package qemu

import (
	"fmt"
	"os"
	"strconv"

	"github.com/paddockvm/paddock/vmm"
)

// agentPort is the virtio-serial port on which the guest's agent serves.
const agentPort = "org.paddock.agent.0"

// Names of the disks in QEMU.
const (
	rootNode    = "root"
	scratchNode = "scratch"
)

// commandLine collects QEMU's arguments and the descriptors that go with them.
type commandLine struct {
	args  []string
	files []*os.File
}

func (c *commandLine) add(args ...string) { c.args = append(c.args, args...) }

// file hands f to QEMU and gives the number that it has there. Launchers number from 3.
func (c *commandLine) file(f *os.File) int {
	c.files = append(c.files, f)
	return 2 + len(c.files)
}

func (c *commandLine) closeFiles() {
	for _, f := range c.files {
		_ = f.Close()
	}
}

// base is what every QEMU of ours has: nothing that it need not have, paused at the start, obeying qmp.
func (c *commandLine) base(id string, platform manifest, qmp *os.File) {
	c.add("-name", id+",debug-threads=on", "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-S",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		// A state that was taken of a running machine has no such section, which repeats what the template's manifest says (checkpoint.go).
		// Without it QEMU 10.0 may not describe the state either: it aborts (qobject/json-writer.c). That is suppress-vmdesc, below.
		"-global", "migration.send-configuration=off",
		"-accel", accelArg(platform.Accel), "-cpu", platform.CPU,
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=off", c.file(qmp)), "-mon", "chardev=qmp,mode=control")
}

// accelArg bounds the cache of translated code: QEMU's own default is 1 GiB for each machine.
func accelArg(accel string) string {
	if accel == accelTCG {
		return "tcg,thread=multi,tb-size=64"
	}
	return accel
}

// devices are the machine's. Their order and kind are part of a template: clones must have the same.
func (c *commandLine) devices(b vmm.Boot, platform manifest, limits vmm.DiskLimits, f machineFiles) {
	share := "off" // MAP_PRIVATE: the clones' writes are their own
	if f.shareMemory {
		share = "on"
	}
	c.add("-machine", platform.Machine+",memory-backend=ram,mem-merge=off,dump-guest-core=off,usb=off,vmport=off,suppress-vmdesc=on",
		"-smp", smp(b), "-m", memorySize(b),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=%s,share=%s", b.MemoryMiB, procFDNumber(c.file(f.memory)), share),
		// Without it the option ROM kvmvapic is in a template's state and its restore fails.
		"-global", "apic-common.vapic=off",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d,server=off", c.file(f.console)), "-serial", "chardev:console",
		"-device", "virtio-rng-pci",
		"-device", "pvpanic-pci",
		"-object", "main-loop,id=main-loop,thread-pool-max="+strconv.Itoa(ioThreads))
	if f.lease != nil {
		c.vsock(f.lease)
	} else {
		c.add("-device", "virtio-serial-pci",
			"-chardev", fmt.Sprintf("socket,id=agent,fd=%d,server=on,wait=off", c.file(f.agent)),
			"-device", "virtserialport,chardev=agent,name="+agentPort)
	}
	c.throttle(limits)
	if f.root != nil {
		c.disk(rootNode, f.root, limits, "read-only=on,auto-read-only=off")
	}
	if f.scratch != nil {
		// The copy dies with the machine: nothing of it need ever reach the disk, and what the guest discards is given back.
		c.disk(scratchNode, f.scratch, limits, "cache.no-flush=on,discard=unmap")
	}
	if f.tap != nil {
		c.nic(f.tap)
	}
}

// throttle is what bounds all of a machine's disks together (docs/throttle.txt in QEMU's source).
func (c *commandLine) throttle(l vmm.DiskLimits) {
	if l == (vmm.DiskLimits{}) {
		return
	}
	// 0 is no limit there too.
	group := fmt.Sprintf(`{"qom-type":"throttle-group","id":"disks","limits":{"bps-total":%d,"iops-total":%d}}`, l.BytesPerSecond, l.OpsPerSecond)
	c.add("-object", group)
}

// disk adds a raw image by its descriptor. Locking is off: the root is shared, and nobody else can open the scratch copy.
func (c *commandLine) disk(name string, f *os.File, limits vmm.DiskLimits, options string) {
	fd, node := c.file(f), name
	if limits != (vmm.DiskLimits{}) {
		node += "-file"
	}
	c.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, fd),
		"-blockdev", fmt.Sprintf("driver=file,node-name=%s,filename=/dev/fdset/%d,locking=off,%s", node, fd, options))
	if node != name {
		c.add("-blockdev", fmt.Sprintf("driver=throttle,node-name=%s,throttle-group=disks,file=%s,%s", name, node, options))
	}
	// A full host disk is the guest's I/O error, and noted (event.go); by default QEMU would pause the machine and wait for an operator.
	c.add("-device", "virtio-blk-pci,rerror=report,werror=report,drive="+name)
}

// machineFiles are open files of a machine, all of them for QEMU.
type machineFiles struct {
	memory        *os.File
	shareMemory   bool
	console       *os.File
	agent         *os.File // the listening socket of the serial port; nil where there is a lease
	lease         *lease   // of a vsock device
	root, scratch *os.File // nil: none
	tap           *os.File // nil: no network card
}
