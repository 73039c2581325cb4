package wire

// This file is what host and guest say to each other above the frames. A stream is opened with one Request; what follows depends
// on its Op. Every stream that the guest answers ends with one Reply, and a stream that ends without it has failed: no reply, no result.

// Op is what a stream is for.
type Op string

// The operations.
const (
	OpHello   Op = "hello"   // → Reply.Hello
	OpPing    Op = "ping"    // → empty Reply
	OpRestore Op = "restore" // Request.Restore → Reply.Ready; once after every restore, before anything else
	OpExec    Op = "exec"    // Request.Exec; ChanData is stdin; back come ChanStdout, ChanStderr, then Reply.Exit
	OpSignal  Op = "signal"  // Request.Signal → empty Reply; goes to an Exec that runs
	OpPut     Op = "put"     // Request.Put; ChanData is the file's bytes → empty Reply
	OpGet     Op = "get"     // Request.Get; back come, for each file, a ChanMessage FileHeader and its bytes on ChanData → Reply.Files
	OpQuiesce Op = "quiesce" // before a snapshot: no process but the agent, page caches of written files synced → empty Reply
	OpPower   Op = "power"   // powers the machine off; no reply
	OpDial    Op = "dial"    // Request.Dial; first a ChanMessage DialEvent, then ChanData both ways → empty Reply when both are at their end
	OpResize  Op = "resize"  // Request.Resize → Reply.Size
)

// Request opens a stream.
type Request struct {
	Op      Op       `json:"op"`
	Restore *Restore `json:"restore,omitempty"`
	Exec    *Exec    `json:"exec,omitempty"`
	Signal  *Signal  `json:"signal,omitempty"`
	Put     *Put     `json:"put,omitempty"`
	Get     *Get     `json:"get,omitempty"`
	Dial    *Dial    `json:"dial,omitempty"`
	Resize  *Resize  `json:"resize,omitempty"`
}

// Reply is the last message of a stream. Error is the agent's failure, never the program's.
type Reply struct {
	Error *Error `json:"error,omitempty"`
	Hello *Hello `json:"hello,omitempty"`
	Ready *Ready `json:"ready,omitempty"`
	Exit  *Exit  `json:"exit,omitempty"`
	Files int    `json:"files,omitempty"`
	Size  *Size  `json:"size,omitempty"`
}

// Error kinds, for whoever must act on them.
const (
	ErrRequest  = "request"   // malformed or out of order: a bug of the host
	ErrStart    = "start"     // the program does not exist or cannot be executed
	ErrPath     = "path"      // a path leaves the tree, is no regular file, or does not exist
	ErrTooLarge = "too_large" // a file or all of them exceed the limit
	ErrNoSpace  = "no_space"  //
	ErrRefused  = "refused"   // nothing listens on the port
	ErrBusy     = "busy"      // as many as there may be are open
	ErrAgent    = "agent"     // anything else
)

// Error is a failure that crosses the wire.
type Error struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Hello tells who the agent is.
type Hello struct {
	Version string `json:"version"` // the agent's build
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	PID1    bool   `json:"pid1"`
	// Degraded names limits that the agent cannot enforce here ("cgroup": no memory, pids and exact cpu).
	Degraded []string `json:"degraded,omitempty"`
	// BootMS is how long the guest ran before the agent served.
	BootMS int64 `json:"boot_ms"`
}

// Restore makes a clone a machine of its own.
type Restore struct {
	// Epoch is 16 random bytes, new for every restore.
	Epoch []byte `json:"epoch"`
	// Entropy is 64 random bytes from the host for the kernel's generator.
	Entropy []byte `json:"entropy"`
	// TimeUnixNS is the host's clock when the request was written.
	TimeUnixNS int64 `json:"time_unix_ns"`
	// MachineID is 32 hexadecimal digits; Hostname the machine's name.
	MachineID string `json:"machine_id"`
	Hostname  string `json:"hostname"`
	// Scratch says that the second disk is to be mounted as the root's writable layer.
	Scratch bool `json:"scratch"`
	// Network is how the network card is set up; nil where there is none.
	Network *Network `json:"network,omitempty"`
}

// Network is what a guest sets its one network card up with.
type Network struct {
	// Address is the card's, with the length of its network's prefix: "169.254.100.2/30". Address6 is the second, of IPv6; empty leaves IPv6 off.
	Address  string `json:"address"`
	Address6 string `json:"address6,omitempty"`
	// Gateway is the way to everywhere else; Gateway6 IPv6's; GatewayMAC its hardware address, where it is known: nobody need ask for it.
	Gateway    string `json:"gateway"`
	Gateway6   string `json:"gateway6,omitempty"`
	GatewayMAC string `json:"gateway_mac,omitempty"`
	// DNS are the resolvers' addresses.
	DNS []string `json:"dns,omitempty"`
	// MTU is in bytes; 0 leaves the card's.
	MTU int `json:"mtu,omitempty"`
}

// Ready answers a Restore.
type Ready struct {
	Epoch []byte `json:"epoch"`
	// BootID is the guest's new boot identity, a UUID.
	BootID string `json:"boot_id"`
	// StepMS is how long each part took, in milliseconds, by name ("entropy", "clock", "identity", "scratch", "network").
	StepMS map[string]float64 `json:"step_ms,omitempty"`
}

