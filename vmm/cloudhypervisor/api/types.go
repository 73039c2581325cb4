package api

// What is here is what Paddock uses of the API's schemas, under the API's names. Sizes are bytes.

// Ping is the answer to vmm.ping.
type Ping struct {
	// BuildVersion is the version with what the builder added ("v53.0-12-gabcdef"), Version the release ("53.0.0").
	BuildVersion string   `json:"build_version"`
	Version      string   `json:"version"`
	PID          int      `json:"pid"`
	Features     []string `json:"features"`
}

// States of a machine. One that was shut down is Created again.
const (
	Created = "Created"
	Running = "Running"
	Paused  = "Paused"
)

// Info is the answer to vm.info. MemorySize counts what the guest has taken of what it was offered; Config tells what it was offered.
type Info struct {
	State      string `json:"state"`
	MemorySize int64  `json:"memory_actual_size"`
	Config     struct {
		Memory Memory `json:"memory"`
	} `json:"config"`
}

// Added is where a device is that was added to a running machine.
type Added struct {
	ID  string `json:"id"`
	BDF string `json:"bdf"`
}

// VM is a machine: VmConfig.
type VM struct {
	CPUs     CPUs       `json:"cpus"`
	Memory   Memory     `json:"memory"`
	Payload  Payload    `json:"payload"`
	Disks    []Disk     `json:"disks,omitempty"`
	Limits   []Limits   `json:"rate_limit_groups,omitempty"`
	RNG      RNG        `json:"rng"`
	Serial   Console    `json:"serial"`
	Console  Console    `json:"console"`
	Vsock    *Vsock     `json:"vsock,omitempty"`
	PVPanic  bool       `json:"pvpanic"`
	Watchdog bool       `json:"watchdog"`
	Landlock bool       `json:"landlock_enable"`
	Rules    []PathRule `json:"landlock_rules,omitempty"`
}

// CPUs are the processors. Scheduling is "Vm" where only processors of one machine may share a core of the host's.
type CPUs struct {
	Boot       int    `json:"boot_vcpus"`
	Max        int    `json:"max_vcpus"`
	Nested     bool   `json:"nested"`
	Scheduling string `json:"core_scheduling,omitempty"`
}

// Memory is the guest's. Size is 0 where there are zones, which grow by the hotplug method "VirtioMem" only.
type Memory struct {
	Size          int64  `json:"size"`
	Shared        bool   `json:"shared"`
	THP           bool   `json:"thp"`
	HotplugMethod string `json:"hotplug_method,omitempty"`
	Zones         []Zone `json:"zones,omitempty"`
}

// Zone is memory that is a file: mapped shared, its writes end there; else they are the machine's own (mmap(2), MAP_PRIVATE). It can have as
// much more as HotplugSize, which is in no file; HotpluggedSize is what ResizeZone has last offered of it.
type Zone struct {
	ID             string `json:"id"`
	Size           int64  `json:"size"`
	File           string `json:"file"`
	Shared         bool   `json:"shared"`
	HotplugSize    int64  `json:"hotplug_size,omitempty"`
	HotpluggedSize int64  `json:"hotplugged_size,omitempty"`
}

// Payload is what is booted.
type Payload struct {
	Kernel    string `json:"kernel"`
	Cmdline   string `json:"cmdline,omitempty"`
	Initramfs string `json:"initramfs,omitempty"`
}

// Disk is a virtio disk.
type Disk struct {
	ID        string `json:"id"`
	Path      string `json:"path"`
	ReadOnly  bool   `json:"readonly"`
	ImageType string `json:"image_type"`
	Limits    string `json:"rate_limit_group,omitempty"`
}

// Limits are what the disks that name them may do together.
type Limits struct {
	ID      string  `json:"id"`
	Limiter Limiter `json:"rate_limiter_config"`
}

// Limiter bounds bytes and operations.
type Limiter struct {
	Bandwidth *Bucket `json:"bandwidth,omitempty"`
	Ops       *Bucket `json:"ops,omitempty"`
}

// Bucket has Size tokens, again after RefillTime milliseconds.
type Bucket struct {
	Size       int64 `json:"size"`
	RefillTime int64 `json:"refill_time"`
}

// RNG feeds the guest's virtio-rng.
type RNG struct {
	Source string `json:"src"`
}

// Console is a serial line or a virtio console. Modes are "Off", "File" and others.
type Console struct {
	Mode string `json:"mode"`
	File string `json:"file,omitempty"`
}

// Vsock joins the guest's vsock with a unix socket: who connects there and writes "CONNECT port\n" reads "OK n\n" and is through.
type Vsock struct {
	ID     string `json:"id"`
	CID    uint32 `json:"cid"`
	Socket string `json:"socket"`
}

// Net is a network card. Its tap comes as a descriptor.
type Net struct {
	ID  string `json:"id"`
	MAC string `json:"mac"`
}

// Device is a device of the host's.
type Device struct {
	ID   string `json:"id"`
	Path string `json:"path"`
}

// PathRule lets the VMM at a path beside those that its machine names: "r", "w" or "rw".
type PathRule struct {
	Path   string `json:"path"`
	Access string `json:"access"`
}

// Resize is what to change; nil leaves as it is.
type Resize struct {
	VCPUs *int   `json:"desired_vcpus,omitempty"`
	RAM   *int64 `json:"desired_ram,omitempty"`
}

// ResizeDisk is a disk's new size.
type ResizeDisk struct {
	ID   string `json:"id"`
	Size int64  `json:"desired_size"`
}

// ResizeZone is what a zone shall have, its own size in it.
type ResizeZone struct {
	ID  string `json:"id"`
	RAM int64  `json:"desired_ram"`
}

// RemoveDevice names a device.
type RemoveDevice struct {
	ID string `json:"id"`
}

// Snapshot says where to.
type Snapshot struct {
	Destination string `json:"destination_url"`
}

// Restore says where from. MemoryMode is "Copy" where it is empty; Resume is passed over before v52, and so is MemoryMode.
type Restore struct {
	Source     string  `json:"source_url"`
	MemoryMode string  `json:"memory_restore_mode,omitempty"`
	Resume     bool    `json:"resume,omitempty"`
	NetFDs     []NetFD `json:"net_fds,omitempty"`
}

// NetFD says how many descriptors a card gets.
type NetFD struct {
	ID  string `json:"id"`
	Num int    `json:"num_fds"`
}
