package jobs

import "time"

// Ending says how an attempt, or a step, ended.
type Ending string

// The endings. Class tells whose doing each is.
const (
	// user: the program's own doing
	Exited       Ending = "exited"        // by itself; the exit code tells more
	Signaled     Ending = "signaled"      // by a signal that no limit sent
	TimeLimit    Ending = "time_limit"    // Limit says "wall" or "cpu"
	MemoryLimit  Ending = "memory_limit"  //
	OutputLimit  Ending = "output_limit"  // Limit says "stdout" or "stderr"
	PIDsLimit    Ending = "pids_limit"    // could not start a process, and failed
	DiskLimit    Ending = "disk_limit"    // filled the disk, and failed
	FileLimit    Ending = "file_limit"    // SIGXFSZ
	VMExited     Ending = "vm_exited"     // powered the machine off, rebooted or panicked it
	StartFailed  Ending = "start_failed"  // the step's program does not exist or cannot be executed
	FileFailed   Ending = "file_failed"   // an input could not be put or an artifact not be brought out: missing, too large, wrong digest
	CompileError Ending = "compile_error" //
	WrongAnswer  Ending = "wrong_answer"  //
	// policy
	Canceled Ending = "canceled"
	Expired  Ending = "expired"
	Rejected Ending = "rejected"
	// DependencyFailed: a job that it depends on did not end with the exit code 0
	DependencyFailed Ending = "dependency_failed"
	// infra: ours, retried
	WorkerLost    Ending = "worker_lost"    // the worker's lease ran out
	VMFailed      Ending = "vm_failed"      // the VMM died or never came up
	AgentLost     Ending = "agent_lost"     // the guest agent vanished or spoke nonsense while the VMM lived
	ImageFailed   Ending = "image_failed"   // the image or its template is missing or broken
	HostResources Ending = "host_resources" // the host ran out of something
)

// Class is whose doing an ending is.
type Class string

// The classes: user endings are final, policy endings are ours by rule, infra endings are retried.
const (
	ClassUser   Class = "user"
	ClassPolicy Class = "policy"
	ClassInfra  Class = "infra"
)

// Class tells whose doing the ending is; empty for an unknown ending.
func (e Ending) Class() Class {
	switch e {
	case Exited, Signaled, TimeLimit, MemoryLimit, OutputLimit, PIDsLimit, DiskLimit, FileLimit, VMExited, StartFailed, FileFailed,
		CompileError, WrongAnswer:
		return ClassUser
	case Canceled, Expired, Rejected, DependencyFailed:
		return ClassPolicy
	case WorkerLost, VMFailed, AgentLost, ImageFailed, HostResources:
		return ClassInfra
	}
	return ""
}

// Result is how a job, or one attempt at it, ended.
type Result struct {
	// Ending is how it ended.
	Ending Ending `json:"ending"`
	// Class is whose doing that was.
	Class Class `json:"class"`
	// Reason is for people: one sentence, empty for a plain exit.
	Reason string `json:"reason,omitempty"`
	// Limit names the limit that ended it: "wall", "cpu", "memory", "stdout", "stderr", "pids", "disk", "file".
	Limit string `json:"limit,omitempty"`
	// ExitCode is of the last step that ran, where it exited; Ending comes before it: "file_failed" may come with 0.
	ExitCode *int `json:"exit_code,omitempty"`
	// Signal is the name of the signal that ended the last step ("SIGSEGV").
	Signal string `json:"signal,omitempty"`

	// Steps are the steps that were run, in order.
	Steps []StepResult `json:"steps,omitempty"`
	// Artifacts are the files that were brought out.
	Artifacts []ArtifactResult `json:"artifacts,omitempty"`
	// Usage is of all steps: sums, and the largest peak.
	Usage Usage `json:"usage,omitzero"`
	// Phases are milliseconds, in the order of the job's path.
	Phases Phases `json:"phases,omitzero"`

	// Attempt is the attempt's number, from 1.
	Attempt int `json:"attempt"`
	// Worker is the worker's name; Machine the machine's own id; Template the digest of the template it was cloned from.
	Worker string `json:"worker,omitempty"`
	// Machine is the machine's own id.
	Machine string `json:"machine,omitempty"`
	// Template is the digest of the template that it was cloned from.
	Template string `json:"template,omitempty"`
	// Degraded names the walls around the machine that this host could not give.
	Degraded []string `json:"degraded,omitempty"`
	// EndedAt is when the result was made.
	EndedAt time.Time `json:"ended_at,omitzero"`
}

