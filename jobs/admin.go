package jobs

import "time"

// WorkerInfo is what is known of a worker.
type WorkerInfo struct {
	// Name is unique in the fleet.
	Name string `json:"name"`
	// State is "ready", "cordoned" (gets no more jobs), "draining" (neither, and has some), "drained" (has none) or "lost".
	State string `json:"state"`
	// Pool is the pool that it is in; jobs ask for one.
	Pool string `json:"pool"`
	// Labels are its own: jobs may require them.
	Labels map[string]string `json:"labels,omitempty"`
	// Version is its build.
	Version string `json:"version,omitempty"`
	// Contract is the version of what workers and dispatchers say to each other that it speaks.
	Contract int `json:"contract,omitempty"`
	// Driver is what its machines are.
	Driver string `json:"driver,omitempty"`
	// Degraded are the walls around a machine that its host cannot give.
	Degraded []string `json:"degraded,omitempty"`
	// Capacity is its host's, as far as Paddock may use it.
	Capacity Resources `json:"capacity,omitzero"`
	// Images are the names of those that it can run. Where a list of workers would be more than a message takes, snapshots are left out of it, or all.
	Images []string `json:"images,omitempty"`
	// Networks are what it offers of networks: policies besides "none", "ipv6", "ports".
	Networks []string `json:"networks,omitempty"`
	// Running is how many attempts it has.
	Running int `json:"running"`
	// SeenAt is when it was last heard of, by the dispatcher's clock.
	SeenAt time.Time `json:"seen_at,omitzero"`
	// DrainBy is when what it still has is given to others.
	DrainBy time.Time `json:"drain_by,omitzero"`
}

// States of a WorkerInfo.
const (
	FleetReady    = "ready"
	FleetCordoned = "cordoned"
	FleetDraining = "draining"
	FleetDrained  = "drained"
	FleetLost     = "lost"
)

// FleetRequest is about one worker, or all where it names none.
type FleetRequest struct {
	// Worker is its name.
	Worker string `json:"worker,omitempty"`
	// WithinMS is how long a worker that is drained may keep what it has, in milliseconds; then it is given to others, at no cost to its
	// retries. 0 lets it end by itself.
	WithinMS int64 `json:"within_ms,omitempty"`
}

// FleetReply answers a FleetRequest: the workers that it is about, as they are now.
type FleetReply struct {
	// Workers are all of them, by name, or the one that the request names.
	Workers []WorkerInfo `json:"workers,omitzero"`
	// Warnings name unknown fields of the request and the nearest known ones.
	Warnings []string `json:"warnings,omitempty"`
	// Error is why nothing was done.
	Error *Error `json:"error,omitempty"`
}

// DeadRequest names a dead job, to run it again or to drop it.
type DeadRequest struct {
	// ID is the job's.
	ID string `json:"id"`
}

// DeadReply answers a DeadRequest: the new job, or the one that was dropped.
type DeadReply struct {
	// Job is the new one, with "redrive_of", or the one that was dropped; without its spec.
	Job *Job `json:"job,omitempty"`
	// Warnings name unknown fields of the request and the nearest known ones.
	Warnings []string `json:"warnings,omitempty"`
	// Error is why nothing was done.
	Error *Error `json:"error,omitempty"`
}

var (
	_ request = (*FleetRequest)(nil)
	_ request = (*DeadRequest)(nil)
)

func (r *FleetRequest) check(c *checker) {
	c.name("worker", r.Worker)
	c.within("within_ms", r.WithinMS, maxTTLMS)
}

func (r *DeadRequest) check(c *checker) { c.name("id", r.ID) } // an id that is none is nobody's
