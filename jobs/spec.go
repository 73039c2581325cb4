package jobs

import (
	"strings"
	"time"
)

// Spec is what a client wants run. It is immutable once accepted. Either Steps or the shorthand Language and Source is given.
type Spec struct {
	// Version is "v1", or empty for the same.
	Version string `json:"version,omitempty"`
	// ID is a UUIDv7 that the client may choose; empty means that the dispatcher does.
	ID string `json:"id,omitempty"`
	// IdempotencyKey makes a submission repeatable for 24 hours: the same tenant, key and body give the same job,
	// the same key with another body is refused with the code "conflict". At most 200 bytes.
	IdempotencyKey string `json:"idempotency_key,omitempty"`

	// Image names the image to run in ("python"). With Language it may be empty: the language's own image is taken.
	Image string `json:"image,omitempty"`
	// Language and Source are the shorthand for a one-step job: Source is written to a file (python: main.py; bash, sh: main.sh), which no
	// entry of Files may name, and run as Language is run.
	Language string `json:"language,omitempty"`
	// Source is the program's text, with Language.
	Source string `json:"source,omitempty"`
	// Args are the shorthand's program's arguments.
	Args []string `json:"args,omitempty"`
	// Stdin is given to the shorthand's program, then its input ends.
	Stdin string `json:"stdin,omitempty"`
	// StdinStream keeps the first step's standard input open for chunks sent while it runs (subject: paddock.v1.job.<tenant>.<job>.stdin).
	StdinStream bool `json:"stdin_stream,omitempty"`

	// Steps run in order in one machine and share its files; the first that does not exit with 0 ends the job.
	Steps []Step `json:"steps,omitempty"`
	// Files are put into the machine before the first step. Inline contents are at most 256 KiB in all.
	Files []File `json:"files,omitempty"`
	// Artifacts are brought out after the last step, also when a step failed.
	Artifacts []Artifact `json:"artifacts,omitempty"`

	// Limits hold for each step, unless the step has its own; disk_bytes is the job's in all.
	Limits Limits `json:"limits,omitzero"`
	// Resources are the machine's. Zero means what the image says.
	Resources Resources `json:"resources,omitzero"`
	// Headroom is how far the machine can grow while it runs (a resize), memory in steps of 128 MiB; zero: not at all. It is not reserved.
	Headroom Resources `json:"headroom,omitzero"`
	// Network says what the machine may reach. The zero value is "none": no NIC.
	Network Network `json:"network,omitzero"`

	// Priority orders the jobs of one tenant: 0 (lowest) to 9; 5 where it is left out.
	Priority *int `json:"priority,omitempty"`
	// QueueTTLMS is how long the job may wait for its first machine, in milliseconds; it then ends as "expired". 0 means 24 h.
	QueueTTLMS int64 `json:"queue_ttl_ms,omitempty"`
	// InfraRetries is how many further attempts follow one that Paddock, not the program, failed: 0 to 10; 3 where it is left out.
	// With 0 a machine with a network or ports goes on where its worker hears of nobody: no other attempt could do the same.
	InfraRetries *int `json:"infra_retries,omitempty"`
	// RunAt is the earliest time for the first attempt, at most a year ahead; queue_ttl_ms counts from then. Empty means at once.
	RunAt time.Time `json:"run_at,omitzero"`
	// DependsOn are ids of jobs of the same tenant, at most 64, that must have ended with the exit code 0 before this one runs. Where one of
	// them ends otherwise, this one ends as "dependency_failed". The wait for them does not count in queue_ttl_ms.
	DependsOn []string `json:"depends_on,omitempty"`
	// Concurrency bounds how many of the tenant's jobs run at once that share a key.
	Concurrency Concurrency `json:"concurrency,omitzero"`
	// Pool is the pool of workers to run on; empty means "default".
	Pool string `json:"pool,omitempty"`
	// Requires are labels that the worker must have: os, arch, region, or what the operator has given it. At most 16.
	Requires map[string]string `json:"requires,omitempty"`
	// Retry says which endings are followed by another attempt.
	Retry *Retry `json:"retry,omitempty"`
	// Labels are the client's own; they come back in the record. At most 32, keys to 63 and values to 255 bytes.
	Labels map[string]string `json:"labels,omitempty"`
	// Callbacks are URLs told of the job's end, besides the tenant's own endpoints.
	Callbacks []Callback `json:"callbacks,omitempty"`
}

