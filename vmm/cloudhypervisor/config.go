package cloudhypervisor

import (
	"encoding/json"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor/api"
)

// Names of devices. A snapshot's state has them too.
const (
	memoryZone  = "memory"
	rootDisk    = "root"
	scratchDisk = "scratch"
	vsockID     = "vsock"
	netID       = "net"
	diskLimits  = "disks"
)

// guestCID is the guest's address in its own vsock; the host's side of each is a unix socket of its own, so all have the same.
const guestCID = 3

// landlock says whether the VMM may be told to restrict itself to the files of its machine: it wants version 3 of the kernel's ABI, which
// is in Linux 6.2 (landlock(7)). Where it cannot, the jail is the wall that there is.
func landlock() bool {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	return errno == 0 && version >= 3
}

// cold is a machine to boot. Its network card is added afterwards.
func (d *Driver) cold(b vmm.Boot) api.VM {
	v := api.VM{
		CPUs: api.CPUs{Boot: b.VCPUs, Max: max(b.VCPUs, b.MaxVCPUs), Scheduling: "Vm"},
		Memory: api.Memory{Zones: []api.Zone{{
			ID: memoryZone, Size: int64(b.MemoryMiB) << 20, File: fdPath(dirFD, memoryFile), Shared: true, HotplugSize: headroom(b),
		}}},
		Payload: api.Payload{Kernel: fdPath(extraFD), Cmdline: b.Cmdline},
		Vsock:   &api.Vsock{ID: vsockID, CID: guestCID, Socket: fdPath(dirFD, vsockSocket)},
		PVPanic: true,
	}
	if headroom(b) > 0 {
		v.Memory.HotplugMethod = "VirtioMem"
	}
	if b.Initrd != "" {
		v.Payload.Initramfs = fdPath(initrdFD)
	}
	group := ""
	if v.Limits = groups(d.cfg.Disk); v.Limits != nil {
		group = diskLimits
	}
	if b.Root != "" {
		v.Disks = append(v.Disks, api.Disk{ID: rootDisk, Path: fdPath(rootFD), ReadOnly: true, ImageType: "Raw", Limits: group})
	}
	if b.Scratch != "" {
		v.Disks = append(v.Disks, api.Disk{ID: scratchDisk, Path: fdPath(scratchFD), ImageType: "Raw", Limits: group})
	}
	walls(&v)
	return v
}

// walls sets what every machine has: a console to a pipe, entropy, and the VMM kept to its files. The machine's directory is where a
// snapshot is written to.
func walls(v *api.VM) {
	v.Serial = api.Console{Mode: "File", File: fdPath(dirFD, consolePipe)}
	v.Console = api.Console{Mode: "Off"}
	v.RNG = api.RNG{Source: "/dev/urandom"}
	if v.Landlock = landlock(); v.Landlock {
		v.Rules = []api.PathRule{{Path: fdPath(dirFD), Access: "rw"}}
	}
}

// refill is in what time a limiter's bucket fills: long beside the 100 ms that Cloud Hypervisor rests once one is empty (docs/io_throttling.md).
const refill = 1000 // ms

// groups are the one that all disks of a machine are in; none where nothing is bounded.
func groups(l vmm.DiskLimits) []api.Limits {
	if l == (vmm.DiskLimits{}) {
		return nil
	}
	var r api.Limiter
	if l.BytesPerSecond > 0 {
		r.Bandwidth = &api.Bucket{Size: l.BytesPerSecond * refill / 1000, RefillTime: refill}
	}
	if l.OpsPerSecond > 0 {
		r.Ops = &api.Bucket{Size: l.OpsPerSecond * refill / 1000, RefillTime: refill}
	}
	return []api.Limits{{ID: diskLimits, Limiter: r}}
}

// clone makes of the configuration that a snapshot holds that of a clone: its memory is the template's file, mapped private; what
// is the template's alone goes, and what is the host's is set. Devices, their names and places stay: the state knows them.
func (d *Driver) clone(saved []byte) ([]byte, error) {
	var c map[string]any
	if err := json.Unmarshal(saved, &c); err != nil {
		return nil, fmt.Errorf("read %s: %w", configFile, err)
	}
	memory, _ := c["memory"].(map[string]any)
	zones := objects(memory["zones"])
	if len(zones) != 1 || zones[0]["id"] != memoryZone {
		return nil, fmt.Errorf("%s does not have the one zone of memory that templates have", configFile)
	}
	memory["shared"], memory["thp"] = false, false
	zones[0]["shared"], zones[0]["file"] = false, fdPath(extraFD, memoryFile)
	c["vsock"] = api.Vsock{ID: vsockID, CID: guestCID, Socket: fdPath(dirFD, vsockSocket)}
	c["serial"] = api.Console{Mode: "File", File: fdPath(dirFD, consolePipe)}
	// Nothing is booted anew.
	c["payload"] = map[string]any{"kernel": "/dev/null"}
	limits := groups(d.cfg.Disk)
	c["rate_limit_groups"] = limits
	paths := map[any]string{rootDisk: fdPath(rootFD), scratchDisk: fdPath(scratchFD)}
	for _, disk := range objects(c["disks"]) {
		disk["path"] = paths[disk["id"]]
		if delete(disk, "rate_limit_group"); limits != nil {
			disk["rate_limit_group"] = diskLimits
		}
	}
	for _, card := range objects(c["net"]) {
		// That of the template's tap, which v53 notes and would set.
		card["host_mac"], card["mtu"] = nil, nil
	}
	// What the template was told of landlock may not hold on this kernel.
	c["landlock_enable"] = landlock()
	return json.Marshal(c)
}

// objects gives the objects of a list.
func objects(list any) (all []map[string]any) {
	l, _ := list.([]any)
	for _, e := range l {
		if o, ok := e.(map[string]any); ok {
			all = append(all, o)
		}
	}
	return all
}
