package match

import (
	"slices"
	"strings"

	"github.com/paddockvm/paddock/jobs"
)

// kindOf is what tells whether a worker can take an item, and how it is taken there.
type kindOf struct {
	image, network, requires string
	resources                jobs.Resources
	hurry                    bool
	avoid                    string // names, sorted and joined by commas
}

// offers tells whether the worker has the image, the networks and the labels for items of the kind, apart from room.
func (w *Worker) offers(k *kindOf) bool {
	if w.Images != nil {
		if _, ok := w.Images[k.image]; !ok {
			return false
		}
	}
	if k.network != "" {
		for need := range strings.SplitSeq(k.network, ",") {
			if !slices.Contains(w.Networks, need) {
				return false
			}
		}
	}
	if k.requires != "" {
		for need := range strings.SplitSeq(k.requires, ",") {
			label, value, _ := strings.Cut(need, "=")
			if has, ok := w.Labels[label]; !ok || has != value {
				return false
			}
		}
	}
	return true
}

// avoided tells whether items of the kind should not go to the worker.
func (k *kindOf) avoided(name string) bool {
	if k.avoid == "" {
		return false
	}
	for avoid := range strings.SplitSeq(k.avoid, ",") {
		if avoid == name {
			return true
		}
	}
	return false
}

// sizeOn is a machine's size on a worker: the item's, else the image's there, else the least.
func (w *Worker) sizeOn(image string, r jobs.Resources) jobs.Resources {
	if r.VCPUs > 0 && r.MemoryMiB > 0 {
		return r
	}
	d := w.Images[image]
	if r.VCPUs <= 0 {
		r.VCPUs = max(d.VCPUs, 1)
	}
	if r.MemoryMiB <= 0 {
		r.MemoryMiB = max(d.MemoryMiB, 1)
	}
	return r
}

// start is how an item would start on a worker, the quickest first.
type start int

const (
	ready    start = iota // in a machine that waits
	restored              // in one that is made of a template
	built                 // in one of a template that has to be built first
)

// starts tells how an item of the kind would start. A machine that waits is of another shape, or of an image as it was, where the worker says
// that it has no such template.
func (w *Worker) starts(k *kindOf) start {
	switch {
	case w.Templates != nil && !w.hasTemplate(k):
		return built
	case w.Warm[k.image] > 0:
		return ready
	}
	return restored
}

// hasTemplate tells whether the worker says that it has the template of a machine for items of the kind. How far that can grow is not known
// here: it is taken for one that cannot. A snapshot is a template.
func (w *Worker) hasTemplate(k *kindOf) bool {
	return jobs.SnapshotTenant(k.image) != "" || slices.Contains(w.Templates[k.image], jobs.Shape{Resources: jobs.MachineSize(k.resources, w.Images[k.image]), NIC: jobs.NeedsNIC(k.network)})
}

// could tells whether the worker could take items of the kind if it were idle.
func (w *Worker) could(k *kindOf) bool {
	return !w.Draining && w.offers(k) && within(w.sizeOn(k.image, k.resources), w.Capacity)
}

// within tells whether a machine has room.
func within(size, room jobs.Resources) bool {
	return size.VCPUs <= room.VCPUs && size.MemoryMiB <= room.MemoryMiB
}

// steps is into how many parts a worker's room is divided where two are compared: what is nearly the same is the same.
const steps = 64

// left is what the worker would have left of the scarcer of processors and memory, in steps of all that it has.
func (w *Worker) left(size jobs.Resources) int {
	part := func(free, of int) int { return free * steps / max(of, free, 1) }
	return min(part(w.Free.VCPUs-size.VCPUs, w.Capacity.VCPUs), part(w.Free.MemoryMiB-size.MemoryMiB, w.Capacity.MemoryMiB))
}

func (w *Worker) take(image string, size jobs.Resources) {
	w.Slots--
	w.Free.VCPUs -= size.VCPUs
	w.Free.MemoryMiB -= size.MemoryMiB
	if w.Warm[image] > 0 {
		w.Warm[image]--
	}
}
