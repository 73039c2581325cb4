package docs_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/test/harness"
)

// TestRedisExamples runs the programs of docs/redis.md against a Redis and a Paddock whose machines are processes; the one that writes the keys
// itself against a Valkey too.
func TestRedisExamples(t *testing.T) {
	for i, binary := range harness.NeedRedis(t) {
		t.Run(binary, func(t *testing.T) {
			s := harness.StartRedis(t, harness.RedisOptions{Binary: binary})
			p, err := harness.Start(t.Context(), harness.Options{Driver: "hostproc", Args: []string{"--images", "base,python", "--redis", s.URL()}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := p.Stop(); err != nil {
					t.Error(err)
				}
			})
			results := blocks(t, "docs/redis.md", "text")
			for _, tt := range []struct{ name, source, file, want string }{
				{"Python", blocks(t, "docs/redis.md", "python")[0], "example.py", results[0]},
				{"Go", blocks(t, "docs/redis.md", "go")[0], "example.go", results[1]},
			} {
				if tt.name == "Go" && i > 0 {
					continue // asynq's own client meets every server in package asynqin's tests
				}
				t.Run(tt.name, func(t *testing.T) {
					file := filepath.Join(t.TempDir(), tt.file)
					if err := os.WriteFile(file, []byte(tt.source), 0o644); err != nil {
						t.Fatal(err)
					}
					argv := []string{"go", "run", file, s.URL()}
					if tt.name == "Python" {
						argv = []string{python(t, "redis==6.4.0"), file, s.URL()}
					}
					ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
					defer cancel()
					cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
					var stderr bytes.Buffer
					cmd.Stderr = &stderr
					out, err := cmd.Output()
					if d := cmp.Diff(string(out), tt.want); err != nil || d != "" {
						t.Errorf("%v %s (-got +want):\n%s\n%s", err, d, stderr.String(), p.Log())
					}
				})
			}
		})
	}
}