// Step is one program run to its end. Exactly one of Cmd and Shell is given.
type Step struct {
	// Name appears in results and events; empty means the step's number.
	Name string `json:"name,omitempty"`
	// Cmd is the program's path or name, searched in PATH; Args are its arguments without the name.
	Cmd string `json:"cmd,omitempty"`
	// Args are Cmd's arguments, without its name.
	Args []string `json:"args,omitempty"`
	// Shell is a line for /bin/sh -c.
	Shell string `json:"shell,omitempty"`
	// Env is added to the image's environment; a name is [A-Za-z_][A-Za-z0-9_]*.
	Env map[string]string `json:"env,omitempty"`
	// Cwd is an absolute path; empty means /work, which belongs to the step's user.
	Cwd string `json:"cwd,omitempty"`
	// Stdin is given to the program, then its input ends.
	Stdin string `json:"stdin,omitempty"`
	// User is "sandbox" (unprivileged, the default) or "root".
	User string `json:"user,omitempty"`
	// Limits replace the job's, field by field where not zero.
	Limits Limits `json:"limits,omitzero"`
}

// File is a file to put into the machine. Exactly one of Text, Base64 and Object is given (none of them: an empty file).
type File struct {
	// Path is relative to /work, or absolute; no "..", no NUL.
	Path string `json:"path"`
	// Mode is the permission bits in octal ("0644", the default, or "0755").
	Mode string `json:"mode,omitempty"`
	// Text is the contents, where they are UTF-8.
	Text string `json:"text,omitempty"`
	// Base64 is the contents, where they are any bytes.
	Base64 []byte `json:"base64,omitempty"`
	// Object is where the contents are, where they are too large to stand here.
	Object *ObjectRef `json:"object,omitempty"`
}

// ObjectRef names a blob in the tenant's object store; the worker refuses bytes that do not have the digest.
type ObjectRef struct {
	// Name is the object's name among the tenant's: what Paddock has put has its digest for one.
	Name string `json:"name"`
	// SHA256 is the content's digest, 64 lower-case hexadecimal digits.
	SHA256 string `json:"sha256"`
}

// Artifact is a file, or a glob of files, to bring out of the machine.
type Artifact struct {
	// Path is relative to /work, or absolute; * ? [a-z] match within one path element and ** over several.
	Path string `json:"path"`
	// MaxBytes bounds all the files that match together. 0 means 16 MiB; at most 1 GiB.
	MaxBytes int64 `json:"max_bytes,omitempty"`
	// Optional makes a path that matches nothing no fault.
	Optional bool `json:"optional,omitempty"`
}

// Limits bound a step. Zero means the default, which Defaults gives.
type Limits struct {
	// WallMS is the time from start to end.
	WallMS int64 `json:"wall_ms,omitempty"`
	// CPUMS is processor time, user and system, of all the step's processes.
	CPUMS int64 `json:"cpu_ms,omitempty"`
	// MemoryBytes is the memory of all the step's processes, page cache included. It may not exceed the machine's memory less 64 MiB.
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	// PIDs is how many processes and threads there may be at once.
	PIDs int64 `json:"pids,omitempty"`
	// OutputBytes is for each of stdout and stderr. What exceeds it is dropped and ends the step.
	OutputBytes int64 `json:"output_bytes,omitempty"`
	// FileBytes is the largest file that may be written (RLIMIT_FSIZE).
	FileBytes int64 `json:"file_bytes,omitempty"`
	// DiskBytes is what the job may write to the machine's disk in all; there is no more than the image's scratch disk. Of the job, not of a step.
	DiskBytes int64 `json:"disk_bytes,omitempty"`
	// OpenFiles is RLIMIT_NOFILE.
	OpenFiles int64 `json:"open_files,omitempty"`
}

