package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/dispatcher/api"
	"github.com/paddockvm/paddock/jobs"
)

var update = flag.Bool("update", false, "write docs/cli.md")

const cliDoc = "../../docs/cli.md"

// byHost are the defaults that are not the same everywhere.
var byHost = map[string]string{
	"state-dir": "`/var/lib/paddock`, or `~/.local/state/paddock` where not root", "image-dir": "`images` in the state directory",
	"name": "the host's name", "reserve-memory-mib": "1/4 of the host's, at most 8192",
}

// TestDocIsCurrent holds the generated parts of docs/cli.md, each between <!-- NAME --> and <!-- end -->, against the code.
func TestDocIsCurrent(t *testing.T) {
	clean(t)
	parts := map[string]string{"commands": commandsDoc(), "exit codes": exitCodesDoc(), "metrics": metricsDoc(t)}
	b, err := os.ReadFile(cliDoc)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	rest := string(b)
	for {
		before, after, found := strings.Cut(rest, "<!-- ")
		out.WriteString(before)
		if !found {
			break
		}
		name, after, _ := strings.Cut(after, " -->\n")
		_, after, found = strings.Cut(after, "<!-- end -->\n")
		if !found || parts[name] == "" {
			t.Fatalf("%s: %q is no generated part, or has no end", cliDoc, name)
		}
		out.WriteString("<!-- " + name + " -->\n" + parts[name] + "<!-- end -->\n")
		delete(parts, name)
		rest = after
	}
	for name := range parts {
		t.Errorf("%s lacks the generated part %q", cliDoc, name)
	}
	if *update {
		if err := os.WriteFile(cliDoc, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(string(b), out.String()); d != "" {
		t.Errorf("%s is not current; go test ./cmd/paddock -run TestDocIsCurrent -update writes it (-file +code):\n%s", cliDoc, d)
	}
}

// clean takes the tester's own configuration out of the environment.
func clean(t *testing.T) {
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, envPrefix) {
			t.Setenv(name, "") // has it set back at the end
			_ = os.Unsetenv(name)
		}
	}
}

// commandsDoc documents every command that does something.
func commandsDoc() string {
	root := command()
	var b strings.Builder
	for _, g := range root.Groups() {
		fmt.Fprintf(&b, "\n### %s\n", strings.TrimSuffix(g.Title, ":"))
		for _, c := range root.Commands() {
			if c.GroupID == g.ID {
				commandDoc(&b, c)
			}
		}
	}
	b.WriteString("\n### Besides\n")
	for _, c := range root.Commands() {
		if c.GroupID == "" && c.IsAvailableCommand() && c.Name() != "help" {
			commandDoc(&b, c)
		}
	}
	return b.String() + "\n"
}

func commandDoc(b *strings.Builder, c *cobra.Command) {
	if c.HasSubCommands() {
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				commandDoc(b, sub)
			}
		}
		return
	}
	fmt.Fprintf(b, "\n#### %s\n\n", c.CommandPath())
	said := c.Long
	if !strings.Contains(said, ". ") && !strings.Contains(said, ".\n") {
		said = c.Short + ".\n" + said
	}
	if c.Parent().Name() == "completion" { // cobra's own words are about each shell's files
		said = c.Short + ". `" + c.CommandPath() + " --help` says where it goes."
	}
	fmt.Fprintf(b, "%s\n\n    %s\n", strings.TrimSpace(strings.ReplaceAll(said, "\n", " ")), c.UseLine())
	var rows strings.Builder
	row := func(f *pflag.Flag) {
		if f.Name == "help" || f.Hidden {
			return
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		value := "`" + strings.Trim(f.DefValue, "[]") + "`"
		switch {
		case byHost[f.Name] != "":
			value = byHost[f.Name]
		case value == "``" || value == "`false`" || value == "`0`" || value == "`0s`":
			value = ""
		}
		fmt.Fprintf(&rows, "| %s | %s | %s |\n", name, value, f.Usage)
	}
	c.LocalFlags().VisitAll(row)
	c.InheritedFlags().VisitAll(row)
	if rows.Len() > 0 {
		b.WriteString("\n| option | default | |\n|---|---|---|\n" + rows.String())
	}
}

