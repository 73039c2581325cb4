package jobs

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// SnapshotPrefix begins the image of a job that runs in a snapshot: "snapshot:<tenant>/<name>".
const SnapshotPrefix = "snapshot:"

// SnapshotImage is the image by which a tenant's jobs name a snapshot.
func SnapshotImage(tenant, name string) string { return SnapshotPrefix + tenant + "/" + name }

// SnapshotTenant gives whose snapshot an image is; empty for an image that is none.
func SnapshotTenant(image string) string {
	rest, ok := strings.CutPrefix(image, SnapshotPrefix)
	if !ok {
		return ""
	}
	tenant, _, _ := strings.Cut(rest, "/")
	return tenant
}

var (
	snapshotNameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	// imageRE is an image, or a tenant's snapshot.
	imageRE = regexp.MustCompile(`^([a-z0-9][a-z0-9._-]{0,62}|snapshot:[A-Za-z0-9][A-Za-z0-9_-]{0,62}/[a-z0-9][a-z0-9._-]{0,62})$`)
)

// Parents of a snapshot that are not named by their ids.
const (
	// ParentAuto is the snapshot before in the machine's line: the latest that was made of it, else the one that it was cloned from, else
	// the template of its image.
	ParentAuto = "auto"
	// ParentNone makes a snapshot that holds all of the machine.
	ParentNone = "none"
)

// SnapshotRequest asks for a snapshot of a running job's machine; the answer is a SnapshotReply.
type SnapshotRequest struct {
	// Name is the snapshot's, unique among the tenant's on the worker's host; empty: its id.
	Name string `json:"name,omitempty"`
	// Tags are for people, and keep it from being removed by a retention policy that says so.
	Tags []string `json:"tags,omitempty"`
	// Parent is what it is compared with: "auto" (the default), "none", or a snapshot's id.
	Parent string `json:"parent,omitempty"`
}

// Snapshot is a machine's state as it is kept.
type Snapshot struct {
	// ID is a UUIDv7.
	ID string `json:"id"`
	// Image is what jobs say to run in it.
	Image string `json:"image"`
	// Name is unique among the tenant's on the worker's host.
	Name string `json:"name"`
	// Tags are the request's.
	Tags []string `json:"tags,omitempty"`
	// Tenant is whose it is: nobody else's jobs run in it.
	Tenant string `json:"tenant"`
	// Parent is the id of the snapshot that it is the difference to; empty where that is a template, or nothing.
	Parent string `json:"parent,omitempty"`
	// Full says that it holds all of the machine.
	Full bool `json:"full,omitempty"`
	// Of is the name of the image that the machine was of.
	Of string `json:"of"`
	// Job is the id of the job whose machine that was.
	Job string `json:"job,omitempty"`
	// Worker is the name of the worker that has it.
	Worker string `json:"worker,omitempty"`
	// CreatedAt is when it was made.
	CreatedAt time.Time `json:"created_at"`
	// PausedMS is how long the machine stood still.
	PausedMS float64 `json:"paused_ms"`
	// MemoryBytes are what differed from the parent's memory.
	MemoryBytes int64 `json:"memory_bytes"`
	// ScratchBytes are what differed from the parent's disk.
	ScratchBytes int64 `json:"scratch_bytes"`
	// StoredBytes are what its files take on the disk.
	StoredBytes int64 `json:"stored_bytes"`
}

// SnapshotOrigin is whose machine a snapshot is of.
type SnapshotOrigin struct {
	Tenant, Job, Worker string
	// Last is the id of the latest snapshot that was made of this very machine; empty where there is none.
	Last string
}

// SnapshotReply answers a SnapshotRequest: Snapshot, or Error.
type SnapshotReply struct {
	// Snapshot is it, once it is durable.
	Snapshot *Snapshot `json:"snapshot,omitempty"`
	// Warnings name unknown fields of the request and the nearest known ones.
	Warnings []string `json:"warnings,omitempty"`
	// Error is why there is none.
	Error *Error `json:"error,omitempty"`
}

var _ request = (*SnapshotRequest)(nil)

func (r *SnapshotRequest) check(c *checker) {
	if r.Name != "" && !snapshotNameRE.MatchString(r.Name) {
		c.fault("name", "%.80q must be 1 to 63 lower-case letters, digits, '.', '_' or '-'", r.Name)
	}
	if len(r.Tags) > 16 {
		c.fault("tags", "has %d, at most 16 are taken", len(r.Tags))
		return
	}
	for i, t := range r.Tags {
		if !labelRE.MatchString(t) || slices.Contains(r.Tags[:i], t) {
			c.fault(fmt.Sprintf("tags[%d]", i), "%.80q must be 1 to 63 letters, digits, '.', '_', '/' or '-', and given once", t)
		}
	}
	if r.Parent != "" && r.Parent != ParentAuto && r.Parent != ParentNone {
		if _, err := ParseID(r.Parent); err != nil {
			c.fault("parent", "%.80q must be auto, none, or a snapshot's id", r.Parent)
		}
	}
}