// Resources are the machine's size. A worker has templates of certain sizes; zero takes the image's.
type Resources struct {
	// VCPUs is how many virtual processors.
	VCPUs int `json:"vcpus,omitempty"`
	// MemoryMiB is the machine's memory in MiB; 64 of it are for the guest's kernel and agent.
	MemoryMiB int `json:"memory_mib,omitempty"`
}

// Network policies.
const (
	NetworkNone      = "none"
	NetworkInternet  = "internet"
	NetworkAllowlist = "allowlist"
)

// Network says what a machine may reach.
type Network struct {
	// Policy is "none" (the default: no NIC), "internet" or "allowlist".
	Policy string `json:"policy,omitempty"`
	// Allow lists CIDRs and domains, for "allowlist".
	Allow []string `json:"allow,omitempty"`
	// IPv6 lets the machine use IPv6 too, as far as its policy goes.
	IPv6 bool `json:"ipv6,omitempty"`
	// Ports are TCP ports that programs in the machine listen on, with any policy. While the job runs each can be reached at an address
	// of the worker's host, which an event of the type "ports" tells.
	Ports []int `json:"ports,omitempty"`
}

// What a worker may offer of networks besides policies.
const (
	NetworkIPv6  = "ipv6"
	NetworkPorts = "ports"
)

// NIC tells whether the policy needs a network card.
func (n Network) NIC() bool { return n.Policy != "" && n.Policy != NetworkNone }

// Needs lists what a worker has to offer of networks for the job, in a fixed order: a policy other than none, "ipv6", "ports".
func (n Network) Needs() (l []string) {
	if n.NIC() {
		l = append(l, n.Policy)
	}
	if n.IPv6 {
		l = append(l, NetworkIPv6)
	}
	if len(n.Ports) > 0 {
		l = append(l, NetworkPorts)
	}
	return l
}

// NeedsNIC tells of Needs, joined by commas, whether a policy is among them.
func NeedsNIC(needs string) bool {
	first, _, _ := strings.Cut(needs, ",")
	return first != "" && first != NetworkIPv6 && first != NetworkPorts
}

// Shape is what a machine has to be for a job: its size, how far it can grow, and whether it has a network card. Machines of one image and shape are alike.
type Shape struct {
	Resources
	Headroom Resources `json:"headroom,omitzero"`
	NIC      bool      `json:"nic,omitempty"`
}

// Shape is the machine's that the job needs; its size is zero where the image decides.
func (s *Spec) Shape() Shape { return Shape{s.Resources, s.Headroom, s.Network.NIC()} }

// memoryStep is what machines' memory is rounded up to, in MiB, where it is not the image's own: every size has a template of its own.
const memoryStep = 64

// MachineSize is the size of the machine that a worker makes for who asks for r: what r leaves out is as the image has it.
func MachineSize(r, image Resources) Resources {
	if r.VCPUs == 0 {
		r.VCPUs = image.VCPUs
	}
	if r.MemoryMiB == 0 || r.MemoryMiB == image.MemoryMiB {
		r.MemoryMiB = image.MemoryMiB
	} else {
		r.MemoryMiB = (r.MemoryMiB + memoryStep - 1) / memoryStep * memoryStep
	}
	return Resources{VCPUs: max(r.VCPUs, 1), MemoryMiB: max(r.MemoryMiB, 1)}
}

// Callback is a URL to tell of a job.
type Callback struct {
	// URL is http or https, without credentials.
	URL string `json:"url"`
	// Events are what to tell of: "job.running", "job.requeued", "job.ended"; empty means "job.ended".
	Events []string `json:"events,omitempty"`
}

// Bounds of the contract, in bytes unless said otherwise.
const (
	MaxSpecBytes   = 1 << 20   // a spec's JSON
	MaxInlineBytes = 256 << 10 // Source, Stdin and inline files together
	MaxSteps       = 64
	MaxFiles       = 1024
	MaxArtifacts   = 64
	MaxArgs        = 1024
	MaxEnv         = 256
)