// exitCodesDoc lists the endings of jobs by the exit code that stands for them.
func exitCodesDoc() string {
	meanings := []struct {
		code int
		what string
	}{
		{exitLimit, "otherwise the program's own doing"},
		{exitTimeLimit, "it took too long"},
		{exitFailure, "not the program's doing: a wrong use or spec, no server, a refusal, or all attempts failed"},
		{exitNotFound, "it does not exist or cannot be executed"},
		{exitCanceled, "canceled, by Ctrl-C or by anybody"},
		{exitMemoryLimit, "it wanted more memory than its limit"},
	}
	endings := map[int][]string{}
	for _, e := range []jobs.Ending{
		jobs.TimeLimit, jobs.MemoryLimit, jobs.OutputLimit, jobs.PIDsLimit, jobs.DiskLimit, jobs.FileLimit, jobs.VMExited, jobs.StartFailed, jobs.FileFailed,
		jobs.CompileError, jobs.WrongAnswer, jobs.Canceled, jobs.Expired, jobs.Rejected, jobs.WorkerLost, jobs.VMFailed, jobs.AgentLost, jobs.ImageFailed,
		jobs.HostResources,
	} {
		code := exitCode(jobs.Result{Ending: e})
		endings[code] = append(endings[code], "`"+string(e)+"`")
	}
	var b strings.Builder
	b.WriteString("| code | | endings |\n|---|---|---|\n| the program's | it exited with it | `exited` |\n| 128 + n | signal n ended it | `signaled` |\n")
	for _, m := range meanings {
		fmt.Fprintf(&b, "| %d | %s | %s |\n", m.code, m.what, strings.Join(endings[m.code], " "))
	}
	return b.String()
}

// catalogue is a registry that only remembers what is registered: one of Prometheus's own does not show what has no values yet.
type catalogue []prometheus.Collector

func (c *catalogue) Register(x prometheus.Collector) error  { *c = append(*c, x); return nil }
func (c *catalogue) MustRegister(l ...prometheus.Collector) { *c = append(*c, l...) }
func (*catalogue) Unregister(prometheus.Collector) bool     { return false }

var described = regexp.MustCompile(`fqName: "([^"]+)", help: "([^"]+)".*variableLabels: \{([^}]*)\}`)

// metricsDoc lists what `paddock up` registers, but for what Prometheus's own collectors do.
func metricsDoc(t *testing.T) string {
	c := config{StateDir: t.TempDir(), Driver: "inproc", Insecure: true, Name: "w", VCPUs: 1, MemoryMiB: 256, OvercommitVCPUs: 1, OvercommitMemory: 1}
	var all catalogue
	f, err := openFront(t.Context(), c, &bus.Bus{}, &all)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dispatcher.New(f.cfg); err != nil {
		t.Fatal(err)
	}
	store, err := openStore(filepath.Join(c.StateDir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := openWorker(t.Context(), c, store, &bus.Bus{}, &all, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.store.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	api.New(api.Config{Registerer: &all})
	descs := make(chan *prometheus.Desc, 1000)
	for _, x := range all {
		x.Describe(descs)
	}
	close(descs)
	var rows []string
	for d := range descs {
		m := described.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatal(d)
		}
		label := m[3]
		if label != "" {
			label = "`" + label + "`"
		}
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s |\n", m[1], label, strings.TrimSuffix(m[2], ".")))
	}
	slices.Sort(rows)
	return "| metric | by | |\n|---|---|---|\n" + strings.Join(rows, "")
}

// TestSampleConfigs reads each file of configs/ as the command does for which it is.
func TestSampleConfigs(t *testing.T) {
	clean(t)
	files, err := filepath.Glob("../../configs/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(b), "# paddock "+name+" --config configs/"+name+".yaml") {
			t.Errorf("%s does not begin with how it is used", file)
		}
		root := command()
		var out strings.Builder
		root.SetOut(&out)
		root.SetArgs([]string{name, "--config", file, "--print-config"})
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		var keys map[string]any
		if err := yaml.Unmarshal(b, &keys); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(out.String(), "# configuration file"); n != len(keys) {
			t.Errorf("%s has %d keys, paddock %s takes %d of them", file, len(keys), name, n)
		}
	}
}
