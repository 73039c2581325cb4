package harness_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/paddockvm/paddock/test/harness"
)

// judge is a test that says how it ended.
type judge struct {
	testing.TB
}

type ended string

func (judge) Helper()                   {}
func (judge) Fatalf(f string, a ...any) { panic(ended("failed: " + fmt.Sprintf(f, a...))) }
func (judge) Skip(...any)               { panic(ended("skipped")) }

// A machine without Valkey, or without Redis, is told so where the tests of both are required.
func TestNeedRedis(t *testing.T) {
	const missing = "failed: no %s in PATH; deploy/install-deps.sh test installs it"
	for _, tt := range []struct {
		has     []string
		require string
		want    string
	}{
		{[]string{"redis-server", "valkey-server"}, "1", ""},
		{[]string{"redis-server"}, "1", fmt.Sprintf(missing, "valkey-server")},
		{[]string{"valkey-server"}, "1", fmt.Sprintf(missing, "redis-server")},
		{[]string{"redis-server"}, "", ""},
		{nil, "", "skipped"},
	} {
		t.Run(fmt.Sprint(tt.has, tt.require), func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range tt.has {
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", dir)
			t.Setenv("REQUIRE_REDIS", tt.require)
			defer func() {
				if got, _ := recover().(ended); string(got) != tt.want {
					t.Errorf("%q, want %q", got, tt.want)
				}
			}()
			if got := harness.NeedRedis(judge{t}); !slices.Equal(got, tt.has) {
				t.Errorf("there are %q", got)
			}
		})
	}
}
