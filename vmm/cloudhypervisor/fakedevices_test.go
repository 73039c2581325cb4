package cloudhypervisor_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
)

// fakeDisk is a disk of a fake's machine, and what was done to it.
type fakeDisk struct {
	id, path      string
	readOnly      bool
	reads, writes fakeCount
}

type fakeCount struct{ ops, bytes uint64 }

func (c *fakeCount) add(bytes int) {
	c.ops++
	c.bytes += uint64(bytes)
}

// openDisk opens a disk as it is configured.
func (v *fakeVMM) openDisk(config map[string]any) (*fakeDisk, error) {
	d := &fakeDisk{id: fmt.Sprint(config["id"]), readOnly: config["readonly"] == true}
	flag := os.O_RDWR
	if d.readOnly {
		flag = os.O_RDONLY
	}
	var err error
	if d.path, err = v.own(fmt.Sprint(config["path"])); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.path, flag, 0)
	if err != nil {
		return nil, err
	}
	return d, f.Close()
}

// counters are those of disks and of network cards, which nothing goes through.
func (v *fakeVMM) counters() (any, error) {
	if err := v.runs("The VM info is not available"); err != nil {
		return nil, err
	}
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	all := map[string]map[string]uint64{}
	for _, d := range v.guest.disks {
		all[d.id] = map[string]uint64{
			"read_ops": d.reads.ops, "read_bytes": d.reads.bytes, "write_ops": d.writes.ops, "write_bytes": d.writes.bytes,
			"read_latency_min": math.MaxUint64, // there is none
		}
	}
	for _, card := range objectsOf(v.config["net"]) {
		all[fmt.Sprint(card["id"])] = map[string]uint64{"rx_bytes": 0, "rx_frames": 0, "tx_bytes": 0, "tx_frames": 0}
	}
	return all, nil
}

func objectsOf(list any) (all []map[string]any) {
	l, _ := list.([]any)
	for _, e := range l {
		all = append(all, e.(map[string]any))
	}
	return all
}

// lists are where a machine's configuration has its devices, by what a request calls them; there is one vsock at most.
var lists = map[string]string{"disk": "disks", "net": "net", "device": "devices"}

func (v *fakeVMM) add(kind string, body []byte, fds int) (any, error) {
	what := "The " + map[string]string{"disk": "disk", "net": "network device", "vsock": "vsock device", "device": "device"}[kind] + " could not be added to the VM"
	if err := v.exists(what); err != nil {
		return nil, err
	}
	var device map[string]any
	if err := json.Unmarshal(body, &device); err != nil {
		return nil, &refused{400, []string{"Failed to deserialize JSON"}}
	}
	if kind == "vsock" && v.config["vsock"] != nil {
		return nil, internal(what, "Too many virtio-vsock devices")
	}
	if slices.Contains(v.ids(), device["id"]) {
		return nil, internal(what, "Failed to validate config", fmt.Sprintf("Identifier %v is not unique", device["id"]))
	}
	if kind == "net" {
		if fds == 0 {
			return nil, internal(what, "no tap")
		}
		device["fds"] = []int{-1}
		device["host_mac"] = "02:00:00:00:00:01" // v53 notes the tap's
	}
	if err := v.plug(kind, device); err != nil {
		return nil, internal(what, "Error from device manager", err.Error())
	}
	if kind == "vsock" {
		v.config["vsock"] = device
	} else {
		list, _ := v.config[lists[kind]].([]any)
		v.config[lists[kind]] = append(list, device)
	}
	if !v.booted() {
		return nil, nil
	}
	return map[string]any{"id": device["id"], "bdf": "0000:00:07.0"}, nil
}

// ids are those of all devices that a configuration has.
func (v *fakeVMM) ids() (all []any) {
	for _, list := range lists {
		for _, d := range objectsOf(v.config[list]) {
			all = append(all, d["id"])
		}
	}
	if vsock, is := v.config["vsock"].(map[string]any); is {
		all = append(all, vsock["id"])
	}
	return all
}

// plug gives a machine that was booted a device.
func (v *fakeVMM) plug(kind string, device map[string]any) error {
	if !v.booted() {
		return nil
	}
	switch kind {
	case "disk":
		d, err := v.openDisk(device)
		if err != nil {
			return err
		}
		v.guest.mu.Lock()
		defer v.guest.mu.Unlock()
		v.guest.disks = append(v.guest.disks, d)
	case "device":
		_, err := os.Stat(fmt.Sprint(device["path"]))
		return err
	}
	return nil
}

// remove takes a device away. The guest of a fake lets go of it at once.
func (v *fakeVMM) remove(body []byte) error {
	const what = "The device could not be removed from the VM"
	if err := v.exists(what); err != nil {
		return err
	}
	var r struct{ ID string }
	_ = json.Unmarshal(body, &r)
	is := func(d any) bool { return d.(map[string]any)["id"] == r.ID }
	found := false
	for _, name := range lists {
		list, _ := v.config[name].([]any)
		if slices.ContainsFunc(list, is) {
			found, v.config[name] = true, slices.DeleteFunc(list, is)
		}
	}
	if !found && v.booted() {
		return internal(what, "Error from device manager", "Failed to find device corresponding to the given identifier: "+r.ID)
	}
	if !found {
		return internal(what, fmt.Sprintf("No device with id %q to remove", r.ID))
	}
	if !v.booted() {
		return nil
	}
	v.guest.mu.Lock()
	v.guest.disks = slices.DeleteFunc(v.guest.disks, func(d *fakeDisk) bool { return d.id == r.ID })
	v.guest.mu.Unlock()
	v.event("vm", "device-removed")
	return nil
}

