package worker_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/paddockvm/paddock/test/bubble"
)

// A worker that is started again is the instance that it was, and one on a copy of its directory is another.
func TestInstance(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := newRig(t)
		instance := func(dir string) (name string) {
			r.cfg.Dir = dir
			r.set(func() { r.beats = nil })
			r.run(t)
			r.until(t, "a heartbeat", func() bool { return len(r.beats) > 0 })
			r.set(func() { name = r.beats[0].Instance })
			if err := r.stop(); err != nil {
				t.Error(err)
			}
			return name
		}
		first := t.TempDir()
		id := instance(first)
		if again := instance(first); id == "" || again != id {
			t.Errorf("it was %q, and started again it is %q", id, again)
		}
		b, err := os.ReadFile(filepath.Join(first, "instance"))
		if err != nil {
			t.Fatal(err)
		}
		second := t.TempDir()
		if err := os.WriteFile(filepath.Join(second, "instance"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if other := instance(second); other == id {
			t.Error("a copy is the same instance")
		}
	})
}
