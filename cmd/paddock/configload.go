package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
	yamlv3 "gopkg.in/yaml.v3"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/worker/forward"
)

// load gives the effective configuration, and whether it was only to be printed. The flags hold the values: the file and the
// environment set those that the command line did not, so that a word is judged alike wherever it stands.
func (cf *configFlags) load() (c config, printed bool, err error) {
	if err := errors.Join(cf.loadFile(), cf.loadEnv()); err != nil {
		return c, false, err
	}
	k := koanf.New(".")
	flags := cf.cmd.Flags()
	if err := k.Load(posflag.ProviderWithFlag(flags, ".", k, func(f *pflag.Flag) (string, any) {
		if !isKey(f) {
			return "", nil
		}
		return key(f.Name), posflag.FlagVal(flags, f)
	}), nil); err != nil {
		return c, false, fmt.Errorf("flags: %w", err)
	}
	if err := k.Unmarshal("", &c); err != nil {
		return c, false, fmt.Errorf("configuration: %w", err)
	}
	if f := flags.Lookup("image-dir"); f != nil && c.ImageDir == "" {
		c.ImageDir = filepath.Join(c.StateDir, "images")
		_ = f.Value.Set(c.ImageDir) // a string takes everything
	}
	if err := cf.check(); err != nil {
		return c, false, err
	}
	if *cf.print {
		return c, true, cf.printAll(cf.cmd.OutOrStdout())
	}
	return c, false, nil
}

