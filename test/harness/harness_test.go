package harness_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/paddockvm/paddock/test/harness"
)

// The thread that called Start ends; what it started must not notice.
func TestOutlivesTheCallersThread(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "paddock")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\necho paddock: ready\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var p *harness.Paddock
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var err error
		p, err = harness.Start(t.Context(), harness.Options{Binary: binary, Command: "dispatcher", Dir: t.TempDir()})
		started <- err
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	select {
	case <-p.Done():
		t.Errorf("it ended with its thread: %v", p.Stop())
	case <-time.After(300 * time.Millisecond):
	}
}
