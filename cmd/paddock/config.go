package main

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
)

// config is what the servers can be told: by a file, then by the environment (PADDOCK_ and the key in upper case), then by flags.
type config struct {
	StateDir      string        `koanf:"state_dir"`
	ImageDir      string        `koanf:"image_dir"`
	Ledger        string        `koanf:"ledger"`
	Listen        string        `koanf:"listen"`
	NATS          string        `koanf:"nats"`
	MetricsListen string        `koanf:"metrics_listen"`
	LogLevel      string        `koanf:"log_level"`
	LazySync      bool          `koanf:"lazy_sync"`
	LeaseTTL      time.Duration `koanf:"lease_ttl"`
	LeaseGrace    time.Duration `koanf:"lease_grace"`
	MaxQueued     int           `koanf:"max_queued"`
	KeepEnded     time.Duration `koanf:"keep_ended"`
	EventsKeep    time.Duration `koanf:"events_keep"`
	EventsGiB     int           `koanf:"events_gib"`
	natsConfig    `koanf:",squash"`
	redisConfig   `koanf:",squash"`
	webhookConfig `koanf:",squash"`
	objectsConfig `koanf:",squash"`
	httpConfig    `koanf:",squash"`
	Quotas        string `koanf:"quotas"`

	Name            string        `koanf:"name"`
	Pool            string        `koanf:"pool"`
	Labels          []string      `koanf:"labels"`
	Driver          string        `koanf:"driver"`
	Accel           string        `koanf:"accel"`
	QEMU            string        `koanf:"qemu"`
	QEMUChannel     string        `koanf:"qemu_channel"`
	CloudHypervisor string        `koanf:"cloud_hypervisor"`
	Jail            string        `koanf:"jail"`
	JailRequire     string        `koanf:"jail_require"`
	JailUIDs        string        `koanf:"jail_uids"`
	CgroupParent    string        `koanf:"cgroup_parent"`
	ProbeTimeout    time.Duration `koanf:"probe_timeout"`
	StepTimeout     time.Duration `koanf:"step_timeout"`
	Insecure        bool          `koanf:"insecure_no_isolation"`
	Agent           string        `koanf:"agent"`
	Images          []string      `koanf:"images"`
	VCPUs           int           `koanf:"vcpus"`
	MemoryMiB       int           `koanf:"memory_mib"`
	Network         string        `koanf:"network"`
	NetworkUplink   string        `koanf:"network_uplink"`
	NetworkDNS      []string      `koanf:"network_dns"`
	NetworkAllow    []string      `koanf:"network_allow"`
	NetworkDeny     []string      `koanf:"network_deny"`
	NetworkIPv6     bool          `koanf:"network_ipv6"`
	NetworkMbit     int           `koanf:"network_mbit"`
	NetworkRange    string        `koanf:"network_range"`
	NetworkBridge   string        `koanf:"network_bridge"`
	NetworkCIDR     string        `koanf:"network_cidr"`
	NetworkLease    string        `koanf:"network_lease"`
	NetworkGateway  string        `koanf:"network_gateway"`
	NetworkInbound  bool          `koanf:"network_inbound"`
	Ports           string        `koanf:"ports"`
	PortsHTTP       string        `koanf:"ports_http"`
	PortsDomain     string        `koanf:"ports_domain"`

	DiskMiBPerSecond int     `koanf:"disk_mib_per_second"`
	DiskOpsPerSecond int     `koanf:"disk_ops_per_second"`
	ReserveMemoryMiB int     `koanf:"reserve_memory_mib"`
	OvercommitVCPUs  float64 `koanf:"overcommit_vcpus"`
	OvercommitMemory float64 `koanf:"overcommit_memory"`
	Ready            int     `koanf:"ready"`
	ReadyMost        int     `koanf:"ready_most"`
	Prepared         int     `koanf:"prepared"`

	retentionConfig `koanf:",squash"`
}

// defaultConfigFile is read where it exists and --config names no other.
const defaultConfigFile = "/etc/paddock/paddock.yaml"

// configFlags are a server command's flags; load turns them, the environment and the file into a config.
type configFlags struct {
	cmd    *cobra.Command
	file   *string
	print  *bool
	origin map[string]string // of flags that the file or the environment has set
}

