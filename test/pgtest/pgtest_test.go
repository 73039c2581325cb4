package pgtest_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/paddockvm/paddock/test/pgtest"
)

// What is paused does nothing any more when Pause returns, however many processes it was making for connections.
func TestPauseIsOver(t *testing.T) {
	s := pgtest.Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for ctx.Err() == nil {
				if c, err := pgx.Connect(ctx, s.URL("postgres")); err == nil {
					_ = c.Close(ctx)
				}
			}
		})
	}
	for range 20 {
		s.Pause()
		if n, going := processes(t, s.Dir()); n < 2 || going > 0 {
			t.Errorf("paused, %d of %d processes go on", going, n)
		}
		s.Resume()
	}
	cancel()
	clients.Wait()
}

// processes counts those that are in a directory, and those of them that are not stopped.
func processes(t *testing.T, dir string) (n, going int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		cwd, err := os.Readlink(filepath.Join(p, "cwd"))
		stat, _ := os.ReadFile(filepath.Join(p, "stat"))
		if err != nil || filepath.Dir(cwd) != dir || bytes.Contains(stat, []byte(") Z ")) {
			continue
		}
		if n++; !bytes.Contains(stat, []byte(") T ")) {
			going++
		}
	}
	return n, going
}
