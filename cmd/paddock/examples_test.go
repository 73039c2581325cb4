package main

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"gopkg.in/yaml.v3"
)

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
	server := firstSteps(t)
	if err := makeImages(filepath.Join(dir, "state", "images"), imagesOf(t, self, server, env)...); err != nil {
		t.Fatal(err)
	}
	serveUp(t, self, server, env)
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

// firstSteps gives the arguments by which docs/cli.md starts its server.
func firstSteps(t *testing.T) []string {
	b, err := os.ReadFile(cliDoc)
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(b), "\n```sh\nsudo paddock ")
	line, _, _ := strings.Cut(after, "\n")
	if !ok {
		t.Fatalf("%s starts no server", cliDoc)
	}
	return strings.Fields(line)
}

// imagesOf gives the images that a server would build: the only ones that its users find.
func imagesOf(t *testing.T, self string, server, env []string) []string {
	cmd := exec.CommandContext(t.Context(), self, append(slices.Clone(server), "--print-config")...)
	cmd.Env = env
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var c struct{ Images []string }
	if err := yaml.Unmarshal(out, &c); err != nil {
		t.Fatal(err)
	}
	return c.Images
}

// serveUp runs a server until the test ends, and returns when it takes jobs.
func serveUp(t *testing.T, self string, args, env []string) {
	cmd := exec.Command(self, args...)
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
			t.Errorf("%q: %v\n%s", args, err, &log)
		}
	})
	select {
	case <-ready:
	case <-over:
		t.Fatalf("%q ended:\n%s", args, &log)
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
