package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
)

// config is what the servers can be told: by a file, then by the environment (PADDOCK_ and the key in upper case), then by flags.
type config struct {
	StateDir      string        `koanf:"state_dir"`
	ImageDir      string        `koanf:"image_dir"`
	Listen        string        `koanf:"listen"`
	NATS          string        `koanf:"nats"`
	MetricsListen string        `koanf:"metrics_listen"`
	LogLevel      string        `koanf:"log_level"`
	LazySync      bool          `koanf:"lazy_sync"`
	LeaseTTL      time.Duration `koanf:"lease_ttl"`
	LeaseGrace    time.Duration `koanf:"lease_grace"`
	MaxQueued     int           `koanf:"max_queued"`

	Name      string   `koanf:"name"`
	Driver    string   `koanf:"driver"`
	Accel     string   `koanf:"accel"`
	QEMU      string   `koanf:"qemu"`
	Jail      string   `koanf:"jail"`
	Insecure  bool     `koanf:"insecure_no_isolation"`
	Agent     string   `koanf:"agent"`
	Images    []string `koanf:"images"`
	VCPUs     int      `koanf:"vcpus"`
	MemoryMiB int      `koanf:"memory_mib"`
	Ready     int      `koanf:"ready"`
	Prepared  int      `koanf:"prepared"`
}

// defaultConfigFile is read where it exists and --config names no other.
const defaultConfigFile = "/etc/paddock/paddock.yaml"

// configFlags are a server command's flags; load turns them, the environment and the file into a config.
type configFlags struct {
	cmd   *cobra.Command
	file  *string
	print *bool
}

// Which of the keys a command takes.
const (
	forDispatcher = 1 << iota
	forWorker
)

func addConfigFlags(c *cobra.Command, which int) *configFlags {
	f := c.Flags()
	f.SortFlags = false
	cf := &configFlags{cmd: c, file: f.String("config", "", "configuration file ("+defaultConfigFile+" where it exists)")}
	cf.print = f.Bool("print-config", false, "print the effective configuration and end")
	f.String("state-dir", defaultStateDir(), "directory of the ledger, JetStream, and images")
	f.String("metrics-listen", "127.0.0.1:9464", "address of /metrics and /healthz; empty for none")
	f.String("log-level", "info", "debug, info, warn or error")
	if which&forDispatcher != 0 {
		f.String("listen", "127.0.0.1:4222", "address of the embedded NATS server; empty uses --nats instead")
		f.Bool("lazy-sync", false, "let JetStream's writes wait for the disk: faster, and a power loss may lose events")
		f.Duration("lease-ttl", 15*time.Second, "how long a worker keeps its jobs without a heartbeat")
		f.Duration("lease-grace", 5*time.Second, "how much longer until they are given to others")
		f.Int("max-queued", 100_000, "how many jobs may wait")
	}
	f.String("nats", "", "external NATS server")
	if which&forWorker != 0 {
		host, _ := os.Hostname()
		f.String("name", cleanName(host), "the worker's name, unique in its fleet")
		f.String("image-dir", "", "image store (images below the state directory)")
		f.StringSlice("images", []string{"python"}, "images to build if missing, and to keep machines ready of")
		f.String("driver", "qemu", "qemu, hostproc or inproc")
		f.String("accel", "auto", "auto, kvm or tcg")
		f.String("qemu", "", "QEMU binary (qemu-system-x86_64)")
		f.String("jail", "on", "on, or off to start VMMs as plain children of this process")
		f.Bool("insecure-no-isolation", false, "allow the drivers hostproc and inproc, which isolate nothing")
		f.String("agent", "", "the paddock-agent binary (beside this one)")
		f.Int("vcpus", runtime.NumCPU(), "vCPUs for machines: as many jobs of one vCPU run at once")
		f.Int("memory-mib", defaultMemoryMiB(), "memory for machines, in MiB")
		f.Int("ready", 2, "machines kept ready of each image")
		f.Int("prepared", 1, "VMMs kept prepared beyond those")
	}
	return cf
}

// key is a flag's name in files and, in upper case, in the environment.
func key(flag string) string { return strings.ReplaceAll(flag, "-", "_") }

// load gives the effective configuration, and whether it was only to be printed.
func (cf *configFlags) load() (c config, printed bool, err error) {
	k := koanf.New(".")
	known := map[string]bool{}
	cf.cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" && f.Name != "print-config" && f.Name != "help" {
			known[key(f.Name)] = true
		}
	})
	if err := loadFile(k, *cf.file, known); err != nil {
		return c, false, err
	}
	err = k.Load(env.Provider(".", env.Opt{Prefix: "PADDOCK_", TransformFunc: func(name, v string) (string, any) {
		name = strings.ToLower(strings.TrimPrefix(name, "PADDOCK_"))
		if !known[name] {
			return "", nil
		}
		if name == "images" {
			return name, strings.Split(v, ",")
		}
		return name, v
	}}), nil)
	if err != nil {
		return c, false, fmt.Errorf("environment: %w", err)
	}
	flags := cf.cmd.Flags()
	if err := k.Load(posflag.ProviderWithFlag(flags, ".", k, func(f *pflag.Flag) (string, any) {
		if !known[key(f.Name)] {
			return "", nil
		}
		return key(f.Name), posflag.FlagVal(flags, f)
	}), nil); err != nil {
		return c, false, fmt.Errorf("flags: %w", err)
	}
	if err := k.Unmarshal("", &c); err != nil {
		return c, false, fmt.Errorf("configuration: %w", err)
	}
	if c.ImageDir == "" {
		c.ImageDir = filepath.Join(c.StateDir, "images")
	}
	if *cf.print {
		b, err := yaml.Parser().Marshal(k.Raw())
		if err != nil {
			return c, true, err
		}
		_, err = cf.cmd.OutOrStdout().Write(b)
		return c, true, err
	}
	return c, false, nil
}

// loadFile reads a configuration file; an unknown key is an error, for it would be ignored otherwise.
func loadFile(k *koanf.Koanf, name string, known map[string]bool) error {
	if name == "" {
		if _, err := os.Stat(defaultConfigFile); err != nil {
			return nil //nolint:nilerr // the default file may be missing
		}
		name = defaultConfigFile
	}
	if err := k.Load(file.Provider(name), yaml.Parser()); err != nil {
		return fmt.Errorf("configuration file %s: %w", name, err)
	}
	all := allKeys()
	var errs []error
	for _, key := range k.Keys() {
		if known[key] {
			continue
		}
		if all[key] {
			k.Delete(key) // another command's: one file serves them all
			continue
		}
		hint := ""
		if near := jobs.Nearest(key, keysOf(all)); near != "" {
			hint = "; did you mean " + near + "?"
		}
		errs = append(errs, fmt.Errorf("configuration file %s: unknown key %q%s", name, key, hint))
	}
	return errors.Join(errs...)
}

// allKeys are the keys of all server commands.
func allKeys() map[string]bool {
	c := &cobra.Command{}
	addConfigFlags(c, forDispatcher|forWorker)
	all := map[string]bool{}
	c.Flags().VisitAll(func(f *pflag.Flag) { all[key(f.Name)] = true })
	delete(all, "config")
	delete(all, "print_config")
	return all
}

func keysOf(m map[string]bool) (l []string) {
	for k := range m {
		l = append(l, k)
	}
	return l
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
