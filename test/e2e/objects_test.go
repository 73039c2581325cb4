package e2e

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// credential lets somebody in at a server that is still to start, and gives the file of the seed.
func credential(t *testing.T, file string, role access.Role, name string) string {
	t.Helper()
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, "credential", "add", "--"+string(role), name)
	cmd.Env = append(os.Environ(), "PADDOCK_NATS_CREDENTIALS="+file)
	seed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), name+".nk")
	if err := os.WriteFile(out, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

// A tenant that has nothing but its credential gives a job a large file and gets a large one back, from a worker that has nothing but its
// own, whatever keeps them.
func TestLargeFilesWithCredentials(t *testing.T) {
	needMachines(t)
	for _, store := range []string{"jetstream", "s3"} {
		t.Run(store, func(t *testing.T) {
			args := []string{"--objects", store}
			if store == "s3" {
				s := harness.StartS3(t)
				args = append(args, "--objects-s3-endpoint", s.Endpoint, "--objects-s3-bucket", s.Bucket, "--objects-s3-credentials", s.Credentials,
					"--objects-s3-region", "us-east-1", "--objects-s3-path-style", "--objects-s3-prefix", "paddock/")
			}
			file := filepath.Join(t.TempDir(), "credentials.yaml")
			acme, w1 := credential(t, file, access.Tenant, "acme"), credential(t, file, access.Worker, "w1")
			d := start(t, harness.Options{Command: "dispatcher", Args: append(args, "--nats-credentials", file)})
			start(t, harness.Options{Command: "worker", NATS: d.URL, Driver: "hostproc", Args: []string{"--images", "base", "--name", "w1", "--nats-creds", w1}})
			c, err := client.Connect(d.URL, client.Tenant("acme"), client.Credentials(acme))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			content := make([]byte, 20<<20)
			for i, r := 0, rand.New(rand.NewPCG(1, 2)); i < len(content); i++ {
				content[i] = byte(r.Uint32())
			}
			name := filepath.Join(t.TempDir(), "big")
			if err := os.WriteFile(name, content, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			ref, err := c.PutObject(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			job := submit(t, c, jobs.Spec{
				Image: "base", Files: []jobs.File{{Path: "big", Object: &ref}}, Steps: []jobs.Step{{Shell: "cat big big >twice"}},
				Artifacts: []jobs.Artifact{{Path: "twice", MaxBytes: 64 << 20}}, Limits: jobs.Limits{FileBytes: 64 << 20},
			})
			r := wantOnce(t, c, job)
			wantSuccess(t, r)
			if len(r.Artifacts) != 1 || r.Artifacts[0].Object == nil {
				t.Fatalf("artifacts: %+v", r.Artifacts)
			}
			o, err := c.GetObject(t.Context(), *r.Artifacts[0].Object)
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			if got, err := io.ReadAll(o); err != nil || !bytes.Equal(got, append(bytes.Clone(content), content...)) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
		})
	}
}