// absolute has the directories named from the root: machines' processes work in others than this one's.
func (c *config) absolute() (err error) {
	for _, dir := range []*string{&c.StateDir, &c.ImageDir} {
		if *dir == "" {
			continue
		}
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	return nil
}

// isKey tells a flag that configures from one that says what to do with the configuration.
func isKey(f *pflag.Flag) bool {
	return f.Name != "config" && f.Name != "print-config" && f.Name != "help"
}

// loadFile reads the configuration file; an unknown key is an error, for it would be ignored otherwise.
func (cf *configFlags) loadFile() error {
	name := *cf.file
	if name == "" {
		if _, err := os.Stat(defaultConfigFile); err != nil {
			return nil //nolint:nilerr // the default file may be missing
		}
		name = defaultConfigFile
	}
	origin := "configuration file " + name
	k := koanf.New(".")
	if err := k.Load(file.Provider(name), yaml.Parser()); err != nil {
		return fmt.Errorf("%s: %w", origin, err)
	}
	all := allKeys()
	var errs []error
	for _, key := range k.Keys() {
		if all[key] { // another command's is passed over: one file serves them all
			errs = append(errs, cf.set(origin, key, key, k.Get(key)))
			continue
		}
		hint := "; see `" + cf.cmd.CommandPath() + " --print-config`"
		if near := jobs.Nearest(key, slices.Sorted(maps.Keys(all))); near != "" {
			hint = "; did you mean " + near + "?"
		}
		errs = append(errs, fmt.Errorf("%s: unknown key %q%s", origin, key, hint))
	}
	return errors.Join(errs...)
}

// loadEnv takes what the environment sets. Other variables of that prefix are other programs': the client's, the tests'.
func (cf *configFlags) loadEnv() error {
	k := koanf.New(".")
	if err := k.Load(env.Provider(".", env.Opt{Prefix: envPrefix, TransformFunc: func(name, v string) (string, any) {
		return strings.ToLower(strings.TrimPrefix(name, envPrefix)), v
	}}), nil); err != nil {
		return fmt.Errorf("environment: %w", err)
	}
	var errs []error
	for _, key := range k.Keys() {
		errs = append(errs, cf.set("environment", key, envPrefix+strings.ToUpper(key), k.Get(key)))
	}
	return errors.Join(errs...)
}

const envPrefix = "PADDOCK_"

// set gives a flag a value from elsewhere, unless the command line has. A key that the command does not have is passed over.
func (cf *configFlags) set(origin, key, shown string, v any) error {
	f := cf.cmd.Flags().Lookup(strings.ReplaceAll(key, "_", "-"))
	if f == nil || !isKey(f) || f.Changed {
		return nil
	}
	wrong := func(why string) error { return fmt.Errorf("%s: %s: %v: %s", origin, shown, v, why) }
	list, isList := v.([]any)
	slice, wantsList := f.Value.(pflag.SliceValue)
	switch {
	case wantsList:
		var words []string
		if text, ok := v.(string); ok {
			words = strings.Split(text, ",")
		} else if !isList {
			return wrong("want a list")
		}
		for _, e := range list {
			words = append(words, fmt.Sprint(e))
		}
		if err := slice.Replace(words); err != nil {
			return wrong(err.Error())
		}
	case isList:
		return wrong("want one value, not a list")
	case v == nil:
		return fmt.Errorf("%s: %s has no value", origin, shown)
	default:
		if err := f.Value.Set(fmt.Sprint(v)); err != nil {
			return wrong(wanted(f, err))
		}
	}
	cf.origin[f.Name] = origin
	return nil
}

// wanted says what a flag's value would have to be; what strconv says is of no use to anybody.
func wanted(f *pflag.Flag, err error) string {
	switch f.Value.Type() {
	case "int":
		return "want a whole number"
	case "bool":
		return "want true or false"
	case "duration":
		return "want a duration, like 15s"
	}
	return err.Error()
}

// least are the smallest values that make sense.
var least = map[string]int{"vcpus": 0, "memory-mib": 0, "reserve-memory-mib": 0, "ready": 0, "ready-most": 0, "prepared": 0, "max-queued": 1, "events-gib": 1, "redis-concurrency": 1, "objects-s3-tenant-mib": 0, "network-mbit": 0, "disk-mib-per-second": 0, "disk-ops-per-second": 0, "snapshot-keep": 0, "snapshot-max-mib": 0}

// most are the largest, of numbers that are multiplied before they are used: with more of it they would mean something else, or nothing.
var most = map[string]int{"memory-mib": maxMiB, "reserve-memory-mib": maxMiB, "events-gib": maxMiB >> 10, "objects-s3-tenant-mib": maxMiB, "network-mbit": maxMiB, "disk-mib-per-second": maxMiB, "snapshot-max-mib": maxMiB}

// maxMiB is an exbibyte.
const maxMiB = 1 << 40

// shortest are the shortest durations that do no harm.
var shortest = map[string]struct {
	least time.Duration
	why   string
}{
	"lease-ttl":         {3 * time.Second, "a worker's heartbeats are 2s apart"},
	"lease-grace":       {time.Millisecond, "a worker that ends its own machines needs a moment for it"},
	"keep-ended":        {24 * time.Hour, "for so long an idempotency key names its job"},
	"events-keep":       {10 * time.Minute, "who follows a job reads what it has missed"},
	"probe-timeout":     {10 * time.Millisecond, "a guest needs some of that where KVM works well"},
	"step-timeout":      {time.Second, "less would end machines that are well"},
	"objects-keep":      {time.Hour, "who has put an object needs some of that to submit a job that names it"},
	"redis-keep-result": {time.Second, "Redis counts in seconds"},
}

// check finds values that are of the right kind and make no sense.
func (cf *configFlags) check() error {
	var errs []error
	cf.cmd.Flags().VisitAll(func(f *pflag.Flag) {
		wrong := func(want string) {
			where := cf.origin[f.Name]
			if where == "" {
				where = "flags"
			}
			errs = append(errs, fmt.Errorf("%s: %s: %s: want %s", where, key(f.Name), f.Value, want))
		}
		if n, ok := least[f.Name]; ok {
			if v, err := cf.cmd.Flags().GetInt(f.Name); err == nil && v < n {
				wrong(fmt.Sprintf("at least %d", n))
			}
		}
		if n, ok := most[f.Name]; ok {
			if v, err := cf.cmd.Flags().GetInt(f.Name); err == nil && v > n {
				wrong(fmt.Sprintf("at most %d", n))
			}
		}
		if n, ok := shortest[f.Name]; ok {
			if v, err := cf.cmd.Flags().GetDuration(f.Name); err == nil && v < n.least {
				wrong(fmt.Sprintf("at least %s: %s", n.least, n.why))
			}
		}
		switch f.Name {
		case "listen", "http-listen", "metrics-listen", "ports-http":
			if f.Value.String() != "" && !isAddress(f.Value.String()) {
				wrong("HOST:PORT")
			}
		case "labels":
			if _, err := workerLabels(f.Value.(pflag.SliceValue).GetSlice()); err != nil {
				wrong("KEY=VALUE, of letters, digits, '.', '_', '/' or '-'")
			}
		case "name", "pool":
			if jobs.ValidTenant(f.Value.String()) != nil {
				wrong("letters, digits, - and _")
			}
		case "ports-domain":
			if !forward.ValidDomain(f.Value.String()) {
				wrong("a domain in lower case, like ports.example.com")
			}
		case "state-dir":
			if f.Value.String() == "" {
				wrong("a directory")
			}
		case "snapshot-max-age":
			if v, err := cf.cmd.Flags().GetDuration(f.Name); err == nil && v != 0 && v < leastSnapshotAge {
				wrong(fmt.Sprintf("0, or at least %s: it is looked after once an hour", leastSnapshotAge))
			}
		case "jail-uids":
			if _, _, err := uidRange(f.Value.String()); err != nil {
				wrong(err.Error())
			}
		case "jail-require":
			jail, driver := cf.cmd.Flags().Lookup("jail").Value.String(), cf.cmd.Flags().Lookup("driver").Value.String()
			if f.Value.String() == "full" && (jail == "off" || driver == "hostproc" || driver == "inproc") {
				wrong(fmt.Sprintf("degraded, for there is no jail with jail: %s and driver: %s", jail, driver))
			}
		}
	})
	return errors.Join(errs...)
}

// isAddress tells whether text is a host and a port, by its number or by a name that this host knows.
func isAddress(text string) bool {
	_, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	return err == nil
}

// printAll writes the effective configuration as a file that would give it, and says where each value is from.
func (cf *configFlags) printAll(w io.Writer) error {
	root := &yamlv3.Node{Kind: yamlv3.MappingNode}
	var errs []error
	cf.cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !isKey(f) {
			return
		}
		var k, v yamlv3.Node
		value := posflag.FlagVal(cf.cmd.Flags(), f)
		if d, ok := value.(time.Duration); ok {
			value = d.String()
		}
		errs = append(errs, k.Encode(key(f.Name)), v.Encode(value))
		switch origin := cf.origin[f.Name]; {
		case f.Changed:
			v.LineComment = "flag"
		case origin != "":
			v.LineComment = origin
		default:
			v.LineComment = "default"
		}
		if v.Kind == yamlv3.SequenceNode {
			v.Style = yamlv3.FlowStyle
		}
		root.Content = append(root.Content, &k, &v)
	})
	e := yamlv3.NewEncoder(w)
	return errors.Join(append(errs, e.Encode(root), e.Close())...)
}
