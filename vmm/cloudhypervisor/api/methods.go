package api

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
)

// Ping gives the VMM's version. It answers before there is a machine.
func (c *Client) Ping(ctx context.Context) (Ping, error) {
	var p Ping
	err := c.get(ctx, "vmm.ping", &p)
	return p, err
}

// ShutdownVMM ends the VMM, and its machine at once.
func (c *Client) ShutdownVMM(ctx context.Context) error { return c.order(ctx, "vmm.shutdown") }

// Create tells what the machine is. It runs with Boot.
func (c *Client) Create(ctx context.Context, v VM) error {
	_, err := c.put(ctx, "vm.create", v)
	return err
}

// Boot starts the machine that was created.
func (c *Client) Boot(ctx context.Context) error { return c.order(ctx, "vm.boot") }

// Pause and Resume stop its processors and let them run. Pausing a paused machine is refused, and so is resuming a running one.
func (c *Client) Pause(ctx context.Context) error  { return c.order(ctx, "vm.pause") }
func (c *Client) Resume(ctx context.Context) error { return c.order(ctx, "vm.resume") }

// Shutdown ends the machine at once, and not the VMM: it can be booted again. PowerButton asks its guest to do so; one of Paddock's images,
// which has no driver for buttons, does not hear of it.
func (c *Client) Shutdown(ctx context.Context) error    { return c.order(ctx, "vm.shutdown") }
func (c *Client) PowerButton(ctx context.Context) error { return c.order(ctx, "vm.power-button") }

// Reboot ends the machine at once and boots it anew. Delete forgets it: another can be created.
func (c *Client) Reboot(ctx context.Context) error { return c.order(ctx, "vm.reboot") }
func (c *Client) Delete(ctx context.Context) error { return c.order(ctx, "vm.delete") }

// Info tells what there is. Where there is no machine it is refused: 404 from v53 on, 500 before.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var i Info
	err := c.get(ctx, "vm.info", &i)
	return i, err
}

// Counters counts what each device has done, by its id and the counter's name. Latencies, shortest and longest, are the largest number that
// there is as long as nothing was done (virtio-devices/src/block.rs), which the description's int64 does not hold.
func (c *Client) Counters(ctx context.Context) (map[string]map[string]uint64, error) {
	var m map[string]map[string]uint64
	err := c.get(ctx, "vm.counters", &m)
	return m, err
}

// Resize changes processors or memory of a running machine. What it gives up its guest has to let go of first; 429 says that it has not
// yet from the last time.
func (c *Client) Resize(ctx context.Context, r Resize) error {
	_, err := c.put(ctx, "vm.resize", r)
	return err
}

// ResizeDisk gives a raw disk a new size of whole sectors, and its file too. The guest sees it a little later.
func (c *Client) ResizeDisk(ctx context.Context, r ResizeDisk) error {
	_, err := c.put(ctx, "vm.resize-disk", r)
	return err
}

// ResizeZone offers the guest more memory of a zone, or wants some back. The guest takes it, or gives it, when it likes: Info tells what it
// has. It is refused where just that was asked for last (virtio-devices/src/mem.rs, VirtioMemConfig.resize).
func (c *Client) ResizeZone(ctx context.Context, r ResizeZone) error {
	_, err := c.put(ctx, "vm.resize-zone", r)
	return err
}

// AddDisk, AddVsock and AddNet add a device, to a running machine or to what is created. A card's tap goes with AddNet, as a descriptor
// for each pair of queues: vm.create takes none.
func (c *Client) AddDisk(ctx context.Context, d Disk) (Added, error) {
	return c.add(ctx, "vm.add-disk", d)
}
func (c *Client) AddVsock(ctx context.Context, v Vsock) (Added, error) {
	return c.add(ctx, "vm.add-vsock", v)
}
func (c *Client) AddNet(ctx context.Context, n Net, taps ...*os.File) (Added, error) {
	return c.add(ctx, "vm.add-net", n, taps...)
}

// AddDevice adds a device of the host's by VFIO, named by its path in sysfs.
func (c *Client) AddDevice(ctx context.Context, d Device) (Added, error) {
	return c.add(ctx, "vm.add-device", d)
}

func (c *Client) add(ctx context.Context, path string, device any, files ...*os.File) (a Added, err error) {
	b, err := c.put(ctx, path, device, files...)
	if err != nil || len(b) == 0 { // nothing to say of a machine that does not run
		return a, err
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, fmt.Errorf("%s: read the answer: %w", path, err)
	}
	return a, nil
}

// RemoveDevice takes a device away. The guest lets go of it when it likes; an event tells, and Counters has it no more.
func (c *Client) RemoveDevice(ctx context.Context, id string) error {
	_, err := c.put(ctx, "vm.remove-device", RemoveDevice{ID: id})
	return err
}

// Snapshot writes a paused machine into the directory of destination ("file:///path").
func (c *Client) Snapshot(ctx context.Context, destination string) error {
	_, err := c.put(ctx, "vm.snapshot", Snapshot{Destination: destination})
	return err
}

// Restore makes a machine of a snapshot. taps are those of all r.NetFDs, in that order.
func (c *Client) Restore(ctx context.Context, r Restore, taps ...*os.File) error {
	_, err := c.put(ctx, "vm.restore", r, taps...)
	return err
}

// order is a request without a body.
func (c *Client) order(ctx context.Context, path string) error {
	_, err := c.put(ctx, path, nil)
	return err
}
