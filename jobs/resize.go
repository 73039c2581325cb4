package jobs

// ResizeRequest asks for another size of a running job's machine; the answer is a ResizeReply.
type ResizeRequest struct {
	// VCPUs are the processors that it shall have, from its spec's resources to its headroom; 0 leaves what it has.
	VCPUs int `json:"vcpus,omitempty"`
	// MemoryMiB is the memory that it shall have, likewise, in MiB.
	MemoryMiB int `json:"memory_mib,omitempty"`
}

// ResizeReply answers a ResizeRequest: what the machine has now, or Error, and then it has what it had.
type ResizeReply struct {
	// Resources are what the machine has now.
	Resources *Resources `json:"resources,omitempty"`
	// Warnings name unknown fields of the request and the nearest known ones.
	Warnings []string `json:"warnings,omitempty"`
	// Error is why it has what it had.
	Error *Error `json:"error,omitempty"`
}

var _ request = (*ResizeRequest)(nil)

func (r *ResizeRequest) check(c *checker) {
	c.within("vcpus", int64(r.VCPUs), 256)
	c.within("memory_mib", int64(r.MemoryMiB), 1<<20)
	if r.VCPUs == 0 && r.MemoryMiB == 0 {
		c.fault("vcpus", "or memory_mib is required")
	}
}