// parts are what a command starts, and whose keys it takes.
type parts int

const (
	forDispatcher parts = 1 << iota
	forWorker
)

func addConfigFlags(c *cobra.Command, which parts) *configFlags {
	f := c.Flags()
	f.SortFlags = false
	cf := &configFlags{cmd: c, file: f.String("config", "", "configuration file ("+defaultConfigFile+" where it exists)"), origin: map[string]string{}}
	cf.print = f.Bool("print-config", false, "print the effective configuration, and where each value is from, and end")
	f.String("state-dir", defaultStateDir(), "directory of the ledger, JetStream, and images")
	f.String("metrics-listen", "127.0.0.1:9464", "address of /metrics and /healthz; empty for none")
	addChoice(c, "log-level", "", "info", "what is logged", "debug", "info", "warn", "error")
	if which&forDispatcher != 0 {
		f.String("listen", "127.0.0.1:4222", "address of the embedded NATS server; empty uses --nats instead")
		addHTTPFlags(f)
		f.Bool("lazy-sync", false, "let JetStream's writes wait for the disk: faster, and a power loss may lose events")
		f.Duration("lease-ttl", 15*time.Second, "how long a worker keeps its jobs without a heartbeat")
		f.Duration("lease-grace", 5*time.Second, "how much longer until they are given to others")
		f.String("ledger", "", ledgerUsage+"; its parameter passfile= keeps the password out of --print-config")
		f.Int("max-queued", 100_000, "how many jobs may wait")
		f.Duration("keep-ended", 7*24*time.Hour, "how long a job can be asked for after its end")
		f.Duration("events-keep", 72*time.Hour, "how long jobs' events, their output among them, can be read")
		f.Int("events-gib", 8, "what all of them may take, in GiB: the oldest go first")
		addRedisFlags(f)
		addWebhookFlags(f)
		addObjectsFlags(c)
		f.String("quotas", "", "file (YAML) with what each tenant may have; none without")
	}
	f.String("nats", "", "external NATS server, where none is embedded")
	addNATSFlags(f, which)
	if which&forWorker != 0 {
		host, _ := os.Hostname()
		f.String("name", cleanName(host), "the worker's name, unique in its fleet")
		f.String("pool", jobs.DefaultPool, "the pool of workers that it belongs to; jobs say which they want")
		f.StringSlice("labels", nil, "what jobs may require of it, like region=eu; os and arch are there without")
		f.String("image-dir", "", "image store (images below the state directory)")
		f.StringSlice("images", []string{"base", "python"}, "images to build if missing, and to keep machines ready of")
		addChoice(c, "driver", "", "auto", "what machines are; auto is cloud-hypervisor where it and KVM are there, else qemu", "auto", "cloud-hypervisor", "qemu", "hostproc", "inproc")
		addChoice(c, "accel", "", "auto", "how QEMU runs them", "auto", "kvm", "tcg")
		f.String("qemu", "", "QEMU binary (qemu-system-x86_64)")
		addChoice(c, "qemu-channel", "", "auto", "how QEMU's machines reach their agent: auto is vsock with KVM where the host has it and nobody listens on it, else serial", "auto", "vsock", "serial")
		f.String("cloud-hypervisor", "", "Cloud Hypervisor binary, v51 or newer (cloud-hypervisor)")
		addChoice(c, "jail", "", "on", "on, or off to start VMMs as plain children of this process", "on", "off")
		addChoice(c, "jail-require", "", "degraded", "full refuses to start where this host lacks one of the jail's walls; degraded says which", "degraded", "full")
		f.String("jail-uids", defaultUIDs, "uids for machines, one for each, the first and the last: nobody else's on this host")
		f.String("cgroup-parent", "", "cgroup for machines' own, as /proc/self/cgroup writes it (paddock-machines, in this process's or the root)")
		f.Duration("probe-timeout", 2*time.Second, "how long the guest may run that is started to see whether KVM works")
		f.Duration("step-timeout", 30*time.Second, "how long a VMM may take for one thing: to start, to save or load a machine; more where this host is a machine itself")
		f.Bool("insecure-no-isolation", false, "allow the drivers hostproc and inproc, which isolate nothing")
		f.String("agent", "", "the paddock-agent binary (beside this one)")
		f.Int("vcpus", 0, "vCPUs for machines: as many jobs of one vCPU run at once; 0 is as many as the host has, times --overcommit-vcpus")
		f.Int("memory-mib", 0, "memory for machines, in MiB; 0 is the host's, less --reserve-memory-mib, times --overcommit-memory")
		f.Int("reserve-memory-mib", defaultReserve(hostMemoryMiB()), "memory that stays the system's; while less than half of it is available, no machine is kept ready and no job taken")
		f.Float64("overcommit-vcpus", 1, "how often over the host's processors are given to machines")
		f.Float64("overcommit-memory", 1, "how often over memory is given to machines: they share what they do not write")
		f.Int("disk-mib-per-second", 0, "what a machine may read and write of its disks, in MiB a second; 0 is no bound")
		f.Int("disk-ops-per-second", 0, "how often a second it may; 0 is no bound")
		f.Int("ready", 2, "machines kept ready of each image, at least")
		f.Int("ready-most", 16, "machines kept ready of each image and shape at most, where there is demand for them")
		f.Int("prepared", 1, "VMMs kept prepared beyond those")
		addRetentionFlags(f)
		addChoice(c, "network", "", "auto", "networks for jobs that ask for one: auto where this host can, on or not at all, off", "auto", "on", "off")
		f.String("network-uplink", "", "interface that leads out (the default route's)")
		f.StringSlice("network-dns", nil, "DNS servers to ask for machines (those of /etc/resolv.conf)")
		f.StringSlice("network-allow", nil, "private ranges that jobs' policies may let machines reach, like 10.1.0.0/16")
		f.StringSlice("network-deny", nil, "further ranges that no machine reaches")
		f.Bool("network-ipv6", false, "offer IPv6 to jobs that ask for it")
		f.Int("network-mbit", 0, "megabits a second that a machine may send, and receive; 0 is no bound")
		f.String("network-range", "", "addresses between host and machines, for nothing else (100.96.0.0/16)")
		f.String("network-bridge", "", "bridge of a LAN to put machines on, instead of address translation; the four below are about it")
		f.String("network-cidr", "", "the LAN's addresses, like 192.168.1.0/24")
		f.String("network-lease", "", "those of them that are machines' (all)")
		f.String("network-gateway", "", "the LAN's gateway")
		f.Bool("network-inbound", false, "let the LAN connect to machines")
		f.String("ports", "127.0.0.1:30000-32767", "address and ports of this host that jobs' ports are reached at; empty for none")
		// Any free port: a URL is told with each job and goes with it, and several workers on a host are not in each other's way.
		f.String("ports-http", "127.0.0.1:0", "address at which they are reached over HTTP, too, at PORT-JOB.localhost; port 0 is a free one; empty for none")
		f.String("ports-domain", "localhost", "domain there instead of localhost: all names below it lead to this address")
	}
	return cf
}

// key is a flag's name in files and, in upper case, in the environment.
func key(flag string) string { return strings.ReplaceAll(flag, "-", "_") }

// allKeys are the keys of all server commands.
func allKeys() map[string]bool {
	c := &cobra.Command{}
	addConfigFlags(c, forDispatcher|forWorker)
	all := map[string]bool{}
	c.Flags().VisitAll(func(f *pflag.Flag) { all[key(f.Name)] = isKey(f) })
	maps.DeleteFunc(all, func(_ string, is bool) bool { return !is })
	return all
}

func defaultStateDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/paddock"
	}
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "paddock")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "paddock-state"
	}
	return filepath.Join(home, ".local", "state", "paddock")
}

// cleanName makes a host's name one token.
func cleanName(host string) string {
	host, _, _ = strings.Cut(host, ".")
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '-'
	}, host)
	if jobs.ValidTenant(name) != nil {
		return "worker"
	}
	return name
}

// openStore opens the image store of --image-dir.
func openStore(dir string) (*images.Store, error) { return images.Open(dir) }
