package jobs

import "time"

// This file is what workers and dispatchers say to each other (paddock.v1.fleet.*).

// Held names one attempt that a worker has. (Attempt, Epoch) fence it: every change of the ledger checks both.
type Held struct {
	Job     string `json:"job"`
	Attempt int    `json:"attempt"`
	// Epoch is the lease's fencing epoch, new with every lease of the job.
	Epoch int64 `json:"epoch"`
	// Running says that the first step has started.
	Running bool `json:"running,omitempty"`
}

// Lease is one attempt given to a worker.
type Lease struct {
	Held
	Tenant string `json:"tenant"`
	Spec   Spec   `json:"spec"`
	// Image is what the spec asks for, resolved from the language where the spec names none.
	Image string `json:"image"`
	// QueuedMS is how long the job waited.
	QueuedMS float64 `json:"queued_ms"`
	// AcceptedAt is when the job was accepted, by the dispatcher's clock.
	AcceptedAt time.Time `json:"accepted_at"`
}

// LeaseRequest asks for attempts; it is answered when there are any or WaitMS is over.
type LeaseRequest struct {
	Worker string `json:"worker"`
	// Session is the worker's, from its first heartbeat.
	Session int64 `json:"session"`
	// Slots is how many attempts it takes at most.
	Slots int `json:"slots"`
	// Free is what is left of the host.
	Free Resources `json:"free"`
	// Warm counts the machines that are ready, by image name.
	Warm   map[string]int `json:"warm,omitempty"`
	WaitMS int64          `json:"wait_ms"`
}

// LeaseReply answers a LeaseRequest. Leases of a worker that never answers again run out like any other.
type LeaseReply struct {
	Leases []Lease `json:"leases,omitempty"`
	Error  *Error  `json:"error,omitempty"`
}

// OfferedImage is an image that a worker can run.
type OfferedImage struct {
	Name string `json:"name"`
	// Digest is the image manifest's.
	Digest    string    `json:"digest"`
	Resources Resources `json:"resources"`
	// NoRoot says that no step may run as root.
	NoRoot bool `json:"no_root,omitempty"`
	// Snapshot says that its machines are clones of one that lived already: they have just these Resources, and a network card where NIC.
	Snapshot bool `json:"snapshot,omitempty"`
	NIC      bool `json:"nic,omitempty"`
}

// Beat is a worker's heartbeat, every 2 s. The first, with Session 0, registers it.
type Beat struct {
	Worker  string `json:"worker"`
	Session int64  `json:"session"`
	// Instance is this worker process's own, chosen at random: it tells a worker that registers again from another of the same name.
	Instance string `json:"instance,omitempty"`
	// Version is the worker's build.
	Version string `json:"version"`
	// Capacity is the whole host's, as far as Paddock may use it.
	Capacity Resources      `json:"capacity"`
	Images   []OfferedImage `json:"images,omitempty"`
	Networks []string       `json:"networks,omitempty"` // what it offers of networks: policies besides none, "ipv6", "ports"
	Driver   string         `json:"driver"`
	Degraded []string       `json:"degraded,omitempty"`
	Running  []Held         `json:"running,omitempty"`
	Draining bool           `json:"draining,omitempty"`
	// Pool is the worker's; empty means "default". Labels are what jobs may require of it.
	Pool   string            `json:"pool,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Warm counts the machines that are ready, by image name.
	Warm map[string]int `json:"warm,omitempty"`
	// Templates are the shapes of machines of which the template is on this host's disk, by image name: of others it has to be built first, but
	// for those of snapshots, which are templates themselves and not named here.
	// Nil: the worker does not say.
	Templates map[string][]Shape `json:"templates,omitzero"`
	// Contract is the version of what workers and dispatchers say to each other that the worker speaks; 0, of a worker that does not say, is 1.
	Contract int `json:"contract,omitempty"`
}

// Contract is the version of what workers and dispatchers say to each other. A dispatcher takes workers of its own and the last one, and the
// other way round: both pass over fields that they do not know, and a new field's zero value means what was before it.
//
// 2: pools, labels, retry rules, cordoned workers.
const Contract = 2

// BeatReply answers a Beat.
type BeatReply struct {
	// Session is the worker's from now on. Where it differs from the one sent, every attempt of the old session is lost.
	Session int64 `json:"session"`
	// Cancel are attempts to cancel, Drop those that are not the worker's any more: end them and report nothing.
	Cancel []Held `json:"cancel,omitempty"`
	Drop   []Held `json:"drop,omitempty"`
	// Drain asks the worker to take no more, until a reply does not.
	Drain bool `json:"drain,omitempty"`
	// Contract is the version that the dispatcher speaks; 0 is 1.
	Contract int `json:"contract,omitempty"`
	// TTLMS is after how long without a reply the worker's leases run out; it ends its machines then, before others are given its attempts.
	TTLMS int64  `json:"ttl_ms"`
	Error *Error `json:"error,omitempty"`
}

// Report is an attempt's result, sent until it is answered.
type Report struct {
	Worker  string `json:"worker"`
	Session int64  `json:"session"`
	Held
	Result Result `json:"result"`
	// Events is the Seq of the last event that the worker published for the attempt.
	Events int64 `json:"events"`
}

// ReportReply answers a Report. Fenced: the attempt was not the worker's any more, and the result is dropped.
type ReportReply struct {
	Fenced bool   `json:"fenced,omitempty"`
	Error  *Error `json:"error,omitempty"`
}