// resize changes the number of processors, where that can change at all, and no memory that is in zones.
func (v *fakeVMM) resize(body []byte) error {
	const what = "The VM could not be resized"
	if err := v.exists(what); err != nil || !v.booted() {
		return err
	}
	var r struct{ Desired_vcpus, Desired_ram *int64 }
	_ = json.Unmarshal(body, &r)
	if r.Desired_vcpus != nil {
		if err := v.setVCPUs(what, int(*r.Desired_vcpus)); err != nil {
			return err
		}
	}
	if r.Desired_ram != nil {
		return internal(what, "Memory manager error", "Impossible to resize guest memory if it is backed by user defined memory regions")
	}
	return nil
}

// setVCPUs lets its guest let go of processors a little later: after the next request of that kind.
func (v *fakeVMM) setVCPUs(what string, n int) error {
	cpus, _ := v.config["cpus"].(map[string]any)
	boot, _ := cpus["boot_vcpus"].(float64)
	most, _ := cpus["max_vcpus"].(float64)
	if v.vcpus == 0 {
		v.vcpus = int(boot)
	}
	if v.leaving > 0 && v.state == "Running" && !v.keeps {
		if v.asked++; v.asked == 2 {
			v.vcpus, v.leaving = v.vcpus-v.leaving, 0
		}
	}
	switch {
	case n == v.vcpus || most == boot:
		return nil // also while some are leaving
	case n < 1:
		return internal(what, "Error from CPU manager", "Requested zero vCPUs")
	case v.leaving > 0:
		return &refused{429, []string{"Too Many Requests"}}
	case n > int(most):
		return internal(what, "Error from CPU manager", "Requested vCPUs exceed maximum")
	case n > v.vcpus:
		v.vcpus = n
	default:
		v.leaving, v.asked = v.vcpus-n, 0
	}
	return nil
}

// blockBytes is what a zone's headroom is a multiple of, and unitBytes what a guest takes of it.
const (
	blockBytes = 128 << 20
	unitBytes  = 2 << 20
)

// growable refuses headroom that a zone cannot have.
func growable(memory, zone map[string]any) error {
	headroom, _ := zone["hotplug_size"].(float64)
	switch {
	case headroom == 0:
		return nil
	case memory["hotplug_method"] != "VirtioMem":
		return errors.New("Invalid hotplug method associated with memory zones resizing capability")
	case int64(headroom)%blockBytes != 0:
		return errors.New("Virtio-mem size is not aligned with 134217728")
	}
	return nil
}

// has is how much memory the guest has. It takes what it is offered, and gives back what it is to, a little later: after who asks has seen
// that it did not yet.
func (v *fakeVMM) has() (n int64) {
	memory, _ := v.config["memory"].(map[string]any)
	for _, zone := range objectsOf(memory["zones"]) {
		n += int64(zone["size"].(float64))
	}
	n += v.taken
	if v.seen && v.state == "Running" && (v.offered > v.taken || !v.hoards) {
		v.taken = v.offered
	}
	v.seen = true
	return n
}

// resizeZone offers the guest memory, or wants it back.
func (v *fakeVMM) resizeZone(body []byte) error {
	const what = "The memory zone could not be resized"
	if err := v.exists(what); err != nil {
		return err
	}
	var r struct {
		ID          string
		Desired_ram int64
	}
	_ = json.Unmarshal(body, &r)
	memory, _ := v.config["memory"].(map[string]any)
	zones := objectsOf(memory["zones"])
	i := slices.IndexFunc(zones, func(z map[string]any) bool { return z["id"] == r.ID })
	if i < 0 {
		return internal(what, "Failed resizing a memory zone")
	}
	zone := zones[i]
	if !v.booted() {
		zone["size"] = float64(r.Desired_ram)
		return nil
	}
	headroom, _ := zone["hotplug_size"].(float64)
	size := int64(zone["size"].(float64))
	offer := r.Desired_ram - size
	invalid := func(why string, args ...any) error {
		return internal(what, "Memory manager error", "Failed to virtio-mem resize", "Resize invalid argument",
			"Failed to update virtio configuration: ResizeError("+fmt.Sprintf(why, args...)+")")
	}
	switch {
	case offer < 0:
		return internal(what, "Memory manager error", fmt.Sprintf("Invalid resize request: desired_size = %d below boot size = %d", r.Desired_ram, size))
	case headroom == 0:
		return internal(what, "Memory manager error", "No virtio-mem resizing handler found")
	case offer == v.offered:
		return invalid("new size %#x and requested_size are identical", offer)
	case offer > int64(headroom):
		return invalid("new size %#x is bigger than region_size %#x", offer, int64(headroom))
	case offer%unitBytes != 0:
		return invalid("new size %#x is not aligned on block_size %#x", offer, unitBytes)
	}
	v.offered, v.seen, zone["hotplugged_size"] = offer, false, float64(offer)
	return nil
}

func (v *fakeVMM) resizeDisk(body []byte) error {
	const what = "The disk could not be resized"
	if err := v.exists(what); err != nil {
		return err
	}
	if !v.booted() {
		return internal(what, "Failed resizing a disk image")
	}
	var r struct {
		ID           string
		Desired_size int64
	}
	_ = json.Unmarshal(body, &r)
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	for _, d := range v.guest.disks {
		switch {
		case d.id != r.ID:
		case r.Desired_size%512 != 0:
			return internal(what, "Error from device manager", "Disk resize error", "Disk image size is not a multiple of 512")
		case d.readOnly:
			return internal(what, "Error from device manager", "Disk resize error", "Disk resize failed", "Invalid argument (os error 22)")
		default:
			return os.Truncate(d.path, r.Desired_size)
		}
	}
	return internal(what, "Error from device manager", "Failed to find device corresponding to the given identifier: "+r.ID)
}