// Exec is a program to run.
type Exec struct {
	// ID names the run for Signal; unique among those that run.
	ID   string   `json:"id"`
	Argv []string `json:"argv"`
	// Env is the whole environment, "NAME=value".
	Env []string `json:"env"`
	Cwd string   `json:"cwd"`
	// User is "sandbox" or "root".
	User string `json:"user"`
	// StdinOpen: ChanData frames are the program's stdin, the stream's end its EOF. Otherwise stdin is empty.
	StdinOpen bool       `json:"stdin_open,omitempty"`
	Limits    ExecLimits `json:"limits"`
	// TimeUnixNS is the host's clock when the request was written: a machine that has waited since its restore may have another by now, and
	// sets its own before the program starts. 0 leaves it.
	TimeUnixNS int64 `json:"time_unix_ns,omitempty"`
}

// ExecLimits bound an Exec; zero means no limit.
type ExecLimits struct {
	WallMS      int64 `json:"wall_ms,omitempty"`
	CPUMS       int64 `json:"cpu_ms,omitempty"`
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	PIDs        int64 `json:"pids,omitempty"`
	OutputBytes int64 `json:"output_bytes,omitempty"` // of each stream
	FileBytes   int64 `json:"file_bytes,omitempty"`
	DiskBytes   int64 `json:"disk_bytes,omitempty"` // of the scratch disk, in all
	OpenFiles   int64 `json:"open_files,omitempty"`
}

// Limits that can end an Exec (Exit.Limit).
const (
	LimitWall   = "wall"
	LimitCPU    = "cpu"
	LimitMemory = "memory"
	LimitStdout = "stdout"
	LimitStderr = "stderr"
	LimitPIDs   = "pids" // hit, and the program failed
	LimitDisk   = "disk" // hit, and the program failed
	LimitFile   = "file" // SIGXFSZ
)

// Exit is how an Exec ended. By the time it is sent no process of it lives and all its output has been sent.
type Exit struct {
	// Code is the exit status, -1 where a signal ended it; Signal its name ("SIGKILL").
	Code   int    `json:"code"`
	Signal string `json:"signal,omitempty"`
	// Limit is the limit that ended it, empty for none.
	Limit string `json:"limit,omitempty"`

	WallMS          float64 `json:"wall_ms"`
	CPUMS           float64 `json:"cpu_ms"`
	MemoryPeakBytes int64   `json:"memory_peak_bytes,omitempty"`
	PIDsPeak        int64   `json:"pids_peak,omitempty"`

	// StdoutBytes and StderrBytes were sent; the dropped ones were read beyond the limit and thrown away.
	StdoutBytes   int64 `json:"stdout_bytes"`
	StderrBytes   int64 `json:"stderr_bytes"`
	StdoutDropped int64 `json:"stdout_dropped,omitempty"`
	StderrDropped int64 `json:"stderr_dropped,omitempty"`
}

// Signal sends a signal to all processes of an Exec.
type Signal struct {
	Exec   string `json:"exec"`
	Signal string `json:"signal"` // "SIGTERM"
}

// Put writes one file, whole or not at all. Directories on the way are made, symbolic links on it refused.
type Put struct {
	Path string `json:"path"` // absolute, or relative to /work
	Mode uint32 `json:"mode"`
	Size int64  `json:"size"`
	User string `json:"user"` // owner: "sandbox" or "root"
}

// Get reads the regular files that match a pattern, in lexical order. Links, devices, pipes and sockets are never opened.
type Get struct {
	Pattern  string `json:"pattern"`
	MaxBytes int64  `json:"max_bytes"` // of all together: more is ErrTooLarge before a byte of that file is sent
	MaxFiles int    `json:"max_files"`
}

// FileHeader precedes a file's bytes; exactly Size of them follow.
type FileHeader struct {
	Path string `json:"path"`
	Mode uint32 `json:"mode"`
	Size int64  `json:"size"`
}

// Dial opens a TCP connection to a port on the guest's loopback. Once it is open the guest sends DialOpen; where it cannot be opened, the
// Reply has the error. After that the stream's data is the connection's, each way. The host's end of the stream is the end of what it sends;
// the guest says DialEnd when the program there has ended its side, and sends no more. A reset stream is a connection broken off.
type Dial struct {
	Port int `json:"port"` // 1 to 65535
}

// MaxDials is how many connections of Dial may be open in a guest at once: other operations always find a stream.
const MaxDials = 32

// DialEvent is what the guest tells of a connection.
type DialEvent string

// The events.
const (
	DialOpen DialEvent = "open"
	DialEnd  DialEvent = "end"
)

// Resize brings into use what was plugged into the machine, and gives up what is to be pulled. The guest waits some seconds for what is not
// there yet, and for what it is slow to give up.
type Resize struct {
	// VCPUs is how many processors shall be in use, at least 1; 0 leaves them.
	VCPUs int `json:"vcpus,omitempty"`
	// PluggedMiB is how much memory beyond what the machine booted with shall be in use.
	PluggedMiB int `json:"plugged_mib"`
}

// Size is what a guest uses now, which may be less or more than what it was asked for.
type Size struct {
	VCPUs      int `json:"vcpus"`
	PluggedMiB int `json:"plugged_mib"`
}
