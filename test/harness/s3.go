package harness

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// versitygw is a server of S3 whose objects are files. It is built apart from the module, so that its dependencies are not Paddock's.
const versitygw = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"

// S3 is a running server of S3, with one bucket.
type S3 struct {
	Endpoint, Bucket string
	// Credentials is a file as the AWS tools write it.
	Credentials string
}

// GoProgram gives a program of a module, like "example.org/cmd/x@v1.2.3", built in a cache that other runs share.
func GoProgram(ctx context.Context, pkg, name string) (string, error) {
	dir, err := installed(ctx, "go", pkg, name, func(dir string) [][]string {
		return [][]string{{"env", "GOFLAGS=", "GOBIN=" + dir, "go", "install", "-trimpath", pkg}}
	})
	return filepath.Join(dir, name), err
}

// StartS3 starts one for a test and ends it with the test. It returns when it serves. The test is skipped, or fails where REQUIRE_PACKAGES
// says so, where it cannot be had.
func StartS3(t testing.TB) S3 {
	t.Helper()
	bin, err := GoProgram(t.Context(), versitygw, "versitygw")
	if err != nil {
		if os.Getenv("REQUIRE_PACKAGES") != "" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: no server of S3: %v", err)
	}
	port := FreePort(t)
	const access, secret = "paddock-test", "a secret of this test's"
	s := S3{Endpoint: "http://127.0.0.1:" + strconv.Itoa(port), Bucket: "objects", Credentials: filepath.Join(t.TempDir(), "credentials")}
	if err := os.WriteFile(s.Credentials, fmt.Appendf(nil, "[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", access, secret), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "data", s.Bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, bin, "--port", "127.0.0.1:"+strconv.Itoa(port), "--access", access, "--secret", secret, "--quiet", "posix", "--sidecar", filepath.Join(dir, "meta"), filepath.Join(dir, "data"))
	if err := os.Mkdir(filepath.Join(dir, "meta"), 0o755); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
		_ = log.Close()
		if b, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("versitygw: %s", b)
		}
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint, nil)
		if err != nil {
			t.Fatal(err)
		}
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		if r, err := c.Do(q); err == nil {
			_ = r.Body.Close()
			return s
		} else if time.Now().After(end) {
			t.Fatalf("the server of S3 does not come up: %v", err)
		}
	}
}