// StepResult is how one step ended.
type StepResult struct {
	// Name is the step's name, or its number from 0.
	Name string `json:"name"`
	// Ending is how the step ended.
	Ending Ending `json:"ending"`
	// Limit names the limit that ended it.
	Limit string `json:"limit,omitempty"`
	// Reason is for people.
	Reason string `json:"reason,omitempty"`
	// ExitCode is given where it exited by itself.
	ExitCode *int `json:"exit_code,omitempty"`
	// Signal is given where a signal ended it.
	Signal string `json:"signal,omitempty"`
	// Usage is what it used.
	Usage Usage `json:"usage,omitzero"`
	// Stdout is what it wrote to its standard output.
	Stdout Output `json:"stdout,omitzero"`
	// Stderr is what it wrote to its standard error.
	Stderr Output `json:"stderr,omitzero"`
}

// Output is what a step wrote to one stream: the head of it here, all of it in the job's events.
type Output struct {
	// Content is the first MaxResultOutput bytes, or none of an early step where the result of many would be too large.
	Content
	// Bytes is how many the program wrote and we took, the events hold exactly these.
	Bytes int64 `json:"bytes"`
	// Truncated says that the program wrote more than its limit; DroppedBytes how much of it was read and thrown away.
	Truncated bool `json:"truncated,omitempty"`
	// DroppedBytes is how much past the limit was read and thrown away.
	DroppedBytes int64 `json:"dropped_bytes,omitempty"`
}

// MaxResultOutput is how many bytes of each stream of each step a result repeats, as long as all fit; the last steps' go first.
const MaxResultOutput = 16 << 10

// MaxResultBytes is the most that a result's JSON has.
const MaxResultBytes = 900 << 10

// Usage is what a step used.
type Usage struct {
	// WallMS is the time from start to end.
	WallMS float64 `json:"wall_ms"`
	// CPUMS is user and system time of all processes.
	CPUMS float64 `json:"cpu_ms"`
	// MemoryPeakBytes is the most memory that was in use at once, page cache included; 0 where it could not be measured.
	MemoryPeakBytes int64 `json:"memory_peak_bytes,omitempty"`
	// PIDsPeak is the most processes and threads at once; 0 where it could not be measured.
	PIDsPeak int64 `json:"pids_peak,omitempty"`
}

// ArtifactResult is a file brought out of the machine.
type ArtifactResult struct {
	// Path is as in the machine: relative to /work where the artifact's pattern was.
	Path string `json:"path"`
	// Size is in bytes.
	Size int64 `json:"size"`
	// Mode is the permission bits in octal.
	Mode string `json:"mode"`
	// SHA256 is the contents' digest.
	SHA256 string `json:"sha256"`
	// Content is given for files to MaxInlineArtifact while all inline ones fit into MaxInlineBytes; else Object is.
	Content
	// Object is where the contents are, where they are not here.
	Object *ObjectRef `json:"object,omitempty"`
}

// MaxInlineArtifact is the size to which an artifact's bytes travel inside the result.
const MaxInlineArtifact = 64 << 10

// Phases are how long each part of an attempt took, in milliseconds.
type Phases struct {
	QueuedMS  float64 `json:"queued"`    // accepted to leased
	ClaimMS   float64 `json:"claim"`     // leased to a machine in hand
	RestoreMS float64 `json:"restore"`   // VMM state loaded and resumed; spent before the job came where the machine was pooled
	ReadyMS   float64 `json:"ready"`     // resumed to the agent's READY; likewise
	CopyInMS  float64 `json:"copy_in"`   // files into the machine
	RunMS     float64 `json:"run"`       // all steps, as the worker saw it
	GuestMS   float64 `json:"guest"`     // all steps, as the guest measured it: run less guest is the channel's cost
	CopyOutMS float64 `json:"copy_out"`  // artifacts out of the machine
	DestroyMS float64 `json:"destroy"`   // until the machine is dead
	TotalMS   float64 `json:"total"`     // accepted to result made
	FromPool  bool    `json:"from_pool"` // the machine was ready before it was asked for
}

// Success tells whether the result is a clean success: exited with 0.
func (r *Result) Success() bool { return r.Ending == Exited && r.ExitCode != nil && *r.ExitCode == 0 }
