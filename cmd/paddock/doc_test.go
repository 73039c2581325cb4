package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"

	"github.com/paddockvm/paddock/jobs"
)

var update = flag.Bool("update", false, "write docs/cli.md")

const cliDoc = "../../docs/cli.md"

// byHost are the defaults that are not the same everywhere.
var byHost = map[string]string{
	"state-dir": "`/var/lib/paddock`, or `~/.local/state/paddock` where not root", "image-dir": "`images` in the state directory",
	"name": "the host's name", "vcpus": "as many as the host has", "memory-mib": "3/4 of the host's",
}

// TestDocIsCurrent holds the generated parts of docs/cli.md, each between <!-- NAME --> and <!-- end -->, against the code.
func TestDocIsCurrent(t *testing.T) {
	clean(t)
	parts := map[string]string{"commands": commandsDoc(), "exit codes": exitCodesDoc()}
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

var (
	console = regexp.MustCompile("(?ms)^```console\n(.*?)^```$")
	varies  = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}|[0-9]+(\.[0-9]+)?|…`)
	blanks  = regexp.MustCompile(`[ \t]+`)
)

// TestExamples runs the console examples of docs/cli.md, in order and in one directory, with a server of their own. What they print must
// be what stands there, but for ids, numbers, and what … stands for.
func TestExamples(t *testing.T) {
	if _, err := exec.LookPath("/usr/bin/python3"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("no /usr/bin/python3: the examples' programs are in Python")
	}
	b, err := os.ReadFile(cliDoc)
	if err != nil {
		t.Fatal(err)
	}
	sh := exampleShell(t)
	n := 0
	for _, block := range console.FindAllStringSubmatch(string(b), -1) {
		for example := range strings.SplitSeq(strings.TrimPrefix(block[1], "$ "), "\n$ ") {
			line, want, _ := strings.Cut(example, "\n")
			for strings.HasPrefix(want, "> ") { // the line goes on
				more, rest, _ := strings.Cut(want, "\n")
				line, want = line+"\n"+strings.TrimPrefix(more, "> "), rest
			}
			n++
			got := sh(line)
			if !sameOutput(got, want) {
				t.Errorf("$ %s\nprints\n%s\nand in %s stands\n%s", line, got, cliDoc, want)
			}
		}
	}
	if n < 10 {
		t.Errorf("%d examples", n)
	}
}

// exampleShell starts a server and gives what runs a line as a reader would, who has paddock in PATH and the default address.
func exampleShell(t *testing.T) func(line string) string {
	dir := t.TempDir()
	agent := buildAgent(t)
	store := filepath.Join(dir, "state", "images")
	if err := makeImages(store, "base", "python"); err != nil {
		t.Fatal(err)
	}
	self, err := exec.LookPath("paddock")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "PADDOCK_NATS=nats://"+addr, "PADDOCK_LISTEN="+addr, "PADDOCK_STATE_DIR="+filepath.Join(dir, "state"), "PADDOCK_METRICS_LISTEN=",
		"PADDOCK_AGENT="+agent, "PADDOCK_DRIVER=hostproc", "PADDOCK_INSECURE_NO_ISOLATION=true", "PADDOCK_NAME=worker-1")
	for _, e := range []string{"PADDOCK_IMAGE_DIR", "PADDOCK_TENANT"} {
		env = append(env, e+"=")
	}
	serveUp(t, self, env)
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		t.Fatal(err)
	}
	last := "" // a reader copies the id of the job from the line before
	return func(line string) string {
		cmd := exec.CommandContext(context.Background(), "bash", "-c", strings.ReplaceAll(line, "JOB", last))
		cmd.Dir, cmd.Env = work, env
		out, _ := cmd.CombinedOutput() // what it prints tells
		if id := varies.FindString(string(out)); len(id) == 36 {
			last = id
		}
		return string(out)
	}
}

// serveUp runs `paddock up` until the test ends, and returns when it takes jobs.
func serveUp(t *testing.T, self string, env []string) {
	cmd := exec.Command(self, "up")
	cmd.Env = env
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	over := make(chan struct{})
	var log strings.Builder
	go func() {
		defer close(over)
		seen := false
		for s := bufio.NewScanner(said); s.Scan(); {
			log.WriteString(s.Text() + "\n")
			if !seen && strings.HasPrefix(s.Text(), "paddock: ready") {
				seen = true
				close(ready)
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-over
		if err := cmd.Wait(); err != nil {
			t.Errorf("paddock up: %v\n%s", err, &log)
		}
	})
	select {
	case <-ready:
	case <-over:
		t.Fatalf("paddock up ended:\n%s", &log)
	}
}

func sameOutput(got, want string) bool {
	normal := func(s string) string {
		return strings.TrimSpace(blanks.ReplaceAllString(strings.ReplaceAll(s, " \n", "\n"), " "))
	}
	want = normal(want)
	var re strings.Builder
	at := 0
	for _, m := range varies.FindAllStringIndex(want, -1) {
		re.WriteString(regexp.QuoteMeta(want[at:m[0]]))
		switch v := want[m[0]:m[1]]; {
		case v == "…":
			re.WriteString(`(?s:.*)`)
		case len(v) == 36:
			re.WriteString(`[0-9a-f-]{36}`)
		default:
			re.WriteString(`[0-9.]+`)
		}
		at = m[1]
	}
	re.WriteString(regexp.QuoteMeta(want[at:]))
	return regexp.MustCompile(`^` + re.String() + `$`).MatchString(normal(got))
}
