package docs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/test/port"
)

// TestWatchers runs what docs/http.md shows against a Paddock that listens where it says.
func TestWatchers(t *testing.T) {
	const doc = "docs/http.md"
	node, err := harness.Node(t.Context(), "eventsource@3.0.7")
	if err != nil {
		missing(t, err)
	}
	addr := port.Addr(harness.FreePort(t))
	p := paddock(t, "--http-listen", addr)
	c, err := client.Connect(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	r, err := c.Submit(t.Context(), &jobs.Spec{Language: "python", Source: "for i in range(3): print('line', i)"})
	if err != nil {
		t.Fatal(err)
	}
	job := r.Job.ID
	file := filepath.Join(t.TempDir(), "watch.js")
	if err := os.WriteFile(file, []byte(blocks(t, doc, "js")[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	js := exec.CommandContext(t.Context(), "node", file, "http://"+addr+"/v1/jobs/"+job+"/events")
	js.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(node, "node_modules"))
	js.Stderr = os.Stderr
	out, err := js.Output()
	if d := cmp.Diff(string(out), blocks(t, doc, "text")[1]); err != nil || d != "" {
		t.Errorf("JavaScript: %v (-got +want):\n%s\n%s", err, d, p.Log())
	}
	curl := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(blocks(t, doc, "sh")[1], "127.0.0.1:8080", addr))
	curl.Env = append(os.Environ(), "JOB="+job)
	curl.Stderr = os.Stderr
	out, err = curl.Output()
	var text, last string
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "event: ") {
			last = strings.TrimSpace(line)
		}
		if _, after, ok := strings.Cut(line, `"text":"`); ok && last == "event: output" {
			shown, _, _ := strings.Cut(after, `"`)
			text += shown
		}
	}
	if err != nil || text != `line 0\nline 1\nline 2\n` || last != "event: result" {
		t.Errorf("curl: %v\n%s", err, out)
	}
}
