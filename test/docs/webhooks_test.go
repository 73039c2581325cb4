package docs_test

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// TestReceivers runs the receivers of docs/webhooks.md, and has a Paddock tell them of a job: two of them as endpoints, one as a callback.
func TestReceivers(t *testing.T) {
	const doc = "docs/webhooks.md"
	python, err := harness.Python(t.Context(), "standardwebhooks==1.1.0")
	if err != nil {
		missing(t, err)
	}
	node, err := harness.Node(t.Context(), "standardwebhooks@1.1.1")
	if err != nil {
		missing(t, err)
	}
	dir := t.TempDir()
	write := func(name, lang string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(blocks(t, doc, lang)[0]), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	goReceiver := filepath.Join(dir, "receiver")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", goReceiver, write("receiver.go", "go")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	receivers := []struct {
		name, port string
		argv       []string
	}{
		{"Python", freePort(t), []string{python, write("receiver.py", "python")}},
		{"JavaScript", freePort(t), []string{"env", "NODE_PATH=" + filepath.Join(node, "node_modules"), "node", write("receiver.js", "js")}},
		{"Go", freePort(t), []string{goReceiver}},
	}
	ports := []string{receivers[0].port, receivers[1].port, receivers[2].port}
	p, err := harness.Start(t.Context(), harness.Options{Driver: "hostproc", Args: []string{
		"--images", "base", "--webhook-http", "--webhook-allow", "127.0.0.0/8", "--webhook-ports", strings.Join(ports, ","),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	c, err := client.Connect(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	ask := func(op string, q any) jobs.WebhookReply {
		r, err := c.Webhook(t.Context(), op, q)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	spec := &jobs.Spec{Image: "base", Steps: []jobs.Step{{Shell: "exit 3"}}}
	lines := map[string]<-chan string{}
	for _, r := range receivers {
		to := "http://127.0.0.1:" + r.port + "/hook"
		var secret string
		if r.name == "Go" {
			secret = ask(jobs.WebhookSecret, nil).Secret
			spec.Callbacks = []jobs.Callback{{URL: to}}
		} else {
			secret = ask(jobs.WebhookAdd, jobs.EndpointRequest{URL: to}).Secret
		}
		lines[r.name] = receiver(t, r.port, append(r.argv, r.port, secret))
	}
	submitted, err := c.Submit(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.ReplaceAll(strings.TrimSpace(blocks(t, doc, "text")[0]), "JOB", submitted.Job.ID)
	for name, printed := range lines {
		select {
		case got, open := <-printed:
			if got != want {
				t.Errorf("%s printed %q (running: %t), want %q", name, got, open, want)
			}
		case <-time.After(time.Minute):
			t.Errorf("%s has printed nothing within a minute\n%s", name, p.Log())
		}
	}
}

// receiver starts a receiver, waits until it listens, and gives the lines that it prints. It ends with the test.
func receiver(t *testing.T, port string, argv []string) <-chan string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 16)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			lines <- in.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		for range lines { // until its output ends
		}
		_ = cmd.Wait()
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		nc, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = nc.Close()
			return lines
		}
		if time.Now().After(end) {
			t.Fatalf("%q does not listen: %v", argv, err)
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	return strconv.Itoa(harness.FreePort(t))
}

// missing skips, and fails where CI says that nothing may be missing.
func missing(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("REQUIRE_PACKAGES") != "" {
		t.Fatal(err)
	}
	t.Skip(err)
}
